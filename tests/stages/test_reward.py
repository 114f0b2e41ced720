"""Reward models through the front door: they learn what people prefer, whatever the mesh and the batches, and others can open them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.models import heads
from jaxllm.parallel.mesh import make_mesh
from jaxllm.sampling.text import Sample
from jaxllm.stages import reward, sample, scored, train
from jaxllm.stages.reward import LOSSES as LOSSES_OF
from jaxllm.stages.reward import RECIPE
from tests.stages.comparisons_made import Bench, assert_same_update, config_file, settings, write


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXLLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write(tmp_path_factory.mktemp("said"))


LOSSES = {  # loss -> the file that it learns from, and its options
    "bradley_terry": ("pairs", {"reward.centering": "0.01"}),
    "ranking": ("ranking", {"reward.answers": "3"}),
    "pick_best": ("ranking", {"reward.answers": "3"}),
    "rating": ("ratings", {}),
    "binary": ("labels", {}),
    "multiclass": ("labels", {"reward.classes": "3"}),
}


def bench_of(name, files, mesh=None, **more):
    file, options = LOSSES[name]
    return Bench(RECIPE, settings(files[file], **{"reward.loss": name, **options, **more}), mesh)


def test_every_loss_has_a_file_here():
    assert set(LOSSES) == set(reward.LOSSES)


def test_microbatches_and_eight_devices_change_nothing(files):
    ensemble = {"reward.members": "2", "reward.prior": "1.0", "reward.hidden": "[4]"}
    one = bench_of("bradley_terry", files, **ensemble)
    rows = one.rows()
    many = bench_of("bradley_terry", files, make_mesh({"fsdp": 4, "context": 2}), microbatches="2", **ensemble)
    assert_same_update(many.update(rows), one.update(rows))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_reads_its_data_and_adds_up_over_parts_of_a_batch(name, files):
    bench = bench_of(name, files)
    rows, row = bench.rows(), LOSSES_OF[name]
    random, told = np.random.RandomState(0), reward.said({key: jnp.asarray(rows[key]) for key in ("lengths", "ranks", "values", "margins")})
    scores = jnp.asarray(random.randn(*told.ranks.shape, 3 if name == "multiclass" else 1), jnp.float32)

    def sums(part):
        terms, report = row.loss(scores[part], reward.Said(*(field[part] for field in told)), bench.config.reward)
        return {term: float(found.sum) for term, found in terms.items()} | {f"r {x}": float(value) for x, value in report.items()}

    whole, first, rest = sums(slice(0, 8)), sums(slice(0, 3)), sums(slice(3, 8))
    assert all(whole[key] == pytest.approx(first[key] + rest[key], rel=1e-5, abs=1e-5) for key in whole)
    known = row.totals(told)
    assert all(float(known[key.removeprefix("r ")]) == pytest.approx(8) for key in whole)
    metrics = row.metrics(jax.tree.map(np.asarray, row.sums(scores, told)))
    assert metrics and all(np.isfinite(value) for value in metrics.values())


def test_the_loss_is_that_of_scores_read_behind_each_answer(files):
    bench = bench_of("bradley_terry", files)
    rows = bench.rows()
    terms, report, totals = bench.terms(rows)
    _, state, _ = bench.start()
    T = rows["tokens"].shape[1]
    alone, behind = np.zeros((16, T), np.int32), np.zeros((16, T), np.int32)  # each answer by itself, padded on the left
    for b in range(8):
        for k in (0, 1):
            own = rows["tokens"][b][rows["segments"][b] == k + 1]
            alone[2 * b + k, T - len(own) :], behind[2 * b + k, T - len(own) :] = own, 1
    positions = np.maximum(np.cumsum(behind, axis=1) - 1, 0)
    model, head = bench.tuned.model, reward.head(bench.config, bench.tuned.model)
    hidden = jax.jit(model.apply)(state.params, alone, segments=behind, positions=positions)[:, -1]
    scores = np.asarray(head.apply(heads.of(state.params), hidden))[:, 0, 0].reshape(8, 2)
    difference = scores[:, 0] - scores[:, 1]
    assert float(terms["reward"].sum / totals["reward"]) == pytest.approx(np.mean(np.log1p(np.exp(-difference))), abs=1e-5)
    assert float(terms["centering"].sum) == pytest.approx(np.sum(scores.sum(1) ** 2), rel=1e-4)
    assert float(report["accuracy"] / totals["accuracy"]) == pytest.approx(np.mean(difference > 0))


def test_packed_rows_score_as_padded_ones(files):
    found = {}
    for packing in ("padded", "packed"):
        bench = bench_of("bradley_terry", files, **{"data.packing": packing, "data.eval_fraction": "0.5", "sequence_length": "192"})
        _, state, frozen = bench.start()
        score = RECIPE.scorer(bench.config, bench.tuned.model, bench.data.tokenizer)
        reader = bench.data.eval_reader(bench.config, "pairs")
        with jax.set_mesh(bench.mesh):
            batches = (bench.batch(reader.rows(step)) for step in range(reader.num_batches))
            found[packing] = score(bench.tuned.whole(state.params, frozen), frozen, batches), reader.num_batches
    (apart, many), (together, few) = found["padded"], found["packed"]
    assert few < many and apart["pairs"] == together["pairs"] > 40
    for name in ("loss", "accuracy", "ece", "margin"):
        assert apart[name] == pytest.approx(together[name], abs=1e-5), name


def test_what_is_not_trained_stays_bit_for_bit(files):
    bench = bench_of("bradley_terry", files, **{"reward.prior": "1.0", "reward.members": "2"})
    before = jax.device_get(bench.start()[1].params)
    after = jax.device_get(bench.update(bench.rows(), steps=2)[0].params)
    for name, leaf in before["scores"]["prior"]["layer_0"].items():
        np.testing.assert_array_equal(after["scores"]["prior"]["layer_0"][name], leaf)
    np.testing.assert_array_equal(after["head"]["kernel"], before["head"]["kernel"])
    assert np.any(after["scores"]["layer_0"]["kernel"] != before["scores"]["layer_0"]["kernel"])


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


def records(workdir, name):
    return [json.loads(line) for line in (workdir / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory):
    """The work directory of a reward model with adapters, stopped once on its way, and one that never was."""
    from jaxllm.__main__ import main

    place = tmp_path_factory.mktemp("reward")
    words = ["reward", "--config", str(config_file(place / "c.py", files["pairs"])), "--config.reward.scale=unit", "--config.steps=20"]
    words += ["--config.peft.name=lora", "--config.optimizer.learning_rate=2e-2"]
    with pytest.MonkeyPatch.context() as patch:
        assert main([*words, "--workdir", str(place / "whole")]) == 0
        patch.setattr(train, "StopRequests", lambda: StopAt(7))
        assert main([*words, "--workdir", str(place / "parts")]) == 75
    assert main([*words, "--workdir", str(place / "parts")]) == 0
    return place


def test_it_learns_and_resumes_bit_for_bit(trained):
    curves = [[(r["step"], r["loss"], r["grad_norm"]) for r in records(trained / name, "metrics")] for name in ("whole", "parts")]
    assert curves[0] == curves[1] and len(curves[0]) == 20
    evals = [r for r in records(trained / "whole", "evals") if r["name"] == "pairs"]
    assert evals[0]["accuracy"] < 0.75 and evals[-1]["accuracy"] > 0.95 and evals[-1]["loss"] < 0.2


def test_without_gradient_it_does_not_learn(files, stage, tmp_path):
    words = ["--config", config_file(tmp_path / "c.py", files["pairs"]), "--workdir", tmp_path / "run", "--config.steps=2"]
    assert stage("reward", *words, "--config.optimizer.learning_rate=0") == 0
    evals = [r for r in records(tmp_path / "run", "evals") if r["name"] == "pairs"]
    assert evals[0]["loss"] == evals[-1]["loss"] > 0.6


def test_others_open_it(trained):
    mesh = make_mesh()
    model = scored.open_reward(str(trained / "whole"), mesh)
    asked = [("p1", "abcz"), ("p1", "abcb"), ("p2", "hhhhhhhz"), ("p2", "hhhhhhhb"), ("p3", "")]
    with jax.set_mesh(mesh):
        scores = model.scores(asked)
        tokens = [model.encoded(*one) for one in asked[:2]]
        rows = model.rows(tokens, model.tokenizer.fingerprint)[:, 0]
        with pytest.raises(ValueError, match="another tokenizer than the reward model's"):
            model.rows(tokens, "that of another")
    assert scores[0] > scores[1] and scores[2] > scores[3] and np.isnan(scores[4])  # an empty answer cannot be scored: never 0
    np.testing.assert_allclose(rows, scores[:2], atol=1e-5)
    scale = scored.Scale(**json.loads((trained / "whole" / scored.SCALE).read_text()))
    assert scale == model.scale and scale.gain > 0


def test_reference_answers_score_zero_in_the_mean_and_one_in_deviation(trained):
    mesh = make_mesh()
    model = scored.open_reward(str(trained / "parts"), mesh)
    samples = [model.encoded("p", f"{'ab' * n}{'zb'[n % 2]}") for n in range(1, 9)]
    scored.set_scale(str(trained / "parts"), mesh, samples, "unit")
    again = scored.open_reward(str(trained / "parts"), mesh)
    with jax.set_mesh(mesh):
        found = again.rows(samples)
    assert abs(found.mean()) < 1e-4 and abs(found.std() - 1) < 1e-4


def test_the_best_of_some_samples_is_the_one_it_scores_highest(trained):
    mesh = make_mesh()
    texts = [("p1", "abcb"), ("p1", "abcz"), ("p1", ""), ("p2", "hgz"), ("p2", "hgb")]
    samples = [Sample(prompt, k % 3, text, [], 0.0, True) for k, (prompt, text) in enumerate(texts)]
    with jax.set_mesh(mesh):
        best = list(sample.best(samples, scored.ranking(str(trained / "whole"), mesh)))
    assert [(found.prompt, found.text) for found in best] == [("p1", "abcz"), ("p2", "hgz")]


def test_it_judges_answers(trained, stage, tmp_path, capsys):
    for name, end in (("good", "z"), ("bad", "b")):
        lines = [json.dumps({"prompt": f"p{i}", "answer": f"abc{end}"}) + "\n" for i in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    files = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    words = ["evaluate", "--compare", *files, "--judge", trained / "whole", "--workdir", tmp_path]
    assert stage(*words) == 0
    assert '"win_rate": 1.0' in capsys.readouterr().out
    assert stage(*words, "--rubric", files[0]) == 2
    assert "is a reward model, which scores" in capsys.readouterr().err


MISTAKES = {
    "a loss": ({"reward.loss": "bt"}, "Unknown reward.loss 'bt'. Choose one of: bradley_terry"),
    "labels to compare": ({"file": "labels"}, "'bradley_terry' compares answers, and 120 of 120 records of 'labels' have a label"),
    "pairs to rate": ({"reward.loss": "rating"}, "'rating' learns from labels, and 160 of 160 records of 'pairs' compare"),
    "answers": (
        {"file": "ranking", "reward.loss": "ranking"},
        "has 3 answers to a prompt, and batches have places for 2. Set reward.answers",
    ),
    "three of two": ({"reward.answers": "3"}, "Choose reward.loss=ranking, or reward.answers=2"),
    "ties": ({"reward.ties": "draw"}, "Unknown reward.ties 'draw'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_a_sentence(name, files):
    given, sentence = MISTAKES[name]
    options = {key: value for key, value in given.items() if key != "file"}
    with pytest.raises(ValueError) as error:
        bench = Bench(RECIPE, settings(files[given.get("file", "pairs")], **options))
        bench.data.reader(bench.config)
    assert sentence in str(error.value)


def test_steps_of_solutions_are_judged_one_by_one(tmp_path):
    """Process rewards: a solution of three steps is three answers, all on one side of what is held out."""
    steps = [[f"{i} one", "two", f"{'z' if i % 2 else 'b'} three"][: 2 + i % 2] for i in range(40)]
    records = [{"prompt": f"p{i}", "steps": own, "labels": [True] * (len(own) - 1) + [i % 3 == 0]} for i, own in enumerate(steps)]
    (tmp_path / "steps.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    bench = Bench(RECIPE, settings(str(tmp_path / "steps.jsonl"), **{"reward.loss": "binary"}))
    parts = [next(iter(part.values())) for part in (bench.data.train, bench.data.evals)]
    assert sum(len(part.said.ends) for part in parts) == sum(map(len, steps)) == 100
    last = [sum((part.said.values == value).sum() for part in parts) for value in (0.0, 1.0)]
    assert last == [sum(i % 3 != 0 for i in range(40)), 60 + sum(i % 3 == 0 for i in range(40))]
    _, report = bench.update(bench.rows(), steps=3)
    assert np.isfinite(report["loss"])
