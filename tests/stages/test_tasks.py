"""`jaxllm tasks` and `jaxllm evaluate --tasks`: records, a second start, other people's folders, tasks during training, mistakes."""

import json
import os
import signal

import pytest

from jaxllm.data.tokenizer_kinds import ByteTokenizer
from jaxllm.evaluation.suite import Suite
from jaxllm.models.model import Model
from jaxllm.models.presets import preset
from jaxllm.stages import contamination, evaluate, tasks, wanted
from jaxllm.stages.config import resolve
from jaxllm.stages.prepare import prepare
from jaxllm.tasks.arithmetic import Arithmetic
from tests.models.drawn import random_params

CONFIG = """
def get_config():
    return {{"steps": 2, "batch_size": 8, "sequence_length": 64, "model": {{"preset": "tiny"}}, "schedule": {{"warmup": 0}},
            "data": {{"train": [{{"path": {path!r}, "field": "text"}}], "tokenizer": {{"kind": "bytes"}}}},
            "tasks": {{"names": ["arithmetic"], "limit": 8, "every": 2, "max_new_tokens": 4}}}}
"""
ROWS = [{"query": f"{i}?", "choices": ["a", "bb"], "gold": i % 2} for i in range(6)]


@pytest.fixture(scope="module")
def trained(train_small, tmp_path_factory):
    """A work directory of two updates that was asked sums on the way."""
    return train_small(tmp_path_factory.mktemp("asked"), CONFIG)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_training_asks(trained):
    asked = [record for record in lines_of(trained / "evals.jsonl") if record["name"] == "arithmetic"]
    assert [record["step"] for record in asked] == [0, 2] and all(record["exact_match"] == 0 for record in asked)


def test_training_says_once_what_could_not_be_scored(monkeypatch, capsys):
    def broken(task, row, answer):
        raise ZeroDivisionError

    monkeypatch.setattr(Arithmetic, "score", broken)
    model = Model(preset("tiny_llama3").replace(num_layers=1, vocab_size=260), scan_layers=False)
    config = resolve({"tasks": {"names": ["arithmetic"], "limit": 2, "max_new_tokens": 2}}, {})
    ((_, ask),) = tasks.evals(config, model, ByteTokenizer())
    for seed in (0, 1):
        assert ask(random_params(model, seed))["unscored"] == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "arithmetic: row 2 is not scored: its verifier raised ZeroDivisionError()." in said


def test_the_catalogue_is_a_table(stage, capsys):
    assert stage("tasks") == 0
    said = capsys.readouterr().out
    assert "humaneval" in said and "pass@1" in said


def test_records_and_a_second_start(stage, trained, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    words = [
        "evaluate",
        "--workdir",
        tmp_path / "scores",
        "--init-from",
        trained,
        "--tasks",
        f"choice={tmp_path / 'rows.jsonl'},arithmetic",
    ]
    assert stage(*words) == 0
    first = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["name"], line["rows"], line["step"]) for line in first] == [("choice", 6, 2), ("arithmetic", 8, 2)]
    file = tmp_path / "scores" / "evals.jsonl"
    records = lines_of(file)
    assert [r["row"] for r in records if r["name"] == "choice/rows"] == list(range(6))
    assert {tuple(r["scores"]) for r in records if r["name"] == "choice/rows"} == {("accuracy", "accuracy_norm")}
    kept = file.read_text().splitlines(keepends=True)[:4]
    file.write_text("".join(kept) + '{"step": 2, "na')  # killed while it wrote
    assert stage(*words) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == first
    assert [r["row"] for r in lines_of(file) if r["name"] == "choice/rows"] == list(range(6))


def test_another_model_in_the_same_place_is_asked_anew(stage, trained, tmp_path, corpus, capsys, monkeypatch):
    monkeypatch.setenv("JAXLLM_CACHE", str(tmp_path / "tokens"))
    (tmp_path / "config.py").write_text(CONFIG.format(path=str(corpus)))
    other = tmp_path / "other"
    assert stage("pretrain", "--config", tmp_path / "config.py", "--workdir", other, "--config.seed=5", "--config.tasks.names=[]") == 0
    (tmp_path / "text.jsonl").write_text('{"text": "one two three"}\n')
    words = ["evaluate", "--workdir", tmp_path / "scores", "--tasks", f"text={tmp_path / 'text.jsonl'}"]
    said = []
    for more in (
        ["--init-from", trained],
        ["--init-from", other],
        ["--init-from", trained, "--config.tasks.length=4"],
        ["--init-from", trained],
    ):
        capsys.readouterr()
        assert stage(*words, *more) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert len({record["bits_per_byte"] for record in said}) == 3 and said[3] == said[0]
    assert len([r for r in lines_of(tmp_path / "scores" / "evals.jsonl") if r["name"] == "text"]) == 3


