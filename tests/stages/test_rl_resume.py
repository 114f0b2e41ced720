"""What policy optimisation keeps between rollouts: stopped anywhere and resumed is never stopped, bit for bit."""

import functools

import jax
import numpy as np
import pytest

from jaxllm.stages import policy, rl, train
from jaxllm.stages.config import resolve
from tests.stages import rl_session
from tests.stages.rl_session import Session, saved_and_loaded

COARSE = """
def coarse(prompts, completions, rows):
    return [float(any(c in "abcdefghijklmnopqrstuvwxyz" for c in text[:2])) for text in completions]
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rl")
    rl_session.write(folder)
    (folder / "coarse.py").write_text(COARSE)
    rewards = [{"kind": "function", "path": f"{folder}/coarse.py:coarse", "name": "coarse"}]
    rewards += [{"kind": "function", "path": f"{folder}/reward.py:share", "name": "share", **SAYS}]
    return functools.partial(rl_session.settings_in, folder, rl__rewards=rewards)


@pytest.fixture(scope="module")
def kept():
    """What one stopped and one whole run of a case were, for the tests that look at them."""
    return {}


SAYS = {"at_least": 0.5}
CONSTRAINT = {"rl__reward_rule": "constraint", "rl__multiplier_rate": 0.5}
CASES = {
    "resampled": {
        "rl__method": "dapo",
        "rollout__resample": 2,
        "batch_size": 16,
        "rollout__prompts": 8,
        "rollout__samples_per_prompt": 4,
        **CONSTRAINT,
    },
    "late": {"rollout__lag": 3, "rollout__replay": 2, "rollout__replay_share": 0.5, "batch_size": 16, **CONSTRAINT},
    "critic": {
        "rl__method": "ppo",
        "rl__critic": "own",
        "rl__critic_warmup": 3,
        "rl__normalise_returns": True,
        "batch_size": 16,
        **CONSTRAINT,
    },
}


def whole_run(kept, settings, name, folder, steps=7):
    if name not in kept:
        kept[name] = session = Session(settings(**CASES[name]), folder)
        weights, session.made_at = session.feed._weights, []
        session.feed._weights = lambda state, frozen: session.made_at.append(int(state.step)) or weights(state, frozen)
        session.run(steps)
    return kept[name]


@pytest.mark.parametrize("name", CASES)
def test_stopped_and_resumed_is_never_stopped(name, settings, kept, tmp_path):
    whole = whole_run(kept, settings, name, tmp_path)
    session = Session(settings(**CASES[name]), tmp_path)
    for _ in range(3):  # a new process after 2 and after 5 steps: between rollouts and within them
        session.run(min(3 - (len(session.batches) == 0), 7 - int(session.state.step)))
        state, batches, feed = session.state, session.batches, saved_and_loaded(session.feed.state())
        session = Session(settings(**CASES[name]), tmp_path)
        session.state, session.batches = state, batches
        session.feed.restore(feed)
    assert len(session.batches) == len(whole.batches) == 7
    for ours, theirs in zip(session.batches, whole.batches, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[key], theirs[key], equal_nan=True) for key in theirs)
    assert all(np.array_equal(a, b) for a, b in zip(session.params(), whole.params(), strict=True))
    assert session.feed._carry == whole.feed._carry and session.feed._history == whole.feed._history


def test_dull_groups_gave_way_and_what_stayed_is_the_policys_own(settings, kept, tmp_path):
    whole = whole_run(kept, settings, "resampled", tmp_path)
    assert sum(report["resampled"] for report in whole.reports) > 0.5 and whole.feed._carry.prompts > 4 * 8
    plain = Session(settings(**{**CASES["resampled"], "rollout__resample": 0}), tmp_path)
    with jax.set_mesh(plain.made.mesh):
        unsorted = plain.feed(plain.state, plain.frozen)["stat_identical"].mean()
    assert whole.batches[0]["stat_identical"].mean() < unsorted
    assert all(report["coupled_mismatch"] == 0 for report in whole.reports)
    multipliers = [report["multiplier_share"] for report in whole.reports]
    assert multipliers[0] == multipliers[1] == 1 != multipliers[2] == multipliers[3] and min(multipliers) > 0


def test_rollouts_are_made_before_their_turn_and_drawn_from_again(settings, kept, tmp_path):
    """Four updates a rollout, made three before; half of each batch is of the two before, and tells its age alone."""
    whole = whole_run(kept, settings, "late", tmp_path)
    assert whole.made_at == [0, 1, 5] and [one.made for one in whole.feed.rollouts] == [0, 1, 5]
    seen = [{row.tobytes() for row in one.buffer["tokens"]} for one in whole.feed.rollouts]
    assert all(len(one) == 32 for one in seen) and not seen[0] & seen[1] and not seen[1] & seen[2]
    for step, batch in enumerate(whole.batches):
        rows = [row.tobytes() for row in batch["tokens"]]
        assert set(rows[:8]) <= seen[step // 4] and len(set(rows[8:])) == 8 and set(rows[8:]) <= seen[0]
        assert (batch["stat_age"][:8] == step - (step // 4)).all() and (batch["stat_age"][8:] == step).all()
        assert np.isnan(batch["stat_reward"][8:]).all() and np.isfinite(batch["stat_reward"][:8]).all()
    fresh = [batch["tokens"][:8] for batch in whole.batches[:4]]
    assert sorted(np.concatenate(fresh).tolist()) == sorted(whole.feed.rollouts[0].buffer["tokens"].tolist())
    drawn = [sorted(row.tobytes() for row in batch["tokens"][8:]) for batch in whole.batches[4:]]
    assert drawn[0] != drawn[1] != drawn[2], "another draw at every step"
    assert whole.reports[0]["ratio"] == pytest.approx(1, abs=1e-5) and whole.reports[6]["approx_kl_k3"] > 1e-4


@pytest.mark.parametrize(("method", "in_ratio", "in_factors"), [("grpo", np.e, 1.0), ("reinforce", 1.0, np.e)])
def test_what_an_older_policy_drew_weighs_what_it_should(method, in_ratio, in_factors, settings, kept, tmp_path):
    """Tokens that the policy has come to like by a nat since: e is in the ratio, or where there is none in the factors of importance."""
    session = Session(settings(**CASES["late"]), tmp_path)
    with jax.set_mesh(session.made.mesh):
        batch = session.feed(session.state, session.frozen)
        batch |= dict.fromkeys(("old", "sampler"), (batch["old"] - 1) * (batch["weights"] != 0))
        config = resolve(settings(**CASES["late"] | {"rl__method": method, "rl__importance_cap": 10.0}))
        made = policy.objective(config, session.made.tuned.model)
        report = jax.jit(lambda params, batch: made.loss(params, {}, batch, None)[1])(session.state.params, batch)
    tokens = float((batch["weights"] != 0).sum())
    found = [float(report[name]) / tokens for name in ("importance", "ratio")]
    assert found[0] == pytest.approx(in_factors, rel=1e-4) and (method == "reinforce" or found[1] == pytest.approx(in_ratio, rel=1e-4))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rl__method": "rloo", "rollout__lag": 1}, "serve one update of the policy that drew them"),
        ({"rollout__replay": 1}, "give both"),
        ({"rollout__replay": 1, "rollout__replay_share": 0.3}, "9.6 rows"),
        ({"rollout__replay": 1, "rollout__replay_share": 0.25}, "with 24 new ones each"),
        ({"rollout__replay": 1, "rollout__replay_share": 0.75, "batch_size": 64, "rollout__samples_per_prompt": 4}, "and a rollout has 16"),
        ({"rollout__lag": -1}, "0 or more"),
        ({"rollout__resample": -1}, "0 or more"),
        ({"rl__normalise_returns": True}, "no returns of tokens"),
        ({"rl__method": "ppo", "rl__normalise_returns": True, "rl__whiten_rewards": True}, "Choose one"),
        ({"rl__method": "remax", "rl__reward_rule": "running_sum"}, "another scale"),
        ({"rl__reward_rule": "sum", "rl__multiplier_rate": 0.1}, "go together"),
        ({"rl__reward_rule": "sum"}, "rl.multiplier_rate=0.5 is not read here"),
        ({"rl__method": "ppo", "rollout__resample": 1}, "compares none"),
    ],
)
def test_mistakes_are_told(changes, said, settings, tmp_path):
    with pytest.raises(ValueError, match=said):
        rl.feed(train.build(resolve(settings(**{**CONSTRAINT, **changes})), rl.RECIPE), str(tmp_path))
