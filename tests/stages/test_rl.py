"""Policy optimisation through its own parts: it learns, resumes bit for bit, is the same on every mesh, and samples what it trains."""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxllm.parallel.mesh import make_mesh
from jaxllm.rollouts.methods import METHODS
from jaxllm.rollouts.rewards import Answer
from jaxllm.stages import methods, opened, programs, rewarded, rl, train
from jaxllm.stages.config import flatten, nest, resolve
from jaxllm.stages.recipe import Beside
from jaxllm.training import state as states
from jaxllm.training.step import jit_step
from jaxllm.training.trees import join_feed, split_feed

REWARD = '''
"""The share of a letter, for tests; it kills its process where it is told to."""
import os, signal

CALLS = [0]

def share(prompts, completions, rows):
    CALLS[0] += 1
    if os.environ.get("KILL_AT") == str(CALLS[0]):
        os.kill(os.getpid(), signal.SIGKILL)
    return [sum(c in "abcdefghijklmnop" for c in text) / 6 for text in completions]
'''
TINY = {
    "seed": 5,
    "steps": 6,
    "batch_size": 32,
    "sequence_length": 16,
    "model": {"vocab_size": 264, "num_layers": 1, "width": 32, "num_heads": 2, "num_kv_heads": 1, "mlp_width": 64, "scan_layers": False},
    "optimizer": {"learning_rate": 2e-2},
    "schedule": {"name": "constant"},
    "checkpoint": {"every": 2},
    "log": {"every": 1, "tensorboard": False},
    "rollout": {"prompts": 4, "samples_per_prompt": 8, "max_new_tokens": 6, "check_every": 1},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with prompts and a reward."""
    folder = tmp_path_factory.mktemp("rl")
    (folder / "reward.py").write_text(REWARD)
    prompts = ["go", "say it", "well then", "and", "now what"]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return folder


@pytest.fixture(scope="module")
def settings(place):
    """The tiny config, with whatever is changed by dotted key."""

    def make(**changes):
        base = {**TINY, "rollout": {**TINY["rollout"], "file": str(place / "prompts.jsonl")}}
        base["rl"] = {"rewards": [{"kind": "function", "path": f"{place}/reward.py:share", "name": "share"}]}
        return nest({**flatten(base), **{name.replace("__", "."): value for name, value in changes.items()}}).to_dict()

    return make


COMPILED = {}  # what sessions of the same shapes share


class Session:
    """A run's parts, without its files; what was compiled for an earlier one is used again."""

    def __init__(self, config, folder, devices=1, share=True):
        built = train.build(resolve(config), rl.RECIPE)
        self.made = made = built._replace(mesh=make_mesh(devices=jax.devices()[:devices]))
        self.axes = made.tuned.axes()
        with jax.set_mesh(made.mesh):
            self.state, self.frozen = self.begin(json.dumps([devices, made.config.peft.name, made.config.rl.method == "ppo"]))
            self.feed = rl.feed(made, str(folder))
            self.step = jit_step(programs.make_update(made.config, made.tuned, made.objective, made.optimizer), self.state)
        if share:
            making, heat = self.feed._making, made.config.rollout.temperature
            sizes = (devices, heat, made.config.batch_size, made.config.rl.method == "ppo")
            making.sampler = COMPILED.setdefault(("sampler", devices, heat), making.sampler)
            making.greedy = making.greedy and COMPILED.setdefault(("greedy", devices), making.greedy)
            making.scorer = COMPILED.setdefault(("scorer", *sizes), making.scorer)
            making.credit = COMPILED.setdefault(("credit", devices, json.dumps(config["rl"])), making.credit)
            self.step = COMPILED.setdefault(("step", devices, json.dumps(config)), self.step)
        self.batches, self.reports = [], []

    def begin(self, key):
        """The state at step 0 and what is frozen, drawn once for all sessions that begin alike."""
        made = self.made
        if key not in COMPILED:
            state = states.create(made.tuned.init(made.config), made.optimizer, made.mesh, self.axes, guard=None)
            still = opened.frozen(made.config, made.mesh, made.tuned._replace(beside=Beside(reference=True)), None)
            leaves, tree = jax.tree.flatten((state, still))
            COMPILED[key] = jax.device_get(leaves), [leaf.sharding for leaf in leaves], tree
        leaves, places, tree = COMPILED[key]
        state, still = jax.tree.unflatten(tree, list(map(jax.device_put, leaves, places)))
        return state, still if made.tuned.beside.reference or made.tuned.method else {}

    def run(self, count):
        with jax.set_mesh(self.made.mesh):
            for _ in range(count):
                batch = self.feed(self.state, self.frozen)
                self.batches.append(jax.device_get(batch))
                self.state, report = self.step(self.state, self.frozen, batch)
                self.reports.append({name: float(value) for name, value in report.items()})
        return self

    def params(self):
        return jax.tree.leaves(jax.device_get(self.state.params))


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
    whole = session.feed._buffer
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


def saved_and_loaded(feed_state):
    arrays, nested = split_feed(feed_state)
    return join_feed({name: np.array(array) for name, array in arrays.items()}, json.loads(json.dumps(nested)))


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
    assert again.feed._coefficient == whole.feed._coefficient != np.float32(0.1)


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
    assert [found.parts[of][0] for of in ("mean", "worst", "mean_minus_std")] == [4, 3, 3] and np.isnan(found.total[1])
    assert rewards.everywhere


@pytest.fixture(scope="module")
def config_file(settings, place):
    path = place / "config.py"
    text = f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({settings(batch_size=16)!r})\n"
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
