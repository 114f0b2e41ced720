"""A critic of its own: it begins as it should, learns at its own pace and first, and the policy's trunk hears nothing of it."""

import functools

import jax
import numpy as np
import pytest

from jaxllm.data.tokenizers import make_tokenizer
from jaxllm.models import heads
from jaxllm.models.critic import TRUNK
from jaxllm.models.heads import NAME, Head
from jaxllm.stages import critics, opened, rl, scored, train
from jaxllm.stages.config import resolve
from jaxllm.stages.init_from import Source
from jaxllm.stages.scored import Scale
from tests.stages import rl_session
from tests.stages.rl_session import Session

OWN = {
    "rl__method": "ppo",
    "rl__critic": "own",
    "rl__critic_warmup": 2,
    "rl__critic_learning_rate": 0.01,
    "rl__value_clip": 0.0,
    "rollout__check_every": 0,
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rl")
    rl_session.write(folder)
    return functools.partial(rl_session.settings_in, folder)


def host(tree):
    return jax.tree.map(np.array, jax.device_get(tree))


def same(one, other):
    return jax.tree.map(np.array_equal, one, other)


def test_it_begins_as_the_policy_and_learns_alone_and_then_beside_it(settings, tmp_path):
    session = Session(settings(**OWN), tmp_path)
    first = host(session.state.params)
    assert all(jax.tree.leaves(same(first[NAME][TRUNK], {name: first[name] for name in first[NAME][TRUNK]})))
    assert "head" not in first[NAME][TRUNK] and {"embedding", "layers"} <= first[NAME][TRUNK].keys()
    warm = host(session.run(2).state.params)
    still, moved = same({**first, NAME: 0}, {**warm, NAME: 0}), same(first[NAME], warm[NAME])
    assert all(jax.tree.leaves(still)) and not any(jax.tree.leaves(moved["layer_0"]))
    assert not all(jax.tree.leaves(moved[TRUNK]["layers"]))
    rise = session.run(22).reports
    assert not any(jax.tree.leaves(same({**warm, NAME: 0}, host({**session.state.params, NAME: 1}))))
    rewards = [report["reward"] for report in rise]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.25, rewards
    with jax.set_mesh(session.made.mesh):  # on one and the same batch, its own trunk learns the returns by heart
        batch, state, values = session.feed(session.state, session.frozen), session.state, []
        for _ in range(12):
            state, report = session.step(state, session.frozen, batch)
            values.append(float(report["value"]))
    assert values[-1] < 0.3 * values[0], values


def test_adapters_have_a_second_set_over_the_same_base(settings):
    made = train.build(resolve(settings(**OWN, peft__name="lora")), rl.RECIPE)
    trained = jax.eval_shape(made.tuned.init(made.config))
    whole = made.tuned.whole(trained, {"base": made.tuned.model.abstract()})
    trunk = made.tuned.beside.head.trunk(whole)
    assert set(trunk.base) == set(heads.without(whole).base) and jax.tree.structure(trunk.adapters) == jax.tree.structure(whole.adapters)


def test_it_begins_as_a_reward_model_with_its_scale(settings, monkeypatch):
    config = resolve(settings(**OWN, rl__critic_init_from="there"))
    made = train.build(config, rl.RECIPE)
    model = made.tuned.model
    draw = jax.jit(model.init)
    theirs, score = draw(jax.random.key(7)), Head(model.config.width).init(jax.random.key(8))
    fingerprint = make_tokenizer({"kind": "bytes"}).fingerprint
    monkeypatch.setattr(opened, "open_source", lambda *_: Source(model, theirs, "there", fingerprint))
    monkeypatch.setattr(opened, "head_of", lambda folder, mesh: score if folder else None)
    monkeypatch.setattr(scored, "scale_of", lambda _: Scale(2.0, 0.5))
    params = opened.start(config, made.mesh, made.tuned, {}, fingerprint)
    tokens = np.arange(24, dtype=np.int32).reshape(2, 12)
    batch = {"tokens": tokens, "segments": np.ones_like(tokens), "positions": np.broadcast_to(np.arange(12), tokens.shape)}
    values = critics.values_of(config, model)

    @jax.jit
    def both(params, theirs):
        hidden = model.apply(theirs, tokens, segments=batch["segments"], positions=batch["positions"])
        return values(params, batch, None), 2 * Head(model.config.width).apply(score, hidden)[..., 0, 0] + 0.5

    found, expected = both(made.tuned.whole(params, {}), theirs)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    own = draw(jax.random.key(config.seed))
    assert all(jax.tree.leaves(same(host(own), host({name: tree for name, tree in params.items() if name != NAME}))))
    scanned = made.tuned.relayout(params, True)  # as a checkpoint of a run with the other layout is read
    assert set(scanned[NAME][TRUNK]["layers"]) == {"scanned"}
    assert all(jax.tree.leaves(same(host(params), host(made.tuned.relayout(scanned, False)))))
    with pytest.raises(ValueError, match="another tokenizer"):
        opened.start(config, made.mesh, made.tuned, {}, "other")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rl__critic": "apart"}, "Unknown rl.critic 'apart'"),
        ({"rl__method": "grpo"}, "has no critic"),
        ({"rl__value_detached": True}, "has another"),
        ({"rl__critic_warmup": -1}, "0 or more"),
        ({"rl__critic": "shared", "rl__critic_init_from": "x"}, "Set rl.critic=own"),
        ({"rl__critic_init_from": "x", "peft__name": "lora"}, "second set of adapters"),
    ],
)
def test_mistakes_are_told(changes, said, settings):
    with pytest.raises(ValueError, match=said):
        train.build(resolve(settings(**{**OWN, **changes})), rl.RECIPE)
