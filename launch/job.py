"""A job: one jaxllm command in many processes, their output, and the one exit code it comes to."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO

STOPPED = 75  # stopped early and saved: run again
NOISE = "[Gloo] Rank "  # a line of every connection between faked devices
LOST_SECONDS = 30.0  # when one process is lost, the others must have ended by then

# `python -m MODULE` that ends when its launcher does, even when that was killed: prctl(PR_SET_PDEATHSIG, SIGKILL).
BOOT = "import ctypes, runpy, sys; ctypes.CDLL(None).prctl(1, 9); runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"


@dataclasses.dataclass(frozen=True)
class Job:
    """What to run.

    Attributes:
      arguments: of `python -m jaxllm`: the stage and its flags.
      environments: of each process, what it has besides this one's.
      python: the interpreter.
    """

    arguments: tuple[str, ...]
    environments: tuple[Mapping[str, str], ...]
    python: str = sys.executable
    module: str = "jaxllm"

    @property
    def command(self) -> list[str]:
        boot = ["-c", BOOT, self.module] if sys.platform == "linux" else ["-m", self.module]
        return [self.python, *boot, *self.arguments]


def exit_code(codes: Sequence[int]) -> int:
    """One code for many processes: a failure before a stop before success; 2 only where nothing else failed.

    Args:
      codes: as `subprocess` gives them, negative for a signal.
    """
    failed = [code for code in codes if code not in (0, STOPPED)]
    if failed:
        return 2 if set(failed) == {2} else 1
    return STOPPED if STOPPED in codes else 0


def run(job: Job, output: IO[str] | None = None) -> int:
    """Runs all processes of a job on this machine to their end and returns the job's exit code.

    SIGTERM and the first Ctrl-C go on to all of them as SIGTERM; the second Ctrl-C ends them at once. When one fails and the others
    have not ended 30 s later, they are killed.
    """
    processes = [_start(job, extra) for extra in job.environments]
    before = {number: signal.signal(number, _forward(processes)) for number in (signal.SIGTERM, signal.SIGINT)}
    readers = [
        threading.Thread(target=_copy, args=(process, f"[{i}] " if len(processes) > 1 else "", output or sys.stdout))
        for i, process in enumerate(processes)
    ]
    for reader in readers:
        reader.start()
    try:
        _watch(processes)
    finally:
        for process in processes:
            process.kill()
        for reader in readers:
            reader.join()
        for number, handler in before.items():
            signal.signal(number, handler)
    return exit_code([process.wait() for process in processes])


def _start(job: Job, extra: Mapping[str, str]) -> subprocess.Popen[str]:
    # A session of its own, so that Ctrl-C reaches a process once, and through us.
    return subprocess.Popen(
        job.command,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **extra},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def _forward(processes: Sequence[subprocess.Popen[str]]):
    interrupts = 0

    def handler(number: int, frame: object) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if interrupts > 1 else signal.SIGTERM)

    return handler


def _copy(process: subprocess.Popen[str], prefix: str, output: IO[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if not line.startswith(NOISE):
            output.write(prefix + line)
            output.flush()


def _watch(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Returns when all have ended, or when one has failed and the rest had their time."""
    deadline = None
    while any(process.poll() is None for process in processes):
        if deadline is None and any(process.poll() not in (None, 0, STOPPED) for process in processes):
            deadline = time.monotonic() + LOST_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            return
        time.sleep(0.05)
