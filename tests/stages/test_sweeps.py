"""A sweep in a report: the table, what the keys did, which losses a law is fitted to, and runs that are missing."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxllm.evaluation import scaling
from jaxllm.stages import sweeps
from jaxllm.stages.config import as_dict, load
from jaxllm.stages.report import write_report

ROOT = Path(__file__).parents[2]


def make(folder, depths, rates, ends, evals=(), metric="loss", missing=()):
    """A sweep of runs whose held-out loss follows Chinchilla's published law, and whose second rate is 2 % worse."""
    points = []
    for depth in depths:
        for steps in ends:
            for i, rate in enumerate(rates):
                name = f"{len(points):03}"
                points.append({"name": name, "settings": {"depth": str(depth), "steps": str(steps), "optimizer.learning_rate": rate}})
                if name in missing:
                    continue
                run = folder / name
                run.mkdir(parents=True)
                overrides = [f"--config.depth={depth}", f"--config.steps={steps}", "--config.batch_size=8"]
                config = as_dict(load(f"{ROOT}/configs/pretrain/depth.py:tiny", overrides))
                record = {"stage": "pretrain", "config": config, "vocab_size": 259}
                (run / "config.json").write_text(json.dumps(record))
                N, tokens = sweeps.Point(name, {}, "", record, [], []).size()
                at = [*(step for step in evals if step < steps), steps]
                loss = {
                    step: scaling.LAWS["chinchilla"].loss(scaling.PUBLISHED["chinchilla"], N, step * tokens) * (1 + 0.02 * i) for step in at
                }
                lines = [{"step": step, "name": "text", "loss": value} for step, value in loss.items()]
                (run / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
                (run / "metrics.jsonl").write_text(json.dumps({"step": steps, "loss": 9.0, "tokens_per_second": 5.0}) + "\n")
    sweep = {"arguments": [], "metric": metric, "mode": "min", "halving": None, "runs": None, "points": points}
    (folder / "sweep.json").write_text(json.dumps(sweep))
    return write_report([folder], folder / "report.html")


def test_a_law_of_the_ends_of_the_runs(tmp_path):
    page = Path(make(tmp_path, (1, 2, 3), ("1e-3", "1e-2"), (100, 1000, 10000))).read_text()
    assert "18 runs by text/loss" in page and page.count("Fitted to 9 losses: the ends of the runs") == 2
    for name, value in scaling.PUBLISHED["chinchilla"].items():
        assert f"<td>{name}</td><td>{value:.4g}</td>" in page
    assert "outside the sizes that were run" in page and "<td>text/loss</td>" not in page


def test_a_law_of_every_value_where_too_few_runs_end_apart(tmp_path):
    page = Path(make(tmp_path, (1, 2), ("1e-3",), (1000,), evals=(1, 2, 10, 30, 100, 300))).read_text()
    assert page.count("Fitted to 10 losses: every value behind the warmup") == 2  # warmup is 2: five of seven values, twice


def test_too_few_runs_for_a_law_say_what_is_missing(tmp_path):
    page = Path(make(tmp_path, (1,), ("1e-3", "1e-2"), (100,))).read_text()
    assert page.count("Not fitted: ") == 2 and "Sweep over the size (depth) and the length (steps) too." in page


def test_runs_that_are_missing_or_broken_stand_last(tmp_path):
    page = Path(make(tmp_path, (1, 2), ("1e-3",), (100,), missing=("001",))).read_text()
    assert page.index("<td>000</td>") < page.index("<td>001</td>") and "not done" in page
    (tmp_path / "none").mkdir()
    assert "No run has a value of loss yet" in Path(make(tmp_path / "none", (), (), ())).read_text()


def test_states_metrics_and_marks(tmp_path):
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "000.json").write_text('{"state": "dropped", "at": 50}')
    page = Path(make(tmp_path, (1, 2), ("<b>",), (100,), metric="text/loss")).read_text()
    assert "<td>dropped at step 50</td>" in page and "<b>" not in page and "&lt;b&gt;" in page


def test_what_explains_the_variance():
    two = [str(i % 2) for i in range(12)]
    noise = np.random.default_rng(0).normal(size=12)
    assert sweeps.explained(two, [float(text) for text in two]) == pytest.approx(1.0)
    assert sweeps.explained(two, noise) < 0.3 and sweeps.explained(["a"] * 4, [1, 2, 3, 4]) == 0.0
    rates = [f"{10**-x:.6g}" for x in np.linspace(1, 4, 12)]
    bowl = [(np.log10(float(rate)) + 2.5) ** 2 for rate in rates]
    assert sweeps.explained(rates, bowl) == pytest.approx(1.0) and sweeps.explained(rates, noise) < 0.5
    assert sweeps.explained(["a", "b", "c"], [1.0, 2.0, 3.0]) == 0.0  # as many words as runs tell nothing


def test_a_sweep_and_a_run_share_a_page(tmp_path):
    (tmp_path / "s").mkdir()
    make(tmp_path / "s", (1,), ("1e-3",), (100,))
    page = Path(write_report([tmp_path / "s", tmp_path / "s" / "000"], tmp_path / "r.html")).read_text()
    assert "<h2>s: 1 runs by text/loss</h2>" in page and "<h2>000</h2>" in page