def test_shots_are_no_matter_of_texts_and_limits_count_what_is_asked(stage, trained, tmp_path, capsys):
    (tmp_path / "text.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n{"text": "three"}\n')
    words = ["evaluate", "--workdir", trained, "--config.tasks.shots=2", "--config.tasks.limit=3"]
    assert stage(*words, "--tasks", f"text={tmp_path / 'text.jsonl'},arithmetic") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["rows"], line["shots"]) for line in found] == [(3, 0), (3, 2)]


def test_other_peoples_folders_are_asked(stage, trained, tmp_path, capsys):
    assert stage("convert", "--from", trained, "--to", tmp_path / "theirs") == 0
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    task = f"choice={tmp_path / 'rows.jsonl'}"
    for where, words in (("a", ["--init-from", tmp_path / "theirs"]), ("b", ["--init-from", trained])):
        assert stage("evaluate", *words, "--workdir", tmp_path / where, "--tasks", task) == 0
    ours, theirs = ([r["log_probs"] for r in lines_of(tmp_path / where / "evals.jsonl") if "row" in r] for where in "ba")
    assert theirs == [pytest.approx(own, rel=1e-4) for own in ours]
    capsys.readouterr()
    assert stage("evaluate", "--init-from", tmp_path / "theirs", "--tasks", task) == 2
    assert "Say where the records go: --workdir DIR" in capsys.readouterr().err


def test_all_are_the_tasks_whose_files_are_there(stage, trained, tmp_path, capsys):
    folder = tmp_path / "data"
    (folder / "mc").mkdir(parents=True)
    rows = {
        "mc/copa": {"query": "The sun rose because", "choices": ["it was day", "no"], "gold": 0},
        "mc/boolq": {"query": "long " * 300, "choices": ["a", "b"], "gold": 0},
        "mc/piqa": {"goal": "x"},
    }
    for name, row in rows.items():
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    words = ["evaluate", "--init-from", trained, "--workdir", tmp_path / "scores", f"--config.tasks.path={folder}"]
    assert stage(*words, "--tasks", "all", "--config.tasks.length=128") == 0
    said, told = capsys.readouterr()
    assert [json.loads(line)["name"] for line in said.splitlines()] == ["arithmetic", "addition", "copa"]
    assert "Left out: piqa. Row 1 of" in told and "Left out: boolq: row 1 has" in told
    missing = next(line for line in told.splitlines() if line.startswith("No files under"))
    assert "gsm8k" in missing and "copa" not in missing and "boolq" not in missing
    assert stage(*words, "--tasks", f"all,piqa={folder}/mc/piqa.jsonl") == 2
    assert stage(*words[:-1], "--tasks", "all") == 2
    assert "Say where to look: --config.tasks.path=FOLDER" in capsys.readouterr().err.splitlines()[-1]


def test_rows_that_were_trained_on_are_told_beside_the_score(stage, trained, corpus, tmp_path, capsys):
    seen = json.loads(corpus.read_text().splitlines()[3])["text"]
    chat = "the whole of this sentence stands in a chat that somebody tuned a model on, word for word"
    queries = [f"Which? {seen}", "a question of more than five words that no training text has", "short", chat]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"query": q, "choices": ["a", "bb"], "gold": 0}) + "\n" for q in queries))
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": chat}]}) + "\n")
    words, found = ["evaluate", "--init-from", trained, "--config.tasks.limit=4"], {}
    for text, where, more in (("run", "a", ""), (f"run,{tmp_path / 'chats.jsonl'}", "b", ",arithmetic"), (f"{corpus.parent}", "c", "")):
        tasks = ["--tasks", f"choice={tmp_path / 'rows.jsonl'}{more}", f"--config.tasks.contamination={text}"]
        assert stage(*words, *tasks, "--workdir", tmp_path / where) == 0
        said, told = capsys.readouterr()
        found[where], *sums = (json.loads(line) for line in said.splitlines())
        assert "clean_accuracy" in told and ("too short" in told) == bool(more) and all(one["contaminated"] is None for one in sums)
        (overlap,) = (r for r in lines_of(tmp_path / where / "evals.jsonl") if r["name"] == "choice/overlap")
        assert {row: share > 0 for row, share in overlap["shares"].items()} == ({"0": True, "3": True} if where == "b" else {"0": True})
    for where, share, clean in (("a", 1 / 3, 2), ("b", 2 / 3, 1), ("c", 1 / 3, 2)):
        assert (found[where]["contaminated"], found[where]["rows_judged"], found[where]["rows_clean"]) == (pytest.approx(share), 3, clean)
    rows = [r["scores"]["accuracy"] for r in lines_of(tmp_path / "b" / "evals.jsonl") if r["name"] == "choice/rows"]
    assert found["b"]["clean_accuracy"] == rows[1] and found["b"]["accuracy"] == pytest.approx(sum(rows) / 4)


