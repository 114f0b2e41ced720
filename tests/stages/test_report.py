"""The report of a run: curves, tables, escaped samples, and a half-written line of a killed run."""

import json
from pathlib import Path

import pytest

from jaxllm.stages import figures
from jaxllm.stages.page import curves, dots
from jaxllm.stages.report import read_jsonl, write_report


def test_a_page_of_two_runs(tmp_path):
    for name in ("one", "two"):
        run = tmp_path / name
        run.mkdir()
        (run / "config.json").write_text(json.dumps({"config": {}, "baselines": {"unigram_loss": 5.0, "unigram_bits_per_byte": 2.0}}))
        (run / "metrics.jsonl").write_text(
            "".join(json.dumps({"step": i, "loss": 6 / i, "grad_norm": 1.0}) + "\n" for i in (1, 2, 3)) + '{"st'
        )
        (run / "evals.jsonl").write_text(
            json.dumps({"step": 3, "name": "held <out>", "loss": 2.5, "bits_per_byte": 1.25, "tokens": 10.0}) + "\n"
        )
        (run / "samples.jsonl").write_text(json.dumps({"prompt": "<b>", "text": "<script>alert(1)</script>"}) + "\n")
        (run / "goodput.jsonl").write_text(
            '{"kind": "start", "time": 1.0, "seconds": 1.0}\n{"kind": "step", "time": 4.0, "seconds": 2.0}\n'
        )
    page = Path(write_report([tmp_path / "one", tmp_path / "two"], tmp_path / "report.html")).read_text()
    assert page.count("<h2>") == 2 and page.count("<svg") >= 6 and "unigram baseline" in page
    assert "<script>" not in page and "&lt;script&gt;" in page and "held &lt;out&gt;" in page
    assert "1.25" in page and "goodput" in page


def test_a_torn_line_is_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"step": 1}\n{"step": 2')
    assert read_jsonl(tmp_path / "a.jsonl") == [{"step": 1}]
    assert read_jsonl(tmp_path / "none.jsonl") == []


def test_only_a_newline_ends_a_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\u2028b\x85c"}\n', encoding="utf-8")
    assert read_jsonl(tmp_path / "a.jsonl") == [{"text": "a\u2028b\x85c"}]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a work directory"):
        write_report([tmp_path], tmp_path / "report.html")


def test_tasks_with_their_intervals_over_the_steps(tmp_path):
    def record(step, value, **more):
        return {
            "step": step,
            "name": "arithmetic",
            "exact_match": value,
            "exact_match_low": value - 0.1,
            "exact_match_high": value + 0.1,
            **more,
        }

    seen = {
        "contaminated": 0.25,
        "rows_judged": 8,
        "rows_clean": 6,
        "clean_exact_match": 0.125,
        "stage": "evaluate",
        "rows": 9,
        "unscored": 1,
    }
    evals = [
        {"step": 0, "name": "math", "loss": 2.0, "exact_match": 1.0},  # a set of text of that name
        record(0, 0.25, rows=64.0),
        {"step": 0, "name": "arithmetic/rows", "row": 0},
        record(5, 0.5, **seen, clean_exact_match_low=0.0, clean_exact_match_high=0.25),
        {"step": 5, "name": "text", "bits_per_byte": 3.25},
        {
            "step": 5,
            "name": "gsm8k",
            "exact_match": None,
            "exact_match_low": None,
            "exact_match_high": None,
            "contaminated": None,
            "rows": 1,
        },
    ]
    (tmp_path / "config.json").write_text(json.dumps({"config": {}}))
    (tmp_path / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evals))
    page = Path(write_report([tmp_path], tmp_path / "report.html")).read_text()
    assert page.count("<svg") == 2 and "<h3>Tasks over the steps</h3>" in page
    cells = ["arithmetic", "exact_match", "0.5", "0.400 to 0.600", "0.125 (0.000 to 0.250; 6 rows)", "5", "9", "1", "25.0% of 8"]
    assert "".join(f"<td>{cell}</td>" for cell in cells) in page and "<td>text</td><td>bits_per_byte</td><td>3.25</td>" in page
    assert page.split("<h3>Tasks</h3>")[0].count("<td>math</td>") == 1


def test_a_picture_has_an_error_bar_for_every_score():
    picture = curves({"a": ([0, 5], [0.2, 0.4])}, "score", intervals={"a": ([0.1, 0.3], [0.3, 0.5])})
    assert "LineCollection" in picture and "LineCollection" not in curves({"a": ([0, 5], [0.2, 0.4])}, "score")
    assert "LineCollection" in dots({"a": (0.2, 0.1, 0.3), "b": (1.0, 1.0, 1.0)}, "score")


def test_proxy_and_gold_over_steps_and_distance():
    entries = [{"kind": "model", "name": "rm"}, {"kind": "task", "name": "gold", "weight": 0}, {"kind": "ended", "weight": 0}]
    metrics = [{"step": i, "reward_rm": float(i), "reward_gold": 1 / i, "kl_sequence": i / 2} for i in (1, 2, 3)] + [
        {"step": 4, "reward_rm": None}
    ]
    found = figures.over_optimisation(metrics, entries)
    assert len(found) == 3 and all("gold (held out)" in page and "ended" not in page for page in found[1:]) and "square root" in found[2]
    assert len(figures.over_optimisation([{k: v for k, v in r.items() if k != "kl_sequence"} for r in metrics], entries)) == 2
    assert not figures.over_optimisation(metrics, entries[:1]) and not figures.over_optimisation([{"step": 1}], entries)
