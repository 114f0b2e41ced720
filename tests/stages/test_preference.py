"""Preference tuning: the losses of the log-probabilities that the model gives, the same on every mesh, learnt with and without adapters."""

import functools
import json

import jax
import numpy as np
import pytest

from jaxllm.losses.preference import LOSSES
from jaxllm.parallel.mesh import make_mesh
from jaxllm.stages import preference
from jaxllm.stages.preference import ALONE, RECIPE
from tests.stages.comparisons_made import Bench, assert_same_update, config_file, settings, write


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXLLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write(tmp_path_factory.mktemp("said"))


def bench_of(files, mesh=None, file="pairs", **more):
    return Bench(RECIPE, settings(files[file], **{key.replace("__", "."): value for key, value in more.items()}), mesh)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, params, tokens, segments, positions):
    return model.logits(params, model.apply(params, tokens, segments=segments, positions=positions))


def log_probs(bench, params, tokens, segments, targets, weights):
    """float64 [rows, segments]: sums over answers, in numpy, from the model's logits."""
    positions = np.stack([[np.sum(row[:t] == s) for t, s in enumerate(row)] for row in segments])
    logits = np.asarray(logits_of(bench.tuned.model, params, tokens, segments, positions), np.float64)
    chosen = np.take_along_axis(logits, targets[..., None], axis=2)[..., 0]
    each = (chosen - np.log(np.exp(logits).sum(-1))) * (weights > 0)
    return np.stack([(each * (segments == s)).sum(1) for s in range(1, segments.max() + 1)], axis=1)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("name", ["dpo", "orpo"])
def test_the_loss_is_that_of_the_answers_log_probabilities(name, files):
    bench = bench_of(files, preference__loss=name, preference__beta="0.3")
    rows = bench.rows()
    _, state, frozen = bench.start()
    moved = jax.tree.map(lambda leaf: leaf * 1.1, state.params)  # the policy has left its start
    terms, report, totals = bench.terms(rows, moved)
    fields = [rows[key] for key in ("tokens", "segments", "targets", "weights")]
    policy = log_probs(bench, moved, *fields)
    if name == "dpo":
        reference = log_probs(bench, frozen["reference"], *fields)
        delta = 0.3 * ((policy - reference)[:, 0] - (policy - reference)[:, 1])
        expected = np.log1p(np.exp(-delta)).mean()
        assert float(report["accuracy"]) == (delta > 0).sum() and float(report["margin"]) == pytest.approx(delta.sum(), rel=1e-3, abs=1e-3)
    else:
        assert not frozen
        counts = np.stack([((rows["weights"] > 0) & (rows["segments"] == s)).sum(1) for s in (1, 2)], axis=1)
        mean = policy / counts
        odds = mean - np.log1p(-np.exp(mean))
        expected = (0.3 * np.log1p(np.exp(-(odds[:, 0] - odds[:, 1])))).mean()
        assert float(terms["nll"].sum / totals["nll"]) == pytest.approx(-policy[:, 0].sum() / counts[:, 0].sum(), rel=1e-4)
    assert float(terms["preference"].sum / totals["preference"]) == pytest.approx(expected, rel=1e-4)


def test_kto_compares_with_the_mean_log_ratio_of_mismatched_pairs_of_the_whole_batch(files):
    bench = bench_of(files, preference__loss="kto")
    rows = bench.rows()
    _, state, frozen = bench.start()
    good, baselines = rows["values"][:, 0, 0] > 0.5, []
    for factor in (0.5, 1.5):  # a policy that left its start to either side
        moved = jax.tree.map(lambda leaf, factor=factor: leaf * factor, state.params)
        terms, _, totals = bench.terms(rows, moved)
        ratios = {}
        for front in ("", "other_"):
            fields = [rows[f"{front}{key}"] for key in ("tokens", "segments", "targets", "weights")]
            ratios[front] = (log_probs(bench, moved, *fields) - log_probs(bench, frozen["reference"], *fields))[:, 0]
        z0, own = max(0.0, ratios["other_"].mean()), ratios[""]
        expected = np.where(good, 1 - sigmoid(0.1 * (own - z0)), 1 - sigmoid(0.1 * (z0 - own)))
        assert float(terms["preference"].sum / totals["preference"]) == pytest.approx(expected.mean(), rel=1e-4)
        baselines.append(z0)
    assert max(baselines) > 0 and 0 < good.sum() < 8


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_microbatches_and_eight_devices_change_nothing(name, files):
    more = {"peft__name": "lora"} if name == "dpo" else {"file": "labels"}
    one = bench_of(files, preference__loss=name, **more)
    rows = one.rows()
    many = bench_of(files, make_mesh({"fsdp": 4, "tensor": 2}), preference__loss=name, microbatches="2", **more)
    found, expected = many.update(rows), one.update(rows)
    assert_same_update(found, expected)
    assert found[1]["loss"] == pytest.approx({"dpo": np.log(2), "kto": 0.5}[name], abs=1e-6)  # policy and reference are one at the start


