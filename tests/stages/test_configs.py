"""Every config in configs/ passes --check as it stands, and its :tiny argument runs a few steps."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EVERY = sorted(p for p in (ROOT / "configs").glob("*/*.py"))
CONFIGS = [path for path in EVERY if path.parent.name != "run"]  # those are made of the others; test_label.py runs one
ARGUMENT = {"depth.py": ":12"}


def test_there_are_configs():
    assert len(CONFIGS) >= 8


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_it_checks(path, stage, capsys):
    assert stage(path.parent.name, "--config", f"{path}{ARGUMENT.get(path.name, '')}", "--check") == 0
    assert "parameters" in capsys.readouterr().out


@pytest.mark.parametrize("path", [path for path in EVERY if path not in CONFIGS], ids=lambda p: p.stem)
@pytest.mark.parametrize("argument", ["", ":tiny"])
def test_every_stage_of_a_run_checks(path, argument, stage, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert stage("run", "--config", f"{path}{argument}", "--workdir", tmp_path / "run", "--check") == 0
    assert len(capsys.readouterr().out.splitlines()) >= 4


@pytest.mark.parametrize("path", EVERY, ids=lambda p: p.stem)
def test_its_docstring_gives_the_command_and_it_is_short(path):
    text = path.read_text()
    assert f"--config configs/{path.parent.name}/{path.name}" in text.split('"""')[1]
    assert len(text.splitlines()) < 100 and "import jaxllm" not in text and "from jaxllm" not in text


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_tiny_runs(path, stage, corpus, tmp_path):
    words = ["--config.data.workers=1", "--config.eval.batches=1", "--config.log.tensorboard=false"]
    if path.parent.name == "pretrain":  # other stages' :tiny makes its own data
        words.append(f"--config.data.train={corpus}")
    if path.stem == "stdlib_code":
        words += ["--config.data.tokenizer.kind=bytes", "--config.model.vocab_size=320"]
    assert stage(path.parent.name, "--config", f"{path}:tiny", "--workdir", tmp_path, *words) == 0
    assert (tmp_path / "checkpoints").is_dir() and len((tmp_path / "evals.jsonl").read_text().splitlines()) >= 2


@pytest.mark.parametrize("path", EVERY, ids=lambda p: p.stem)
def test_an_argument_that_it_does_not_know_is_refused(path, stage, capsys, tmp_path):
    where = ("--workdir", tmp_path / "none") if path not in CONFIGS else ()
    assert stage(path.parent.name, "--config", f"{path}:tinny", *where, "--check") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "Unknown argument 'tinny'. Choose" in last and "tiny" in last.split("Choose")[1]
