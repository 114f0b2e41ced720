"""Policy optimisation through its own parts: it learns, resumes bit for bit, is the same on every mesh, and samples what it trains."""

import functools
import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxllm.data.chat import Message
from jaxllm.parallel.mesh import make_mesh
from jaxllm.rollouts.methods import METHODS
from jaxllm.rollouts.rewards import Answer
from jaxllm.stages import methods, opened, programs, rewarded, rl, train
from jaxllm.stages.config import resolve
from tests.stages import rl_session
from tests.stages.rl_session import Session, saved_and_loaded


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with prompts and a reward."""
    folder = tmp_path_factory.mktemp("rl")
    rl_session.write(folder)
    return folder


@pytest.fixture(scope="module")
def settings(place):
    """The tiny config, with whatever is changed by dotted key."""
    return functools.partial(rl_session.settings_in, place)


@pytest.fixture(scope="module")
def grpo(settings, tmp_path_factory):
    """Forty updates of GRPO."""
    return Session(settings(), tmp_path_factory.mktemp("grpo")).run(40)


def mean_reward(reports):
    return np.mean([report["reward"] for report in reports])


def test_the_reward_rises_and_not_without_advantages(grpo, settings, tmp_path):
    first, last = mean_reward(grpo.reports[:3]), mean_reward(grpo.reports[-3:])
    assert first < 0.25 and last > 0.8, (first, last)
    still = Session(settings(), tmp_path)
    found = still.feed._making.credit
    still.feed._making.credit = lambda known: {**found(known), "advantages": 0 * found(known)["advantages"]}
    assert mean_reward(still.run(12).reports[-3:]) < 0.25


@pytest.mark.parametrize("name", METHODS)
def test_every_method_raises_the_reward(name, settings, tmp_path):
    session = Session(settings(rl__method=name, rollout__check_every=0), tmp_path).run(30)
    first, last = mean_reward(session.reports[:3]), mean_reward(session.reports[-3:])
    assert last > first + 0.25, (name, first, last)


def test_what_was_sampled_is_what_is_trained(grpo):
    for report, batch in zip(grpo.reports[:10], grpo.batches[:10], strict=True):
        assert report["coupled_mismatch"] == 0 and report["sampler_gap"] < 1e-5 and report["ratio"] == 1
        mask = batch["weights"] != 0
        assert (mask.sum(1) == batch["stat_completion_tokens"]).all() and (batch["sampler"][~mask] == 0).all()
        at = np.flatnonzero(mask[0])
        assert (batch["targets"][0, at] == batch["tokens"][0, 1:][at]).all() or at[-1] == mask.shape[1] - 1
    assert np.std([batch["tokens"][0].sum() for batch in grpo.batches]) > 0  # trap 2: noise that comes again


def test_a_temperature_is_in_everything(settings, tmp_path):
    """Trap 3: sampled, old and new log-probabilities are of one distribution; and factors of importance are 1 where nothing rounds."""
    session = Session(settings(rollout__temperature=0.5, batch_size=16, rl__importance_cap=2.0), tmp_path).run(1)
    report = session.reports[0]
    assert report["sampler_gap"] < 1e-5 and report["coupled_mismatch"] == 0 and report["ratio"] == pytest.approx(1, abs=1e-5)
    assert report["importance"] == pytest.approx(1, abs=1e-5) and report["importance_bounded"] == 0


def test_stale_weights_are_caught(grpo):
    """A planted bug: rows sampled with weights that are not those that look at them."""
    feed = grpo.feed
    with jax.set_mesh(grpo.made.mesh):
        rows = {name: grpo.batches[0][name] for name in ("tokens", "targets", "segments", "positions", "weights")}
        others = feed._making.scorer.others(grpo.state.params, rows, feed._making.sampler.key(0))
    assert others.sum() > 0.5 * rows["weights"].sum()


def test_advantages_are_those_of_the_rewards_by_group(settings, tmp_path):
    session = Session(settings(batch_size=16, rollout__epochs=2), tmp_path).run(4)
    whole = session.feed.rollouts[-1].buffer
    reward = whole["stat_reward"].reshape(4, 8)
    expected = (reward - reward.mean(1, keepdims=True)) / (reward.std(1, ddof=1, keepdims=True) + 1e-4)
    at_end = np.take_along_axis(whole["advantages"], whole["weights"].argmax(1)[:, None], 1)[:, 0]
    np.testing.assert_allclose(at_end, expected.reshape(-1), atol=1e-5)
    by_row = {row.tobytes(): values for row, values in zip(whole["tokens"], whole["stat_reward"], strict=True)}
    for batch in session.batches:  # trap 17: what was shuffled is still together
        assert all(by_row[row.tobytes()] == reward for row, reward in zip(batch["tokens"], batch["stat_reward"], strict=True))
    for epoch in (session.batches[:2], session.batches[2:]):
        assert sorted(np.concatenate([b["tokens"] for b in epoch]).tolist()) == sorted(whole["tokens"].tolist())
    assert session.batches[0]["tokens"].tolist() != session.batches[2]["tokens"].tolist()
    assert session.reports[0]["ratio"] == pytest.approx(1, abs=1e-5) and session.reports[3]["ratio"] != 1


RESUMED = {"batch_size": 16, "rl__kl_coefficient": 0.1, "rl__kl_controller": "adaptive", "rl__method": "reinforce_plus_plus"}


@pytest.mark.parametrize("at", [2, 3])
def test_stopped_and_resumed_is_never_stopped(at, settings, tmp_path):
    """Between two rollouts, and in the middle of one; a rollout that died before its end is made again."""
    whole = Session(settings(**RESUMED), tmp_path).run(6)
    first = Session(settings(**RESUMED), tmp_path).run(at)
    kept, state = saved_and_loaded(first.feed.state()), first.state
    first.feed._making.rewards = None  # the next rollout dies while it is judged
    with pytest.raises(TypeError):
        first.run(4)
    again = Session(settings(**RESUMED), tmp_path)
    again.state = state if at == 2 else Session(settings(**RESUMED), tmp_path).run(at).state
    again.feed.restore(kept)
    again.run(6 - at)
    for ours, theirs in zip(again.batches, whole.batches[at:], strict=True):
        assert all(np.array_equal(ours[name], theirs[name], equal_nan=True) for name in theirs)
    assert all(np.array_equal(a, b) for a, b in zip(again.params(), whole.params(), strict=True))
    assert again.feed._carry == whole.feed._carry != whole.feed._carry._replace(coefficient=np.float32(0.1))


def test_eight_devices_are_as_one(grpo, settings, tmp_path):
    eight = Session(settings(), tmp_path, devices=8).run(2)
    for ours, theirs in zip(eight.batches, grpo.batches, strict=False):
        assert np.array_equal(ours["tokens"], theirs["tokens"]) and np.array_equal(ours["stat_reward"], theirs["stat_reward"])
        np.testing.assert_allclose(ours["advantages"], theirs["advantages"], atol=1e-5)
    for ours, theirs in zip(eight.reports, grpo.reports, strict=False):
        assert ours["coupled_mismatch"] == 0 and ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


def test_nothing_is_compiled_after_the_second_update(settings, tmp_path):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, seconds, **kw: compiled.append(name) if "compile" in name else None)
    session = Session(settings(batch_size=16, rl__kl_coefficient=0.1), tmp_path, share=False).run(3)
    before = len(compiled)
    assert before
    session.run(4)
    assert len(compiled) == before, compiled[before:]


@pytest.mark.parametrize("changes", [{}, {"peft__name": "lora"}], ids=["full", "lora"])
@pytest.mark.parametrize("kl", ["loss", "reward"])
def test_the_reference_is_where_it_began(changes, kl, settings, tmp_path):
    session = Session(settings(rl__kl_coefficient=0.05, rl__kl=kl, **changes), tmp_path).run(4)
    assert ("base" in session.frozen) == bool(changes) and ("reference" in session.frozen) != bool(changes)
    assert session.reports[0]["kl_k1"] == pytest.approx(0, abs=1e-6) and session.reports[3]["kl_k3"] > 1e-4
    assert ("kl" in session.reports[0]) == (kl == "loss") and ("kl_sequence" in session.reports[0]) == (kl == "reward")


def test_text_trains_beside_the_samples(settings, corpus, monkeypatch, tmp_path):
    monkeypatch.setenv("JAXLLM_CACHE", str(tmp_path / "tokens"))
    text = {"data__train": [{"path": str(corpus)}], "data__workers": 1, "rl__ptx_coefficient": 1.0, "rl__ptx_rows": 8}
    session = Session(settings(**text, rl__entropy_coefficient=0.01), tmp_path).run(12)
    assert session.reports[0]["ptx"] == pytest.approx(np.log(264), abs=0.5) and session.reports[-1]["ptx"] < session.reports[0]["ptx"] - 1
    exact, estimated = session.reports[0]["entropy"], session.reports[0]["entropy_sampled"]
    assert exact == pytest.approx(estimated, abs=0.3) and exact == pytest.approx(np.log(264), abs=0.5)


def test_reward_models_are_components(settings, place, monkeypatch):
    class Ensemble:
        def ensemble(self, pairs, rule=None):
            return np.array([[len(text), len(text) + 2.0] if text else [np.nan, 1.0] for _, text in pairs])

    monkeypatch.setattr(rewarded.scored, "open_reward", lambda path, mesh: Ensemble())
    entries = [{"kind": "model", "path": str(place), "of": of, "name": of} for of in rewarded.REDUCED]
    config = resolve(settings(rl__rewards=entries))
    rewards = rewarded.rewards_of(config, rl.open_prompts(config).asked)
    found = rewards([Answer("p", text, {}, np.zeros(1, np.int32), True) for text in ("abc", "")], np.zeros(2, int))
    assert [found.parts[of][0] for of in ("mean", "worst", "mean_minus_std", "std")] == [4, 3, 3, 1] and np.isnan(found.total[1])
    assert rewards.everywhere


def test_a_reward_model_is_asked_the_turns_that_the_policy_was_asked(settings, place, monkeypatch):
    """A dialogue is not one turn of all its words."""
    asked = []

    class Model:
        def ensemble(self, pairs, rule=None):
            asked.extend(pairs)
            return np.zeros((len(pairs), 1))

    monkeypatch.setattr(rewarded.scored, "open_reward", lambda path, mesh: Model())
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    for chat, expected in ((True, [Message(**turn) for turn in turns]), (False, "a\nb\nc")):
        config = resolve(settings(rl__rewards=[{"kind": "model", "path": str(place)}], rollout__chat=chat))
        rewards = rewarded.rewards_of(config, rl.open_prompts(resolve(settings())).asked)
        rewards([Answer("a\nb\nc", "d", {"messages": turns}, np.zeros(1, np.int32), True)], np.zeros(1, int))
        assert asked.pop()[0] == (tuple(expected) if chat else expected)


def test_a_process_reward_is_of_every_step(settings, place, monkeypatch):
    """A model that scores a text by its last letter: the worst and the mean of the steps; nothing said is nothing scored."""

    class Model:
        def ensemble(self, pairs, rule=None):
            return np.array([[float(ord(text[-1]) - ord("a"))] for _, text in pairs])

    monkeypatch.setattr(rewarded.scored, "open_reward", lambda path, mesh: Model())
    entries = [{"kind": "model", "path": str(place), "steps": steps, "name": str(steps)} for steps in (None, *rewarded.STEPS)]
    rewards = rewarded.rewards_of(resolve(settings(rl__rewards=entries)), rl.open_prompts(resolve(settings())).asked)
    answers = [Answer("p", text, {}, np.zeros(1, np.int32), True) for text in ("xc\nxb\nxf", "xd", "xd\n\nxa")]
    parts = rewards(answers, np.zeros(3, int)).parts
    assert parts["None"].tolist() == [5, 3, 0] and parts["worst"].tolist() == [1, 3, 0]
    assert parts["mean"].tolist() == [pytest.approx(8 / 3), 3, 1.5]
    blank = rewards([Answer("p", "\n", {}, np.zeros(1, np.int32), True)] * 2, np.zeros(2, int)).parts
    assert np.isnan(blank["worst"]).all()


def test_the_greedy_baseline_has_the_penalty_that_its_samples_have(settings, tmp_path):
    """Nothing here ends by itself, so samples and greedy completions are worth the same: nothing is better than the baseline."""
    session = Session(settings(rl__method="remax", rl__missing_end=-1.0, rl__rewards=["ended"]), tmp_path).run(1)
    batch, report = session.batches[0], session.reports[0]
    assert report["truncated"] > 0.8 and (batch["stat_reward"] == np.where(batch["stat_truncated"] == 1, -1, 1)).all()
    assert not batch["advantages"][batch["stat_truncated"] == 1].any()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rollout__tools": ["calculater"]}, "Unknown kind of tool 'calculater'.* Did you mean 'calculator'"),
        ({"rollout__tools": [{"kind": "python", "second": 3.0}]}, "does not know 'second'.* Did you mean 'seconds'"),
        ({"rollout__tools": ["search"]}, "rollout.corpus is empty"),
        ({"rollout__tools": [3]}, "rollout.tools has the entry 3"),
        ({"rollout__tools": ["search"], "rollout__corpus": [{"path": "x"}]}, "which is no path"),
        ({"rl__rewards": [{"kind": "length", "csot": 1}]}, "does not know 'csot'.* Did you mean 'cost'"),
        ({"rl__rewards": [{"kind": "length", "cost": "much"}]}, "cost='much' is not a number"),
        ({"rl__rewards": [{"kind": "ended", "weight": None}]}, "weight=None is not a number"),
        ({"rl__rewards": ["tools"]}, "rollout.tools is empty"),
        ({"rl__rewards": [{"kind": "tools", "tool": "pyton"}], "rollout__tools": ["python"]}, "Did you mean 'python'"),
        ({"rl__rewards": [{"kind": "model", "path": "x", "of": "meen"}]}, "Did you mean 'mean'"),
        ({"rl__kl_controller": "adaptive"}, "rl.kl_controller='adaptive' is not read here"),
        ({"rl__discount": 0.9}, "rl.discount=0.9 is not read here: it is for ppo"),
        ({"rl__constant": 3.0}, "rl.over=constant"),
        ({"rl__method": "rloo", "rl__level": "sequence"}, "a method with a ratio"),
        ({"rl__kl_target": 0.0}, "above 0"),
        ({"rl__options": {"low": -1.0}}, "0 or more"),
        ({"rl__options": {"dual": 0.5}}, "above 1"),
        ({"rl__scale": {"scale": "bacth"}}, "Did you mean 'batch'"),
        ({"rl__method": "ppo", "rl__critic_learning_rate": 1.0, "optimizer__learning_rate": 0.0}, "beside optimizer.learning_rate=0"),
    ],
)
def test_mistakes_are_told_by_check_too(changes, said, settings):
    with pytest.raises(ValueError, match=said):
        programs.check(resolve(settings(**changes)), rl.RECIPE)


def test_a_reward_model_that_is_not_there_is_told_by_its_name(settings, tmp_path):
    changes = {"rl__rewards": [{"kind": "model", "path": f"{tmp_path}/nowhere", "name": "proxy"}]}
    with pytest.raises(ValueError, match=r"rl.rewards 'proxy': .*nowhere is not a work directory of `jaxllm reward`. Train a reward model"):
        train.build(resolve(settings(**changes)), rl.RECIPE)
    (tmp_path / "nowhere").mkdir()
    (tmp_path / "nowhere/config.json").write_text(json.dumps({"stage": "reward", "config": {"parallel": {}}}))
    with pytest.raises(ValueError, match=r"rl.rewards 'proxy': No whole checkpoint in .* until its first checkpoint is written"):
        train.build(resolve(settings(**changes)), rl.RECIPE)


@pytest.mark.parametrize("messages", [["hi"], [{"role": "user"}], [{"role": "user", "content": None}], []])
def test_a_dialogue_that_is_none_is_told_with_its_row(messages, settings, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    with pytest.raises(ValueError, match="row 1: 'messages' is not a list of turns"):
        rl.open_prompts(resolve(settings(rollout__file=str(tmp_path / "rows.jsonl"), rollout__chat=True)))


KEPT = {"batch_size": 16, "rollout__lag": 3, "rollout__replay": 1, "rollout__replay_share": 0.5, "rl__reward_rule": "running_sum"}


@pytest.fixture(scope="module")
def config_file(settings, place):
    path = place / "config.py"
    text = f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({settings(**KEPT)!r})\n"
    path.write_text(text)
    return path


def test_killed_in_a_rollout_and_run_again_is_never_killed(stage, config_file, tmp_path):
    words = ["rl", "--config", str(config_file), "--workdir"]
    env = os.environ | {"KILL_AT": "3", "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir)}
    killed = subprocess.run([sys.executable, "-m", "jaxllm", *words, str(tmp_path / "killed")], env=env)
    assert killed.returncode == -signal.SIGKILL
    assert stage(*words, tmp_path / "killed") == 0 and stage(*words, tmp_path / "whole") == 0
    read = lambda run, name: [json.loads(line) for line in (tmp_path / run / name).read_text().splitlines()]  # noqa: E731
    clocks = ("time", "step_seconds", "tokens_per_second", "mfu")
    bare = lambda records: [{k: v for k, v in record.items() if k not in clocks} for record in records]  # noqa: E731
    assert bare(read("killed", "metrics.jsonl")) == bare(read("whole", "metrics.jsonl"))
    assert read("killed", "samples.jsonl") == read("whole", "samples.jsonl")
    assert {"prompt", "text", "reward", "rewards", "log_probs", "advantages"} <= read("whole", "samples.jsonl")[0].keys()
    trained = [jax.tree.leaves(opened.open_model(str(tmp_path / run), make_mesh())[1]) for run in ("killed", "whole")]
    assert all(np.array_equal(a, b) for a, b in zip(*trained, strict=True))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rl__method": "gpro"}, "Unknown rl.method 'gpro'"),
        ({"rollout__samples_per_prompt": 1, "rollout__prompts": 32}, "Give 2 or more"),
        ({"batch_size": 24}, "do not divide"),
        ({"rl__method": "rloo", "batch_size": 16}, "serve one update"),
        ({"rl__method": "dapo", "rl__kl_coefficient": 0.1}, "has no KL"),
        ({"rl__kl_coefficient": 0.1, "rl__kl_estimator": "k1"}, "gradient of 0"),
        ({"rl__ptx_rows": 8}, "give both"),
        ({"rl__options": {"hgih": 0.3}}, "rl.options.hgih is no option"),
        ({"rl__scale": {"std": 1}}, "Choose from: scale, ddof, eps"),
        ({"rl__kl_coefficient": 0.1, "rl__kl_estimator": "k2", "rl__kl_corrected": True}, "right gradient as it is"),
        ({"rollout__temperature": 0.0}, "above 0"),
        ({"rollout__task": "arithmetic"}, "give one of them"),
        ({"rollout__stop": [""]}, "would end it at once"),
        ({"sequence_length": 8}, "Set sequence_length to at least"),
        ({"rl__rewards": [{"kind": "task"}]}, "prompts are of a file"),
        ({"rl__rewards": []}, "no answers to compare with"),
        ({"peft__name": "prompt"}, "soft tokens"),
    ],
)
def test_mistakes_are_told(changes, said, settings, tmp_path):
    with pytest.raises(ValueError, match=said):
        made = train.build(resolve(settings(**changes)), rl.RECIPE)
        rl.feed(made, str(tmp_path))


def test_other_prompts_are_refused_on_resume(settings, place, tmp_path):
    config = resolve(settings())
    data = rl.open_prompts(config)
    (tmp_path / "config.json").write_text(json.dumps({"stage": "rl", "config": config.to_dict(), "train_data": "others"}))
    with pytest.raises(ValueError, match="other prompts"):
        data.check(config, str(tmp_path))
    assert methods.method_of(config).kl == "loss"
