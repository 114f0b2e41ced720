"""`jaxllm evaluate --compare` and `--labels`: programs and models as judges, records, a second start, the report, mistakes."""

import json
import sys
from pathlib import Path

import pytest

from jaxllm.stages import compare, scores
from jaxllm.stages.report import write_report

CONFIG = """
def get_config():
    return {{"steps": 1, "batch_size": 8, "sequence_length": 64, "schedule": {{"warmup": 0}}, "log": {{"tensorboard": False}},
            "model": {{"preset": "tiny", "max_positions": 512}},
            "data": {{"train": [{{"path": {path!r}, "field": "text"}}], "tokenizer": {{"kind": "bytes"}}}}}}
"""
LONGER = """
import json, sys
for line in sys.stdin:
    row = json.loads(line)
    a, b = len(row["first"]), len(row["second"])
    said = "nonsense" if row["prompt"] == "r" else "tie" if a == b else "first" if a > b else "second"
    print(json.dumps({"id": row["id"], "preference": said}))
"""
FIRST = [("p", "long answer"), ("q", "longer"), ("q", "x"), ("r", "any")]
SECOND = [("q", "short"), ("q", "y"), ("p", "no"), ("r", "one")]


@pytest.fixture(scope="module")
def trained(train_small, tmp_path_factory):
    """A work directory of one update, to judge."""
    return train_small(tmp_path_factory.mktemp("judge"), CONFIG)


@pytest.fixture
def place(tmp_path):
    """A work directory with answers in it, another model's answers, labels, and a program that likes the longer."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text('{"stage": "pretrain", "config": {}}')
    write(run / "samples.jsonl", *({"prompt": p, "text": a, "step": 3} for p, a in FIRST))
    write(tmp_path / "other.jsonl", *({"instruction": p, "output": a} for p, a in SECOND))
    labels = [{"input": "p", "output_1": "aa", "output_2": "a", "label": label} for label in (1, 1, 2)]
    write(tmp_path / "labels.jsonl", *labels)
    (tmp_path / "judge.py").write_text(LONGER)
    return tmp_path


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def words(place, who=None):
    return [
        "evaluate",
        "--compare",
        place / "run" / "samples.jsonl",
        place / "other.jsonl",
        "--judge",
        who or f"cmd:{sys.executable} {place / 'judge.py'}",
    ]


def records(folder):
    return [json.loads(line) for line in (folder / "evals.jsonl").read_text().splitlines()]


def test_a_program_judges_and_the_report_shows_it(stage, place, capsys):
    assert stage(*words(place), "--labels", place / "labels.jsonl") == 0
    said, told = capsys.readouterr()
    won, agreed = (json.loads(line) for line in said.splitlines())
    assert (won["win_rate"], won["ties"], won["pairs"], won["unjudged"], won["step"]) == (
        pytest.approx(2.5 / 3),
        pytest.approx(1 / 3),
        4,
        1,
        3,
    )
    assert won["win_rate_low"] <= won["win_rate"] <= won["win_rate_high"] and won["length_controlled"] < won["win_rate"]
    assert (agreed["agreement"], agreed["pairs"], agreed["shown_first"]) == (pytest.approx(2 / 3), 3, 0.5)
    assert "2 verdicts were missing: no preference from 0 to 1" in told and "the first wins" in told and "{prompt, text}" in told
    kept = records(place / "run")
    assert [(r["row"], r["forward"], r["backward"]) for r in kept if r["name"] == "win_rate/rows"][3] == (3, None, None)
    assert stage(*words(place), "--labels", place / "labels.jsonl") == 0 and records(place / "run") == kept
    page = Path(write_report([place / "run"], place / "report.html")).read_text()
    assert "Answers before a judge" in page and "judge and most people say the same" in page and "<h3>Evaluation</h3>" not in page


def test_a_model_judges_what_fits_and_is_not_asked_twice(stage, trained, place, capsys, monkeypatch):
    (place / "rubric.txt").write_text("{prompt} {first} {second}?")
    write(place / "other.jsonl", *({"prompt": p, "answer": a * 200 if p == "r" else a} for p, a in SECOND))
    calls, asker = [], compare.asker

    def counting(*how):
        ask = asker(*how)
        return lambda prompts: calls.append(prompts) or [text and f"{text} [[A]]" for text in ask(prompts)]

    monkeypatch.setattr(compare, "asker", counting)
    monkeypatch.setattr(compare, "CHUNK", 2)
    command = [*words(place, trained), "--rubric", place / "rubric.txt", "--config.tasks.max_new_tokens=2", "--workdir", place / "scores"]
    assert stage(*command) == 0
    said, told = capsys.readouterr()
    won = json.loads(said)
    assert (won["win_rate"], won["ties"], won["shown_first"], won["disagreement"], won["unjudged"]) == (
        0.5,
        1,
        1,
        1,
        1,
    )  # by the place alone
    assert [len(own) for own in calls] == [4, 4] and "p long answer no?" in calls[0] and "p no long answer?" in calls[0]
    assert "2 verdicts were missing: too long for the judge" in told
    whole = (place / "scores" / "evals.jsonl").read_text().splitlines(keepends=True)
    (place / "scores" / "evals.jsonl").write_text("".join(whole[:2]))  # killed after the first chunk
    assert stage(*command) == 0
    assert len(calls) == 3 and json.loads(capsys.readouterr().out) == won
    assert (place / "scores" / "evals.jsonl").read_text().splitlines(keepends=True) == whole


def test_the_length_controlled_rate_is_left_out_where_there_is_none(stage, place, capsys):
    write(place / "run" / "samples.jsonl", {"prompt": "p", "text": "aa"}, {"prompt": "q", "text": "aa"})
    write(place / "other.jsonl", {"prompt": "p", "text": "a"}, {"prompt": "q", "text": "a"})
    assert stage(*words(place)) == 0
    said, told = capsys.readouterr()
    assert json.loads(said)["win_rate"] == 1 and "length_controlled" not in json.loads(said)
    assert "No length-controlled rate. Every first answer is +1 long" in told


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--judge", "cmd:no-such-program"], "cannot be started"),
        (["--judge", "cmd:'"], "cannot be cut into words"),
        (["--judge", "reward:x"], "not a work directory"),
        (["--judge", ""], "Who judges?"),
        (["--tasks", "arithmetic"], "ask a judge, not a model about tasks"),
        (["--rubric", "x"], "a program judges here"),
        (["--config.tasks.limit=0"], "tasks.limit=0 compares nothing"),
        (["--config.tasks.top_p=0.5"], "do not read tasks.top_p: tasks.limit, seed"),
        (["--labels", "nowhere.jsonl"], "There is no task file 'nowhere.jsonl'"),
    ],
)
def test_a_mistake_is_one_line(more, sentence, stage, place, capsys):
    assert stage(*words(place), *more) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("jaxllm: ") and sentence in last


def test_records_need_a_place_and_a_judge_needs_something_to_judge(stage, place, capsys):
    assert stage("evaluate", "--labels", place / "labels.jsonl", "--judge", "cmd:cat") == 2
    assert "Say where the records go: --workdir DIR" in capsys.readouterr().err
    assert stage("evaluate", "--workdir", place / "run", "--judge", "cmd:cat") == 2
    assert "--judge judges answers. Give them" in capsys.readouterr().err


def test_every_number_of_a_record_has_words():
    assert {"win_rate", "kappa", "unjudged"} <= scores.JUDGED.keys()
    assert scores.judged_rows({"kappa": None, "pairs": 3}) == [(scores.JUDGED["kappa"], "-", ""), ("pairs", "3", "")]
