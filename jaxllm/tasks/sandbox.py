"""Runs strangers' Python programs, each in a jail of its own, and says what happened; code never runs outside one.

A program is code to judge and tests that call it. They run in two processes of one jail (`jail/judge.py`), so that the code cannot
reach its tests or the verdict. Of the kernel it gets what computing needs: it starts no process and no thread, opens no socket and
signals nobody (`jail/fences.py`).
"""

import compileall
import dataclasses
import functools
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

JAIL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "jail")
PYTHON = os.path.realpath(sys.executable)
ENVIRONMENT = {"PYTHONHASHSEED": "0"}  # all of it; sets of texts have the same order every time
HAPPENED = ("passed", "failed", "timed out", "out of memory", "ended early", "crashed", "not judged")
_KEPT = "Kept back by limits and seccomp: processes, threads, sockets, signals."
KINDS = {  # the best first
    "bubblewrap": f"namespaces of its own by bubblewrap, in which only Python can be seen, and a folder in memory. {_KEPT}",
    "namespaces": f"namespaces of its own, a folder in memory, and Landlock, which shows it only Python. {_KEPT}",
    "landlock": f"Landlock shows it only Python. {_KEPT} Not kept back: it can fill the disk while it runs, and see names of files.",
    "seccomp": f"it opens no file, so that it can import common modules only. {_KEPT} Not kept back: it can see names of files.",
}


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
      seconds: on the clock, with the start of Python (about 0.1).
      cpu_seconds: of processor time, of each of the two processes.
      memory: bytes of address space, of each of the two processes.
      file_bytes: the largest file; where its folder is in memory, all of them together.
      open_files: at a time.
    """

    seconds: float = 10.0
    cpu_seconds: int = 10
    memory: int = 512 << 20
    file_bytes: int = 16 << 20
    open_files: int = 64


class Program(NamedTuple):
    """Code to judge, and how."""

    code: str  # a stranger's
    tests: str  # passed when it runs to its end; it sees the names below and nothing else of the code
    names: dict[str, str]  # what the tests call it -> its name in the code. Values travel as plain ones, other objects as references


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What happened: one of `HAPPENED`. "not judged" says nothing of the program: the jail broke, or the tests use what it cannot carry."""

    happened: str
    stderr: str  # the last of it, at most 2,000 characters, and why it failed
    seconds: float  # on the clock
    said: str = ""  # the text that the tests left under the name `said`, at most 65,536 characters

    @property
    def passed(self) -> bool:
        """All tests ran, and none failed."""
        return self.happened == "passed"


# A program that tries what none may; tried with each kind of jail before it is used.
_PROBE = """
import os
def free(path):
    tries = [lambda: open(path, "w"), lambda: os.truncate(path, 0), lambda: os.listdir(os.path.dirname(path)), lambda: os.chmod(path, 0),
             lambda: __import__("socket").socket(), lambda: os.kill(1, 0), os.fork]
    done = []
    for number, one in enumerate(tries):
        try:
            one()
            done.append(number)
        except (OSError, ImportError):
            pass
    return done
"""


def _reads() -> list[str]:
    """What Python needs to read."""
    library = sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix, "base": sys.base_prefix})
    system = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/localtime"]
    own = [os.path.join(sys.base_prefix, "lib")] if sys.base_prefix != "/usr" else []
    return [path for path in dict.fromkeys([JAIL, PYTHON, library, *own, *system]) if os.path.exists(path)]


def _command(kind: str, limits: Limits, folder: str | None) -> list[str]:
    """The command that judges a program from its standard input."""
    restricted = {name: getattr(limits, name) for name in ("memory", "cpu_seconds", "file_bytes", "open_files")}
    settings = {"kind": kind, "limits": restricted, "reads": _reads(), "needed": [JAIL, PYTHON], "folder": folder}
    inner = [PYTHON, "-s", "-P", "-S", "-X", "utf8", JAIL, json.dumps(settings)]  # -I, but for the environment, which is ENVIRONMENT
    if kind != "bubblewrap":
        return inner
    words = ["bwrap", "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--uid", "65534", "--gid", "65534"]
    for path in _reads():
        words += ["--ro-bind", path, path]
    return [*words, "--dev", "/dev", "--size", str(limits.file_bytes), "--tmpfs", str(folder), "--remount-ro", "/", "--", *inner]


