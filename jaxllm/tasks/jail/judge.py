"""Two processes inside a jail: one runs the stranger's code and answers calls, the other holds the tests and makes the calls.

The stranger's process never holds the tests, what they expect, or a pipe to the outside. It sees the arguments of a call and can only
send back a value, which becomes a plain one on the other side (`wire`): nothing that it does to its own interpreter reaches the verdict.
What remains: faults of the kernel or of CPython's JSON reader, and answers known by heart, since published tests give everybody the same
arguments.
"""

import json
import os
import resource
import signal
import sys
import types
from typing import Any

import fences
import wire

CHANGEABLE = (list, dict, set)  # arguments that a function may change for who called it
TAIL = 2000  # characters of what a verdict tells
SAID = 1 << 16  # characters of what tests hand on
# Where nothing keeps a process from reading files of others, the stranger's opens none; these are imported before.
MODULES = (
    "array bisect calendar cmath collections copy dataclasses datetime decimal enum fractions functools hashlib heapq itertools math"
    " operator random re statistics string struct textwrap typing unicodedata"
)


class Unhandable(Exception):
    """The tests hand over what cannot travel: nothing can be said of the program."""


class Raised(Exception):
    """The stranger's code raised what is no exception of Python's own."""


# The stranger's process.


def serve(code: str, requests: int, answers: int) -> None:
    """Runs the code, then the calls that are asked for, until none is."""
    module = types.ModuleType("program")
    sys.modules["program"] = module
    objects: list[Any] = []

    def hold(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    def held(reference: int | str) -> Any:
        if isinstance(reference, int):
            return objects[reference]
        if reference not in vars(module):
            raise NameError(f"name '{reference}' is not defined")
        return vars(module)[reference]

    def run(message: dict) -> dict:
        owner, values = wire.decode(message["on"], held), wire.decode(message["with"], held)
        if message["do"] == "get":
            return {"value": wire.encode(getattr(owner, *values), hold)}
        if message["do"] == "set":
            setattr(owner, *values)
            return {"value": None}
        arguments, named = values
        value = wire.encode(owner(*arguments, **named), hold)
        after = [wire.encode(argument, hold) if isinstance(argument, CHANGEABLE) else None for argument in arguments]
        return {"value": value, "after": after}

    def define(_: None) -> dict:
        exec(compile(code, "program", "exec"), vars(module))
        return {"value": None}

    wire.send(answers, _guarded(define, None))
    while True:
        wire.send(answers, _guarded(run, wire.receive(requests)))


def _guarded(run: Any, message: Any) -> dict:
    try:
        return run(message)
    except BaseException as error:
        line, trace = 0, error.__traceback__
        while trace:
            line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == "program" else line
            trace = trace.tb_next
        try:
            text = str(error)[:TAIL]
        except BaseException:
            text = ""
        return {"error": type(error).__name__, "text": text, "line": line}


def _become_stranger(code: str, requests: int, answers: int, errors: int, files: bool) -> None:
    try:
        fences.die_with_parent()
        nothing = os.open("/dev/null", os.O_RDWR)
        for place, to in ((nothing, 0), (nothing, 1), (errors, 2)):
            os.dup2(place, to)
        for place in set(range(3, 256)) - {requests, answers}:
            os.closerange(place, place + 1)
        for name in () if files else MODULES.split():
            __import__(name)
        fences.few_calls(files)
        serve(code, requests, answers)
    except wire.Ended:
        pass
    finally:
        os._exit(0)


# The judge's process.


class Stranger:
    """The other process, as the judge sees it."""

    def __init__(self, process: int, requests: int, answers: int):
        self.process, self.requests, self.answers = process, requests, answers

    def answer(self) -> dict:
        """The next answer, of which nothing is believed.

        Raises:
          Exception: what the stranger's code raised.
        """
        message = wire.receive(self.answers)
        if not isinstance(message, dict) or not {"value", "error"} & set(message):
            raise wire.Nonsense("an answer that is none")
        if "error" not in message:
            return message
        kind, text = wire.TYPES.get(str(message["error"])), f"{message.get('text')} (line {message.get('line')} of the program)"
        if kind is None or not issubclass(kind, Exception) or issubclass(kind, UnicodeError):
            raise Raised(f"{message['error']}: {text}")
        raise kind(text)

    def ask(self, do: str, on: "Remote", values: list) -> Any:
        """Has something done with one of its objects; lists, sets and dicts that it changed are changed here too."""
        message = {"do": do, "on": wire.encode(on, _reference), "with": wire.encode(values, _reference)}
        wire.send(self.requests, message)
        answer = self.answer()
        for argument, after in zip(values[0] if do == "call" else (), answer.get("after") or (), strict=False):
            if isinstance(argument, CHANGEABLE) and after != wire.encode(argument, _reference):
                _write_back(argument, self.decoded(after))
        return self.decoded(answer["value"])

    def decoded(self, message: Any) -> Any:
        """A value that it sent."""
        return wire.decode(message, lambda reference: Remote(self, int(reference)))

    def end(self) -> str:
        """How it ended by itself."""
        _, status, used = os.wait4(self.process, 0)
        if not os.WIFSIGNALED(status):
            return "ended early"
        if used.ru_utime + used.ru_stime > resource.getrlimit(resource.RLIMIT_CPU)[0] - 0.5:
            return "timed out"
        return "out of memory" if os.WTERMSIG(status) == signal.SIGKILL else "crashed"  # by the kernel: it cannot signal itself


class Remote:
    """An object of the other process, or a name there: it can be called, handed back, and asked for its attributes."""

    def __init__(self, stranger: Stranger, reference: int | str):
        vars(self).update(_stranger=stranger, _reference=reference)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._stranger.ask("call", self, [list(arguments), named])

    def __getattr__(self, name: str) -> Any:
        return self._stranger.ask("get", self, [name])

    def __setattr__(self, name: str, value: Any) -> None:
        self._stranger.ask("set", self, [name, value])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and other._reference == self._reference

    def __hash__(self) -> int:
        return hash(self._reference)


def _reference(value: Any) -> int | str:
    if not isinstance(value, Remote):
        raise Unhandable(f"The tests hand over a {type(value).__name__}, which cannot travel between processes.")
    return vars(value)["_reference"]


def _write_back(argument: Any, after: Any) -> None:
    if not any(isinstance(argument, kind) and isinstance(after, kind) for kind in CHANGEABLE):
        raise wire.Nonsense("an argument of another type")
    if isinstance(argument, list):
        argument[:] = after
    else:
        argument.clear()
        argument.update(after)


def judge(stranger: Stranger, tests: str, names: dict[str, str]) -> tuple[str, str, str]:
    """What happened, how it is told, and the text that the tests leave under the name `said`."""
    space: dict[str, Any] = {"__name__": "tests", **{name: Remote(stranger, inside) for name, inside in names.items()}}
    try:
        stranger.answer()
        exec(compile(tests, "tests", "exec"), space)
    except wire.Ended:
        return stranger.end(), "", ""
    except MemoryError as error:
        return "out of memory", str(error), ""
    except Unhandable as error:
        return "not judged", str(error), ""
    except BaseException as error:
        return "failed", f"{type(error).__name__}: {error}{_where(error)}", ""
    said = space.get("said", "")
    return "passed", "", said[:SAID] if isinstance(said, str) else ""


def _where(error: BaseException) -> str:
    trace, line = error.__traceback__, 0
    while trace:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == "tests" else line
        trace = trace.tb_next
    return f" (line {line} of the tests)" if line else ""


def _fence(settings: dict) -> None:
    """Sets all fences but the last, which the two processes set for themselves."""
    folder, kind = settings["folder"], settings["kind"]
    fences.die_with_parent()
    fences.limit(**settings["limits"])
    if kind != "bubblewrap":
        fences.drop_root([*settings["needed"], os.path.dirname(os.__file__)], folder)
        fences.die_with_parent()  # a change of user forgets it
    if kind == "namespaces":
        fences.own_namespaces(folder, settings["limits"]["file_bytes"])
    fences.drop_capabilities()
    os.chdir(folder or "/")
    if kind != "seccomp" and (kind != "bubblewrap" or fences.landlock_version()):
        fences.landlock(settings["reads"], [folder, "/dev/null"])


def main() -> None:
    """Reads settings (an argument), code and tests (standard input); writes a line when all fences stand, then the verdict, as JSON."""
    settings = json.loads(sys.argv[1])
    verdicts, nothing, errors = os.dup(1), os.open("/dev/null", os.O_RDWR), os.memfd_create("errors")
    _fence(settings)
    fences.be_unreadable()
    requests, answers = os.pipe(), os.pipe()
    program = wire.receive(0)
    process = os.fork()
    if not process:
        _become_stranger(program["code"], requests[0], answers[1], errors, settings["kind"] != "seccomp")
    os.close(requests[0])
    os.close(answers[1])
    os.dup2(nothing, 1)
    fences.few_calls(files=True)
    os.write(verdicts, b"fenced\n")
    happened, told, handed = judge(Stranger(process, requests[1], answers[0]), wire.receive(0), program["names"])
    size = os.fstat(errors).st_size
    said = os.pread(errors, TAIL, max(0, size - TAIL)).decode(errors="replace")
    os.write(verdicts, json.dumps({"happened": happened, "stderr": (said + told)[-TAIL:], "said": handed}).encode())
    os._exit(0)
