"""The report of a run: curves, tables, escaped samples, and a half-written line of a killed run."""

import json
from pathlib import Path

import pytest

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