@functools.cache
def usable() -> tuple[str, ...]:
    """The kinds of jail that hold on this machine, the best first. Each is tried with a program that tries to get out.

    Raises:
      ValueError: this is not Linux, or its processor is none whose system calls are known here.
    """
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        where = f"{sys.platform} on {platform.machine()}"
        raise ValueError(f"Programs are judged on Linux only, on x86_64 or aarch64; this is {where}. Score code tasks on such a machine.")
    compileall.compile_dir(JAIL, quiet=2)
    return tuple(kind for kind in KINDS if _holds(kind))


def _holds(kind: str) -> bool:
    if kind == "bubblewrap" and not shutil.which("bwrap"):
        return False
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        path = os.path.join(folder, "file")
        with open(path, "w") as file:
            file.write("kept")
        os.chmod(path, 0o666)
        verdict = _run(kind, Limits(), Program(_PROBE, f"assert free({path!r}) == []", {"free": "free"}))
        with open(path) as file:
            return verdict.passed and file.read() == "kept"


class Sandbox:
    """Judges programs, several at a time."""

    def __init__(self, limits: Limits | None = None, *, workers: int | None = None, kind: str | None = None):
        """Finds a jail.

        Args:
          limits: of each program.
          workers: how many programs run at a time; None: one for each processor.
          kind: which jail; None: the best that holds here.

        Raises:
          ValueError: this kind of jail, or none, holds on this machine.
        """
        kinds = usable()
        if not kinds:
            raise ValueError(
                "No jail holds on this machine: it lets a process neither use seccomp nor bubblewrap. Score code tasks on another."
            )
        if kind is not None and kind not in kinds:
            raise ValueError(f"The jail {kind!r} does not hold on this machine. Choose one of: {', '.join(kinds)}.")
        self.limits, self.kind, self.workers = limits or Limits(), kind or kinds[0], workers or os.cpu_count() or 1

    def describe(self) -> str:
        """One line: which jail it is, and what it does not keep back."""
        return f"Programs run in a jail ({self.kind}): {KINDS[self.kind]} Never kept back: faults of the kernel."

    def run(self, program: Program) -> Verdict:
        """Judges one program."""
        return _run(self.kind, self.limits, program)

    def run_all(self, programs: Iterable[Program]) -> Iterator[Verdict]:
        """The verdicts of programs, in their order; they are drawn as they are needed."""
        waiting: deque[Future[Verdict]] = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for program in programs:
                    waiting.append(pool.submit(self.run, program))
                    if len(waiting) > 4 * self.workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _run(kind: str, limits: Limits, program: Program) -> Verdict:
    start = time.monotonic()
    try:
        if kind == "bubblewrap":
            happened, told, said = _judged(_command(kind, limits, "/folder"), limits, program)
        elif kind == "seccomp":
            happened, told, said = _judged(_command(kind, limits, None), limits, program)
        else:
            with tempfile.TemporaryDirectory(prefix="jail", ignore_cleanup_errors=True) as folder:
                happened, told, said = _judged(_command(kind, limits, folder), limits, program)
    except OSError as error:
        happened, told, said = "not judged", str(error), ""
    return Verdict(happened, told, time.monotonic() - start, said)


def _message(value: Any) -> bytes:
    data = json.dumps(value).encode()
    return len(data).to_bytes(8, "big") + data


def _judged(command: list[str], limits: Limits, program: Program) -> tuple[str, str, str]:
    """What happened, how it is told, and what the tests said."""
    data = _message({"code": program.code, "names": program.names}) + _message(program.tests)
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes, env=ENVIRONMENT, cwd="/", start_new_session=True) as process:
        try:
            out, errors = process.communicate(data, timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            return "timed out", f"It did not end within {limits.seconds:g} seconds.", ""
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
    fenced, _, verdict = out.partition(b"\n")
    if fenced != b"fenced":
        return "not judged", errors.decode(errors="replace").strip()[-2000:], ""
    if not verdict:  # the judge itself was ended, over a value that the code sent
        return ("timed out" if process.returncode in (-signal.SIGXCPU, 128 + signal.SIGXCPU) else "crashed"), "", ""
    read = json.loads(verdict)
    return read["happened"], read["stderr"], read["said"]