def test_training_text_that_is_not_there_is_told(stage, trained, tmp_path, capsys):
    assert stage("convert", "--from", trained, "--to", tmp_path / "theirs") == 0
    for source, text, sentence in (
        (tmp_path / "theirs", "run", "does not say what it was trained on"),
        (trained, "nowhere", "There is nothing at"),
    ):
        words = ["--workdir", tmp_path / "scores", "--tasks", "arithmetic", f"--config.tasks.contamination={text}"]
        assert stage("evaluate", "--init-from", source, *words) == 2
        assert sentence in capsys.readouterr().err.splitlines()[-1]


def test_a_tuned_run_is_looked_for_in_its_files(tmp_path):
    (tmp_path / "chats.jsonl").write_text('{"instruction": "one two", "output": "three"}\n')
    said = {"stage": "sft", "config": {"parallel": {}, "data": {"train": [{"path": str(tmp_path / "chats.jsonl"), "format": "alpaca"}]}}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    (text,) = contamination.open_texts("run", str(tmp_path))
    read = []
    assert list(text.read(read.append)) == ["one two\nthree"] and read == [text.size]


@pytest.mark.parametrize("tasks_too", [True, False])
def test_ctrl_c_and_sigterm_say_how_to_go_on(tasks_too, stage, trained, capsys, monkeypatch):
    terminate = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    monkeypatch.setattr(Suite, "run", terminate)
    monkeypatch.setattr(evaluate, "open_model", terminate)
    before = signal.getsignal(signal.SIGTERM)
    assert stage("evaluate", "--workdir", trained, *(["--tasks", "arithmetic"] if tasks_too else [])) == 75
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("Run the same command again to go on.") and ("kept in evals.jsonl" in last) == tasks_too
    assert signal.getsignal(signal.SIGTERM) == before


def test_held_out_scores_are_recorded_once_and_not_taken_for_trainings_own(stage, trained, capsys):
    capsys.readouterr()
    for _ in range(2):
        assert stage("evaluate", "--workdir", trained) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[0])
    (own,) = (r for r in lines_of(trained / "evals.jsonl") if r["name"] == "lines" and r.get("stage") == "evaluate")
    assert said.items() <= own.items() and "all batches" in own["text"]


@pytest.mark.parametrize("size", [1, 3, 50])
@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_a_long_document_is_decoded_in_parts(kind, size, tmp_path):
    texts = ["naïve 他说「天气很好」 👩‍🚀 end", "a b  c", "x" * 40] * 6
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"{i} {text}"}) + "\n" for i, text in enumerate(texts)))
    tokenizer = {"kind": kind} | ({} if kind == "bytes" else {"vocab_size": 310, "model_type": "bpe"})
    data = {"train": [str(tmp_path / "a.jsonl")], "tokenizer": tokenizer, "workers": 1, "eval_fraction": 0.0}
    prepared = prepare(data, root=tmp_path / "out", say=lambda line: None)
    (stream,) = prepared.streams("train").values()
    whole = [prepared.tokenizer.decode(ids) for ids in stream.documents()]
    assert ["".join(contamination.pieces(stream, prepared.tokenizer, *span, size)) for span in stream.spans()] == whole
    assert sorted(whole) == sorted(f"{i} {text}" for i, text in enumerate(texts))


@pytest.mark.parametrize(("given", "expected"), [({}, 0.95), ({"top_p": 1.0}, 1.0), ({"num_samples": 1, "temperature": [0.0]}, 1.0)])
def test_several_answers_are_drawn_from_a_nucleus(given, expected):
    asked = {"k": [1], "num_samples": 4, "temperature": [0.2], **given}
    assert [how.top_p for how in wanted.hows(resolve({"tasks": asked}))] == [expected]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--tasks", "arithmetik"], "Did you mean 'arithmetic'?"),
        (["--tasks", "piqa"], "Task 'piqa' needs a file of rows"),
        (["--tasks", "piqa=nowhere.jsonl"], "There is no task file 'nowhere.jsonl'"),
        (["--tasks", ","], "No task to ask"),
        (["--tasks", "arithmetic", "--config.tasks.k=[2]"], "tasks.k=[2] of tasks.num_samples=1"),
        (["--tasks", "arithmetic", "--config.tasks.num_samples=2"], "tasks.temperature=0 always takes the likeliest"),
        (["--tasks", "arithmetic", "--config.tasks.temperature=[0.1,0.2]"], "one temperature, or one for each k"),
        (["--tasks", "arithmetic", "--config.tasks.shots=-1"], "tasks.shots=-1 is below 0"),
        (["--tasks", "arithmetic", "--config.tasks.limit=0"], "tasks.limit=0"),
        (["--tasks", "arithmetic", "--config.tasks.top_p=0"], "top_p"),
        (["--tasks", "arithmetic", "--config.tasks.max_new_tokens=0"], "tasks.max_new_tokens=0"),
        (["--tasks", "arithmetic,arithmetic"], "named twice"),
    ],
)
def test_a_mistake_is_one_line(words, sentence, stage, trained, capsys):
    assert stage("evaluate", "--workdir", trained, *words) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("jaxllm: ") and sentence in last
