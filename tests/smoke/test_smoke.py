"""The command line as a user runs it, in real processes: prepare, train, be killed, resume, be stopped, evaluate, sample, report."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
CONFIG = """from ml_collections import ConfigDict


def get_config():
    return ConfigDict({{"steps": 40, "batch_size": 8, "sequence_length": 32, "onednn": "off", "model": {{"preset": "tiny"}},
                       "optimizer": {{"learning_rate": 3e-3}}, "schedule": {{"warmup": 4}},
                       "checkpoint": {{"every": 10}}, "log": {{"every": 1}},
                       "eval": {{"every": 20, "batches": 2}},
                       "data": {{"train": [{{"path": {path!r}}}], "workers": 1, "eval_fraction": 0.2}}}})
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a text, a config, and the environment of a fresh user."""
    folder = tmp_path_factory.mktemp("smoke")
    draw = random.Random(0)
    text = ["".join(f"{draw.choice('abcdef')} = {draw.randrange(100)}\n" for _ in range(30)) for _ in range(200)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in text))
    (folder / "config.py").write_text(CONFIG.format(path=str(folder / "text.jsonl")))
    return folder


def environment(place, devices=1):
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    flags = f"--xla_force_host_platform_device_count={devices}" if devices > 1 else ""
    own = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "JAXLLM_CACHE": str(place / "cache"), "PYTHONPATH": str(ROOT)}
    kept = {"JAX_COMPILATION_CACHE_DIR": str(CACHE / f"smoke-{version}"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    return {**os.environ, **own, **kept}


def start(place, *words, devices=1, module="jaxllm"):
    command = [sys.executable, "-m", module, *map(str, words)]
    return subprocess.Popen(command, env=environment(place, devices), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def call(place, *words, **options):
    """Runs to the end; returns (exit code, standard output, standard error)."""
    process = start(place, *words, **options)
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


def pretrain(place, workdir, *words):
    return ("pretrain", "--config", place / "config.py", "--workdir", workdir, *words)


def records(workdir, name="metrics"):
    path = workdir / f"{name}.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [record for record in found if record.get("name") != "epochs"]


def losses(workdir):
    return [(r["step"], r["loss"], r["grad_norm"]) for r in records(workdir)]


def interrupt(place, workdir, number, at, *words, **options):
    """Starts training, sends a signal once metrics have reached a step; returns the exit code."""
    process = start(place, *pretrain(place, workdir, *words), **options)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if records_reached(workdir, at):
            process.send_signal(number)
            break
        time.sleep(0.02)
    process.communicate(timeout=300)
    return process.returncode


def records_reached(workdir, step):
    path = workdir / "metrics.jsonl"
    return path.exists() and path.read_text().count("\n") >= step


@pytest.fixture(scope="module")
def whole(place):
    """An uninterrupted run."""
    code, _, err = call(place, *pretrain(place, place / "whole"))
    assert code == 0, err
    return place / "whole"


def test_prepare_says_where_and_what(place):
    code, out, err = call(place, "prepare", "--config", place / "config.py")
    assert code == 0 and Path(out.strip()).is_dir() and "text" in err and "documents" in err


def test_killed_twice_and_resumed_is_bit_for_bit_the_run_that_never_was(place, whole):
    parts = place / "parts"
    for at in (13, 27):
        assert interrupt(place, parts, signal.SIGKILL, at, "--config.checkpoint.every=5") == -signal.SIGKILL
    assert call(place, *pretrain(place, parts, "--config.checkpoint.every=5"))[0] == 0
    assert losses(parts) == losses(whole) and len(losses(whole)) == 40
    assert records(parts, "evals") == records(whole, "evals")


def test_sigterm_saves_and_exits_75_and_the_next_start_goes_on(place, whole):
    workdir = place / "stopped"
    assert interrupt(place, workdir, signal.SIGTERM, 15) == 75
    steps = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())
    assert steps and steps[-1] == losses(workdir)[-1][0]
    assert call(place, *pretrain(place, workdir))[0] == 0
    assert losses(workdir) == losses(whole)


def test_eight_faked_devices_learn_the_same(place, whole):
    code, _, err = call(place, *pretrain(place, place / "eight", "--config.parallel.tensor=2", "--config.parallel.fsdp=4"), devices=8)
    assert code == 0 and "fsdp=4 x tensor=2" in err, err
    for (step, loss, _), (_, expected, _) in zip(losses(place / "eight"), losses(whole), strict=True):
        assert abs(loss - expected) < (1e-6 * expected if step == 1 else 1e-3), step


def test_the_rest_of_the_command_line(place, whole):
    code, out, err = call(place, "evaluate", "--workdir", whole, "--config.eval.batches=2")
    assert code == 0, err
    trained = [record for record in records(whole, "evals") if "stage" not in record]
    scores, recorded = json.loads(out.splitlines()[0]), trained[-1]
    assert records(whole, "evals")[-1]["stage"] == "evaluate"
    assert scores["step"] == 40 and abs(scores["loss"] - recorded["loss"]) < 1e-5
    words = ("--prompt", "a = ", "--config.sample.max_new_tokens=8", "--config.sample.num_samples=2")
    code, out, err = call(place, "sample", "--workdir", whole, *words)
    assert code == 0 and out.count("a = ") >= 2, err
    written = records(whole, "samples")
    assert len(written) == 2 and all(r["step"] == 40 and len(r["tokens"]) <= 8 for r in written)
    assert call(place, "sample", "--workdir", whole, *words)[1] == out  # the same seed, the same text
    code, out, err = call(place, "report", whole)
    page = Path(out.strip()).read_text()
    assert code == 0 and page.count("<svg") >= 2 and "unigram baseline" in page, err
    code, out, err = call(place, "checkpoints", whole, "--verify")
    assert code == 0 and "40" in out, err


def test_two_processes_train_stop_resume_evaluate_and_sample(place, whole):
    workdir = place / "two"
    local = ("--processes", "2", "--devices", "2", "--")
    job = start(place, *local, *pretrain(place, workdir), module="launch.local")
    while job.poll() is None and not records_reached(workdir, 12):
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    said, err = job.communicate(timeout=300)
    assert job.returncode == 75, said + err
    code, said, err = call(place, *local, *pretrain(place, workdir), module="launch.local")
    assert code == 0, said + err
    for (step, loss, _), (_, expected, _) in zip(losses(workdir), losses(whole), strict=True):
        assert abs(loss - expected) < (1e-6 * expected if step == 1 else 1e-3), step
    words = ("sample", "--workdir", workdir, "--prompt", "a = ", "--config.sample.max_new_tokens=4")
    code, said, err = call(place, *local, *words, module="launch.local")
    assert code == 0 and len(records(workdir, "samples")) == 1, said + err
    code, said, err = call(place, *pretrain(place, workdir, "--config.steps=44"))  # one process goes on with what two have saved
    assert code == 0 and losses(workdir)[-1][0] == 44, said + err
