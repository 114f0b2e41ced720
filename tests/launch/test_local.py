"""Real processes: killed, asked to stop, one lost, one instead of two; and every one of them goes on where the last checkpoint was."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launch import job, local

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(autouse=True)
def found(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{HERE}")
    monkeypatch.setenv("XLA_FLAGS", "")


def tiny_job(processes, devices, *arguments):
    return job.Job(tuple(map(str, arguments)), local.environments(processes, devices, local.free_port()), module="tiny_run")


def run(processes, devices, *arguments):
    """Runs tiny_run to its end; returns (exit code, output)."""
    output = io.StringIO()
    return job.run(tiny_job(processes, devices, *arguments), output), output.getvalue()


def losses(workdir):
    return [(entry["step"], entry["loss"]) for entry in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The losses of six steps on two devices that nobody disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{HERE}")
        patch.setenv("XLA_FLAGS", "")
        workdir = tmp_path_factory.mktemp("uninterrupted")
        assert run(1, 2, workdir, "--until", 6, "--every", 2) == (0, "step 3 is done\ndone at 6\n")
    return losses(workdir)


def test_killed_in_the_middle_of_a_save_it_goes_on_bit_for_bit(tmp_path, uninterrupted):
    code, _ = run(1, 2, tmp_path, "--until", 6, "--every", 2, "--die-in-save", 4)
    assert code == 1
    assert not (tmp_path / "checkpoints" / "4" / "manifest.json").exists() and (tmp_path / "checkpoints" / "2" / "manifest.json").exists()
    code, output = run(1, 2, tmp_path, "--until", 6, "--every", 2)
    assert (code, losses(tmp_path)) == (0, uninterrupted)
    assert "Checkpoint 4 is half-written" in output and "resumed at 2" in output


def terminate_after_step_3(processes, devices, *arguments):
    """Runs tiny_run under `job.run` in this process, which gets the SIGTERM, and passes it on."""
    output = io.StringIO()

    def when_ready():
        while "step 3 is done" not in output.getvalue():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=when_ready)
    thread.start()
    code = job.run(tiny_job(processes, devices, *arguments), output)
    thread.join()
    return code, output.getvalue()


def test_sigterm_saves_and_exits_75_and_the_next_run_goes_on_bit_for_bit(tmp_path, uninterrupted):
    code, output = terminate_after_step_3(1, 2, tmp_path, "--until", 6, "--sleep", 0.3)
    assert code == 75 and "stopped at" in output
    assert 3 <= len(losses(tmp_path)) < 6
    assert run(1, 2, tmp_path, "--until", 6)[0] == 0
    assert losses(tmp_path) == uninterrupted


def test_two_processes_stop_together_and_one_goes_on(tmp_path, uninterrupted):
    code, output = terminate_after_step_3(2, 1, tmp_path, "--until", 200, "--every", 2, "--sleep", 0.1)
    assert code == 75 and "[0] stopped at" in output
    reached = len(losses(tmp_path))
    assert (tmp_path / "checkpoints" / str(reached) / "manifest.json").exists()
    code, output = run(1, 2, tmp_path, "--until", reached + 2)  # one process, the same two devices
    assert code == 0 and f"resumed at {reached}" in output
    until = reached // 16 * 16 + 20
    code, output = run(2, 2, tmp_path, "--until", until, "--every-minutes", 0.001)  # and four devices over two processes, by the clock
    assert code == 0 and f"[0] resumed at {reached + 2}" in output
    for (_, ours), (_, theirs) in zip(losses(tmp_path), uninterrupted, strict=False):
        assert float.fromhex(ours) == pytest.approx(float.fromhex(theirs), rel=1e-6)
    assert [step for step, _ in losses(tmp_path)] == list(range(1, until + 1))
    assert sorted(map(int, os.listdir(tmp_path / "checkpoints")))[-2:] == [until - 4, until]


def test_two_processes_save_at_every_step_without_a_pause(tmp_path, uninterrupted):
    """A save is under way while the next steps run: what its processes say to one another must not meet the steps' own collectives."""
    code, output = run(2, 1, tmp_path, "--until", 40, "--every", 1)
    assert code == 0, output
    for (_, ours), (_, theirs) in zip(losses(tmp_path), uninterrupted, strict=False):
        assert float.fromhex(ours) == pytest.approx(float.fromhex(theirs), rel=1e-6)
    assert len(losses(tmp_path)) == 40


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_peer_ends_the_other_within_30_seconds_with_code_1(tmp_path, lost):
    arguments = [tmp_path, "--until", 1000, "--every", 1, "--sleep", 0.05, "--die-at", 5, "--die-process", lost]
    started = tiny_job(2, 1, *arguments)
    processes = [
        subprocess.Popen(started.command, env={**os.environ, **extra}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for extra in started.environments
    ]
    code = processes[lost].wait(60)
    assert code == -signal.SIGKILL, processes[lost].stdout.read()
    begin = time.monotonic()
    try:
        code = processes[1 - lost].wait(30)
    finally:
        processes[1 - lost].kill()
    said = processes[1 - lost].stdout.read()
    assert code == 1, said
    print(f"the other ended after {time.monotonic() - begin:.1f} s")


def test_a_second_writer_is_refused_and_names_the_first(tmp_path):
    first = subprocess.Popen(
        [*tiny_job(1, 1, tmp_path, "--until", 1000, "--sleep", 0.05).command],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert "step 3 is done" in first.stderr.readline()
        code, output = run(1, 1, tmp_path, "--until", 2)
        assert code == 1 and f"is being written by process {first.pid}" in output
        first.send_signal(signal.SIGINT)
        assert "Ctrl-C again" in first.stderr.read()
        assert first.wait(30) == 75
    finally:
        first.kill()


def test_the_command_line_starts_processes_and_returns_their_code(tmp_path):
    script = tmp_path / "jaxllm_stub.py"
    script.write_text("import os, sys; print(os.environ['JAX_PROCESS_ID'], sys.argv[1:], os.environ['XLA_FLAGS']); sys.exit(2)")
    started = job.Job(("pretrain", "--config", "x"), local.environments(2, 3, 1234), module="jaxllm_stub")
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        assert job.run(started, output) == 2
    lines = sorted(output.getvalue().splitlines())
    assert [line[:10] for line in lines] == ["[0] 0 ['pr", "[1] 1 ['pr"]
    assert all("device_count=3" in line for line in lines)


def test_help_says_how(capsys):
    with pytest.raises(SystemExit) as ended:
        local.main(["--help"])
    assert ended.value.code == 0 and "--processes" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        local.main(["--processes", "0", "--", "pretrain"])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    "codes, code",
    [([0, 0], 0), ([0, 75], 75), ([75, 75], 75), ([2, 2], 2), ([2, 1], 1), ([75, -9], 1), ([0, 134], 1), ([2, -6], 1), ([2, 0], 2)],
)
def test_many_codes_become_one(codes, code):
    assert job.exit_code(codes) == code


def test_processes_do_not_outlive_a_killed_launcher(tmp_path):
    script = tmp_path / "waits.py"
    script.write_text("import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    program = "import sys; from launch import job, local; job.run(job.Job((), local.environments(1, 1, 1), module='waits'))"
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    launcher = subprocess.Popen([sys.executable, "-c", program], env=env, stdout=subprocess.PIPE, text=True)
    pid = int(launcher.stdout.readline())
    launcher.kill()
    launcher.wait()
    end = time.monotonic() + 10
    while _lives(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _lives(pid)


def _lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_process_that_hangs_after_another_failed_is_killed(tmp_path, monkeypatch):
    script = tmp_path / "hangs.py"
    script.write_text("import os, sys, time; sys.exit(1) if os.environ['JAX_PROCESS_ID'] == '1' else time.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(job, "LOST_SECONDS", 1.0)
    begin = time.monotonic()
    assert job.run(job.Job((), local.environments(2, 1, 1), python=sys.executable, module="hangs")) == 1
    assert time.monotonic() - begin < 20
