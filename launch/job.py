"""A job: one jaxllm command in many processes, their output, and the one exit code it comes to."""

import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
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

    def lines(self) -> list[str]:
        """What each process runs, for a shell; as `command`, but for the word that ends it with its launcher."""
        words = ["python", "-m", self.module, *self.arguments]
        return [shlex.join([*(["env"] if extra else []), *(f"{k}={v}" for k, v in extra.items()), *words]) for extra in self.environments]


@dataclasses.dataclass
class Restarts:
    """When something that ended is started again.

    Attributes:
      budget: how many failures are followed by another start. A stop that saved (75) is, always, and costs nothing of it.
      first: seconds before the first of these; twice as many before each further one, ten minutes at most.
    """

    budget: int = 3
    first: float = 2.0
    used: int = 0

    def wait(self, code: int) -> float | None:
        """Seconds to wait before the next start, or None: what ended with this code is not started again."""
        if code == STOPPED:
            return 1.0
        if code in (0, 2) or self.used >= self.budget:  # 2: a mistake stays one
            return None
        self.used += 1
        return min(self.first * 2 ** (self.used - 1), 600.0)

    def said(self, code: int, seconds: float) -> str:
        """Why it is started again."""
        why = "stopped early and saved (exit 75)" if code == STOPPED else f"failed (exit {code}), restart {self.used} of {self.budget}"
        return f"{why}: starts again in {seconds:.0f} s"


def repeat(start: Callable[[], int], restarts: Restarts, told: threading.Event, say: Callable[[str], None] = print) -> int:
    """Starts something until it has ended for good; returns its last exit code.

    Args:
      start: runs it to its end and returns the exit code.
      restarts: how often.
      told: set where the launcher itself was asked to stop; then nothing starts again.
      say: takes a line for the user.
    """
    while True:
        code = start()
        seconds = None if told.is_set() else restarts.wait(code)
        if seconds is None:
            return code
        say(restarts.said(code, seconds))
        if told.wait(seconds):
            return code


def exit_code(codes: Sequence[int]) -> int:
    """One code for many processes: a failure before a stop before success; 2 only where nothing else failed.

    Args:
      codes: as `subprocess` gives them, negative for a signal.
    """
    failed = [code for code in codes if code not in (0, STOPPED)]
    if failed:
        return 2 if set(failed) == {2} else 1
    return STOPPED if STOPPED in codes else 0


def run(job: Job, output: IO[str] | None = None, told: threading.Event | None = None) -> int:
    """Runs all processes of a job on this machine to their end and returns the job's exit code.

    SIGTERM and the first Ctrl-C go on to all of them as SIGTERM, and set `told`; the second Ctrl-C ends them at once. When one fails and
    the others have not ended 30 s later, they are killed.
    """
    processes = [start(job, extra) for extra in job.environments]
    on_signal = forward(processes, told or threading.Event())
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
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


def start(job: Job, extra: Mapping[str, str], output: int | IO[str] = subprocess.PIPE) -> subprocess.Popen[str]:
    """One process of a job, in a session of its own, so that Ctrl-C reaches it once, and through us."""
    return subprocess.Popen(
        job.command,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **extra},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def forward(processes: Collection[subprocess.Popen[str]], told: threading.Event) -> Callable[[int, object], None]:
    """A signal handler that passes on to these processes what this one is told."""
    interrupts = 0

    def handler(number: int, frame: object) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        told.set()
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
