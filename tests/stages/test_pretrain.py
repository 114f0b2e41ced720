"""Pretraining through the front door: it learns, resumes bit for bit, and is the same on every mesh, batch split and remat policy."""

import json

import jax
import numpy as np
import pytest

from jaxllm.data.pipeline import EvalReader
from jaxllm.stages import config as configs
from jaxllm.stages import inputs, pretrain, programs, train
from jaxllm.stages import prepare as preparing
from jaxllm.training import state as states
from jaxllm.training.step import jit_step

TINY = {
    "seed": 3,
    "steps": 40,
    "batch_size": 8,
    "sequence_length": 64,
    "model": {"vocab_size": 320, "num_layers": 2, "width": 64, "num_heads": 4, "num_kv_heads": 2, "mlp_width": 128},
    "optimizer": {"learning_rate": 1e-2},
    "schedule": {"name": "cosine", "warmup": 5},
    "checkpoint": {"every": 0},
    "eval": {"every": 0, "batches": 2},
    "data": {"eval_fraction": 0.1, "workers": 1},
    "log": {"every": 1, "tensorboard": False},
}


@pytest.fixture
def settings(corpus, tmp_path):
    """A config file of the tiny run."""
    config = {**TINY, "data": {**TINY["data"], "train": [{"path": str(corpus)}]}}
    path = tmp_path / "tiny.py"
    path.write_text(f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({config!r})\n")
    return path


def records(workdir, name="metrics"):
    found = [json.loads(line) for line in (workdir / f"{name}.jsonl").read_text().splitlines()]
    return [record for record in found if record.get("name") != "epochs"]


def losses(workdir):
    return [(r["step"], r["loss"], r["grad_norm"]) for r in records(workdir)]


def test_it_learns_and_does_not_without_gradient(stage, settings, tmp_path):
    assert stage("pretrain", "--config", settings, "--workdir", tmp_path / "run") == 0
    baseline = json.loads((tmp_path / "run/config.json").read_text())["baselines"]
    held_out = records(tmp_path / "run", "evals")
    assert held_out[0]["loss"] > 5.5 and held_out[-1]["loss"] < 1.6 < baseline["unigram_loss"] - 1.0
    assert held_out[-1]["bits_per_byte"] < baseline["unigram_bits_per_byte"] - 1.5
    frozen = ["--config.optimizer.learning_rate=0", "--config.steps=8"]
    assert stage("pretrain", "--config", settings, "--workdir", tmp_path / "frozen", *frozen) == 0
    assert records(tmp_path / "frozen", "evals")[-1]["loss"] > 5.5


class StopAt:
    """A run that is asked to stop at a step."""

    def __init__(self, step):
        self.step = step

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __call__(self, step):
        return step == self.step


def test_stopped_and_resumed_is_never_interrupted(stage, settings, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = ["--config.steps=14", "--config.checkpoint.every=5", "--config.eval.every=4", "--config.model.residual_dropout=0.1"]
    assert stage("pretrain", "--config", settings, "--workdir", whole, *words) == 0

    for at in (3, 9):
        monkeypatch.setattr(train, "StopRequests", lambda at=at: StopAt(at))
        assert stage("pretrain", "--config", settings, "--workdir", parts, *words) == 75
    monkeypatch.undo()
    assert stage("pretrain", "--config", settings, "--workdir", parts, *words) == 0
    assert losses(parts) == losses(whole)
    assert records(parts, "evals") == records(whole, "evals")
    assert len(json.loads((parts / "config.json").read_text())["history"]) == 3


def test_the_best_may_be_the_checkpoint_of_a_run_that_was_asked_to_stop(stage, settings, tmp_path, monkeypatch, capsys):
    words = ["--config.steps=12", "--config.checkpoint.every=4", "--config.eval.every=4", "--config.optimizer.learning_rate=100"]
    words += ["--config.checkpoint.best=lines/loss", "--config.checkpoint.keep=1", "--config.schedule.warmup=0", "--config.eval.batches=1"]
    command = ["pretrain", "--config", settings, "--workdir", tmp_path / "run", *words]
    monkeypatch.setattr(train, "StopRequests", lambda: StopAt(4))
    assert stage(*command) == 75  # saved before step 4 was evaluated
    assert "Stopped and saved at step 4. Run the same command again" in capsys.readouterr().err
    monkeypatch.undo()
    assert stage(*command) == 0
    scores = {r["step"]: r["loss"] for r in records(tmp_path / "run", "evals") if r["step"]}
    manifests = {int(path.parent.name): json.loads(path.read_text()) for path in (tmp_path / "run/checkpoints").glob("*/manifest.json")}
    assert {step: found["metrics"]["lines/loss"] for step, found in manifests.items()} == {step: scores[step] for step in manifests}
    assert set(manifests) == {min(scores, key=scores.get), 12} and 4 in manifests


def trajectory(corpus, root, overrides=None, steps=20):
    """Losses of some steps and the first step's gradient direction, made the way a run makes them."""
    said = {**TINY, "data": {**TINY["data"], "train": [{"path": str(corpus)}]}, "optimizer": {"name": "adamw", "learning_rate": 3e-3}}
    config = configs.resolve(said, {key: str(value) for key, value in (overrides or {}).items()})
    monkey = pytest.MonkeyPatch()
    monkey.setenv("JAXLLM_CACHE", str(root))
    made = train.build(config, pretrain.RECIPE)
    monkey.undo()
    tuned, optimizer = made.tuned, made.optimizer
    state = states.create(tuned.init(config), optimizer, made.mesh, tuned.axes(), **programs.state_options(config))
    step = jit_step(programs.make_update(config, tuned, made.objective, optimizer), state)
    feed = inputs.feed(config, made.mesh, made.data.reader(config))
    out, first = [], None
    with jax.set_mesh(made.mesh), jax.default_matmul_precision("highest"):
        for _ in range(steps):
            state, report = step(state, {}, feed(state, {}))
            out.append(float(report["loss"]))
            if first is None:
                moments = optimizer_moments(state.opt_state)
                first = jax.tree.map(np.asarray, jax.device_get(tuned.relayout(moments, True)))
    feed.close()
    return np.array(out), first


def optimizer_moments(opt_state):
    """Adam's first moments after one update: the gradients, times a constant."""
    found = [leaf.mu for leaf in jax.tree.leaves(opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(leaf, "mu")]
    assert len(found) == 1
    return found[0]


@pytest.fixture(scope="module")
def one_device(corpus, tmp_path_factory):
    return trajectory(corpus, tmp_path_factory.mktemp("one"), {"parallel.fsdp": 8, "microbatches": 1})


SAME = {
    "replica": {"parallel.replica": 8, "parallel.fsdp": 1},
    "tensor": {"parallel.tensor": 2, "parallel.fsdp": 4},
    "context": {"parallel.context": 4, "parallel.fsdp": 2},
    "context, ring": {"parallel.context": 4, "parallel.fsdp": 2, "model.context": "ring"},
    "replica x fsdp x tensor": {"parallel.replica": 2, "parallel.fsdp": 2, "parallel.tensor": 2},
    "microbatches": {"parallel.fsdp": 2, "parallel.tensor": 2, "parallel.replica": 2, "microbatches": 2},
    "remat": {"remat": "full"},
    "unscanned": {"model.scan_layers": False, "remat": "minimal"},
}


@pytest.mark.parametrize("name", SAME)
def test_every_mesh_split_and_policy_gives_the_same_run(name, corpus, tmp_path, one_device):
    found, first = trajectory(corpus, tmp_path, SAME[name])
    expected, expected_first = one_device
    assert abs(found[0] - expected[0]) <= 1e-6 * expected[0]
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(first):
        other = dict(jax.tree_util.tree_leaves_with_path(expected_first))[path]
        assert np.linalg.norm(leaf - other) <= 1e-5 * np.linalg.norm(other), path


def test_weights_go_over_by_name_with_another_vocabulary(stage, settings, tmp_path, capfd):
    short = ["--config.steps=6", "--config.checkpoint.every=0"]
    assert stage("pretrain", "--config", settings, "--workdir", tmp_path / "a", *short) == 0
    words = [*short, f"--config.init_from={tmp_path / 'a'}", "--config.model.vocab_size=400", "--config.init_skip=final_norm/.*"]
    assert stage("pretrain", "--config", settings, "--workdir", tmp_path / "b", *words) == 0
    said = capfd.readouterr().err
    assert "vocabulary 320 -> 400" in said and "fresh (init_skip)" in said and "tokenizer" not in said
    before, after = records(tmp_path / "a", "evals")[-1], records(tmp_path / "b", "evals")[0]
    record = json.loads((tmp_path / "a/config.json").read_text())
    (tmp_path / "a/config.json").write_text(json.dumps(record | {"tokenizer": "that of another"}))
    words = [*short, f"--config.init_from={tmp_path / 'a'}", "--config.data.tokenizer.kind=bytes"]
    assert stage("pretrain", "--config", settings, "--workdir", tmp_path / "c", *words) == 0
    assert "ANOTHER there: rows of the vocabulary were learnt for other tokens" in " ".join(capfd.readouterr().err.split())
    assert after["step"] == 0 and abs(after["loss"] - before["loss"]) < 0.5 < records(tmp_path / "a", "evals")[0]["loss"] - before["loss"]


@pytest.fixture
def prepared(corpus, tmp_path):
    return preparing.prepare({"train": [{"path": str(corpus)}], "tokenizer": {"kind": "bytes"}, "workers": 1}, root=tmp_path)


def predicted(stream):
    """Every token that is a target of some weight."""
    rows = EvalReader(stream, sequence_length=32, batch_size=4)
    batches = [rows.rows(step) for step in range(rows.num_batches)]
    return np.concatenate([batch["targets"][batch["weights"] > 0] for batch in batches])


def test_the_unigram_baseline_is_the_entropy_of_the_counts_of_what_is_predicted(prepared):
    found = inputs.unigram_baseline(prepared)
    held_out, tokens = (np.concatenate([predicted(s) for s in prepared.streams(split).values()]) for split in ("eval", "train"))
    counts = np.bincount(tokens, minlength=259) + 1
    expected = -np.mean(np.log(counts[held_out] / counts.sum()))
    assert found["unigram_loss"] == pytest.approx(expected, rel=1e-9)