def test_under_soft_prompts_the_reference_is_the_base_without_them(files):
    bench = bench_of(files, peft__name="prompt", peft__length="4")
    _, state, frozen = bench.start()
    soft = bench.rows()
    bare = {}
    for b in range(8):  # the same answers, soft tokens taken out
        real = (soft["segments"][b] > 0) & (soft["tokens"][b] < 320)
        for key in ("tokens", "segments", "targets", "weights"):
            bare.setdefault(key, np.zeros_like(soft[key]))[b, : real.sum()] = soft[key][b][real]
    expected = log_probs(bench, frozen["base"], *bare.values())
    with jax.set_mesh(bench.mesh):
        found = preference.reference_log_probs(bench.tuned.model, frozen, bench.batch(soft), 2)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert len(jax.tree.leaves(state.params)) == 1


def records(workdir, name):
    return [json.loads(line) for line in (workdir / f"{name}.jsonl").read_text().splitlines()]


def test_it_learns_to_prefer_and_resumes_only_with_its_own_reference(files, stage, tmp_path, capsys):
    config = config_file(tmp_path / "c.py", files["pairs"])
    words = ["preference", "--config", config, "--workdir", tmp_path / "run", "--config.steps=20", "--config.optimizer.learning_rate=2e-2"]
    assert stage(*words, "--config.preference.beta=0.5") == 0
    evals = [r for r in records(tmp_path / "run", "evals") if r["name"] == "pairs"]
    assert evals[0]["loss"] == pytest.approx(np.log(2), abs=1e-6) and evals[0]["accuracy"] == 0.5  # no learning, no preference
    assert evals[-1]["accuracy"] > 0.9 and evals[-1]["loss"] < 0.45
    assert stage(*words, "--config.preference.beta=0.5", "--config.seed=1", "--config.steps=21") == 2
    assert "seed was 0, is 1" in capsys.readouterr().err


def test_every_loss_is_known_by_what_it_reads(files):
    for name in (*LOSSES, *ALONE):
        config = settings(files["pairs"], **{"preference.loss": name})
        assert preference.has_reference(config) == (name in ALONE or LOSSES[name].reference)
        assert set(preference.fields(config)) >= {"lengths", "ranks"} and ("other_tokens" in preference.fields(config)) == (name in ALONE)
        assert not preference.has_reference(settings(files["pairs"], **{"preference.loss": name, "preference.reference_free": "true"}))


MISTAKES = {
    "loss": ({"preference.loss": "dop"}, "Unknown preference.loss 'dop'. Choose one of: dpo"),
    "option": (
        {"preference.gamma": "1"},
        "preference.gamma=1.0 is no option of the loss 'dpo'. It takes: beta, label_smoothing, reduction",
    ),
    "packed": ({"preference.loss": "kto", "data.packing": "packed"}, "set data.packing=padded"),
    "alone": ({"preference.loss": "kto", "batch_size": "1"}, "has no other answer to lend"),
    "labels": ({"file": "labels"}, "preference.loss='dpo' compares answers, and 120 of 120 records of 'labels' have a label"),
    "ratings": ({"file": "ratings", "preference.loss": "kto"}, "wants labels true and false (1 and 0), and 'ratings' has others"),
    "nll": ({"preference.nll": "1", "preference.loss": "kto"}, "'kto' has no pairs"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_a_sentence(name, files):
    given, sentence = MISTAKES[name]
    with pytest.raises(ValueError) as error:
        Bench(RECIPE, settings(files[given.get("file", "pairs")], **{key: value for key, value in given.items() if key != "file"}))
    assert sentence in str(error.value)
