"""No program passes that should not, gets out, or hangs; right ones pass. In every kind of jail that holds on this machine."""

import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from jaxllm.tasks import sandbox
from jaxllm.tasks.sandbox import HAPPENED, KINDS, Limits, Program, Sandbox, Verdict
from tests.tasks.strangers import BY_CALL, ENDLESS, FORGERIES, TRIES

SHORT = Limits(seconds=4.0, cpu_seconds=1, memory=256 << 20, file_bytes=1 << 20)
TESTS = "assert add(2, 3) == 5\nassert add([1], [2]) == [1, 2]"

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="programs are judged on Linux only")


def program(code: str, tests: str = TESTS) -> Program:
    return Program(code, tests, {"add": "add"})


@pytest.fixture(scope="module", params=sandbox.usable())
def jail(request) -> Sandbox:
    return Sandbox(SHORT, workers=2, kind=request.param)


@pytest.fixture
def place():
    """A folder that no permission keeps anybody from."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield pathlib.Path(folder)


def test_this_machine_has_a_jail():
    assert sandbox.usable()


def test_its_line_names_it(jail):
    line = Sandbox().describe()
    assert "\n" not in line and f"({sandbox.usable()[0]})" in line
    assert f"({jail.kind})" in jail.describe()
    with pytest.raises(ValueError, match=r"The jail 'none' does not hold on this machine\. Choose one of: "):
        Sandbox(kind="none")


def test_right_programs_pass_and_others_say_why(jail):
    programs = {
        "def add(a, b): return a + b": ("passed", ""),
        "add = lambda *both: both[0] + both[1]": ("passed", ""),
        "def add(a, b): return a - b": ("failed", "AssertionError"),
        "def add(a, b:": ("failed", "SyntaxError"),
        "def plus(a, b): return a + b": ("failed", "NameError: name 'add' is not defined"),
        "def add(a, b):\n  return {}[a]": ("failed", "KeyError: '2 (line 2 of the program)' (line 1 of the tests)"),
        "import sys\ndef add(a, b):\n  print('words', file=sys.stderr)\n  return a + b": ("passed", "words\nwords\n"),
    }
    verdicts = list(jail.run_all(program(code) for code in programs))
    for (happened, told), verdict in zip(programs.values(), verdicts, strict=True):
        assert verdict.happened == happened and told in verdict.stderr and verdict.passed == (happened == "passed"), verdict
        assert happened in HAPPENED and 0 < verdict.seconds < 4


@pytest.mark.parametrize("code", FORGERIES.values(), ids=FORGERIES.keys())
def test_nothing_passes_but_right_answers(code, jail):
    verdict = jail.run(program(code))
    assert verdict.happened in ("failed", "ended early", "out of memory"), verdict
    assert not {"seen", "read", "sent"} & set(verdict.stderr.replace(":", " ").split()), verdict
    assert verdict.seconds < 4


def test_what_the_tests_use_of_their_own_cannot_be_replaced(jail):
    code = "import builtins, math\nbuiltins.abs = math.fabs = lambda x: 0\ndef abs(x): return 0\ndef add(a, b): return 9"
    tests = "import math\nassert abs(add(2, 3) - 5) < 1 or math.fabs(add(2, 3) - 5) < 1"
    assert jail.run(program(code, tests)).happened == "failed"
    assert jail.run(program(code.replace("9", "a + b"), tests)).passed


def test_values_arrive_as_they_were(jail):
    code = """
from collections import Counter, OrderedDict, deque, namedtuple
from fractions import Fraction
Pair = namedtuple("Pair", "a b")
def same(x): return x
def made():
    return [Counter("aab"), OrderedDict(a=1), deque([1]), Fraction(1, 3), Pair(1, 2), {1: {2}}, b"x", 2j, range(3), 10**40, -(10**40)]
def change(xs, d, s):
    xs.sort(); d["new"] = (1, 2); s.add(9)
def count():
    yield from range(3)
class Box:
    def __init__(self, inside): self.inside = inside
    def twice(self): return 2 * self.inside
def opened(boxes): return [box.inside for box in boxes]
def adder(n): return lambda m: n + m
"""
    tests = """
values = [None, True, 1, -2.5, float("inf"), "é\\ud800\\0", [], (), {}, {1: (2, [3])}, {(1, 2): {3}}, frozenset({1}), int, "a" * 100000]
for value in values:
    assert same(value) == value and type(same(value)) is type(value), value
assert same(-0.0).hex() == "-0x0.0p+0" and str(same(float("nan"))) == "nan"
from collections import Counter, OrderedDict, deque
from fractions import Fraction
expected = [Counter("aab"), OrderedDict(a=1), deque([1]), Fraction(1, 3), (1, 2), {1: {2}}, b"x", 2j, range(3), 10**40, -(10**40)]
assert made() == expected
xs, d, s = [3, 1, 2], {}, set()
assert change(xs, d, s) is None
assert (xs, d, s) == ([1, 2, 3], {"new": (1, 2)}, {9})
assert list(count()) == [0, 1, 2]
boxes = [Box(1), Box("a")]
assert opened(boxes) == [1, "a"] and boxes[1].twice() == "aa"
boxes[0].inside = 5
assert opened(boxes) == [5, "a"] and adder(2)(3) == 5
try:
    opened([1])
except AttributeError:
    pass
else:
    assert False
"""
    names = ("same", "made", "change", "count", "Box", "opened", "adder")
    verdict = jail.run(Program(code, tests, {name: name for name in names}))
    assert verdict.passed, verdict
    verdict = jail.run(Program(code, "same(lambda x: x)", {"same": "same"}))
    assert verdict.happened == "not judged" and "function, which cannot travel" in verdict.stderr


@pytest.mark.parametrize(("code", "happened"), ENDLESS.values(), ids=ENDLESS.keys())
def test_what_would_not_end_ends(code, happened, jail):
    verdict = jail.run(program(code))
    assert verdict.happened == happened or (happened is None and verdict.happened in ("timed out", "out of memory", "failed")), verdict
    assert verdict.seconds < 6 and len(verdict.stderr) <= 2000


def living(mark: int) -> list[str]:
    """The processes of jails with this limit on files, which nobody else has."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline") as file:
                found += [pid] if f'"file_bytes": {mark}' in file.read() else []
        except OSError:
            pass
    return found


def gone(mark: int) -> bool:
    return any(time.sleep(0.05) or not living(mark) for _ in range(40))


def test_a_program_that_sleeps_is_ended_with_all_its_processes(jail):
    mark = (1 << 20) + os.getpid()
    verdict = Sandbox(Limits(seconds=1.0, file_bytes=mark), kind=jail.kind).run(program("import time\ntime.sleep(1000)"))
    assert verdict.happened == "timed out" and 1 <= verdict.seconds < 2 and "within 1 seconds" in verdict.stderr
    assert gone(mark)


def test_a_jail_ends_with_who_made_it(jail, place):
    mark = (2 << 20) + os.getpid()
    code = "from jaxllm.tasks.sandbox import Limits, Program, _run\n"
    code += f"_run({jail.kind!r}, Limits(seconds=60, file_bytes={mark}), Program('import time; time.sleep(1000)', '', {{}}))"
    with subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(place)}) as maker:
        assert any(time.sleep(0.05) or len(living(mark)) > 1 for _ in range(100))
        maker.kill()
    assert gone(mark)


@pytest.mark.parametrize("code", TRIES.values(), ids=TRIES.keys())
def test_nobody_gets_out(code, jail, place):
    kept = place / "kept"
    kept.write_text("kept")
    kept.chmod(0o666)
    before = kept.stat()
    with socket.socket() as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        datagrams.bind(("127.0.0.1", port))
        verdict = jail.run(program(code.replace("PLACE", str(place)).replace("PORT", str(port)) + "\ndef add(a, b): return a + b"))
        for one in (server, datagrams):
            one.setblocking(False)
            with pytest.raises(BlockingIOError):
                one.accept() if one is server else one.recv(1)
    assert verdict.happened == "failed", verdict
    refusals = ("PermissionError", "FileNotFoundError", "RuntimeError", "OSError", "ImportError", "ModuleNotFoundError")
    assert verdict.stderr.split(":")[0] in refusals, verdict
    assert [path.name for path in place.iterdir()] == ["kept"] and kept.read_text() == "kept"
    assert (kept.stat().st_mode, kept.stat().st_mtime) == (before.st_mode, before.st_mtime)


def test_the_kernel_refuses_by_itself_what_another_fence_would_too(place):
    """The filter of calls alone, which must hold where Landlock is young or permissions are wide."""
    (place / "kept").write_text("kept")
    tries = {name: TRIES[name].replace("PLACE", str(place)).replace("PORT", "9") for name in BY_CALL}
    tries["a pipe with a name"] = f"import os\nos.mkfifo({str(place / 'pipe')!r})"
    tries["a link by name"] = f"import os\nos.symlink('kept', {str(place / 'link')!r})"
    tries["what is allowed"] = f"open({str(place / 'kept')!r}, 'r+').read()"
    code = f"import sys\nsys.path.insert(0, {sandbox.JAIL!r})\nimport fences\nfences.few_calls(True)\ndone = []\n"
    code += f"for name, one in {tries!r}.items():\n  try: exec(one); done.append(name)\n  except (OSError, RuntimeError): pass\nprint(done)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['what is allowed']\n"
    assert [path.name for path in place.iterdir()] == ["kept"] and (place / "kept").read_text() == "kept"


def test_a_folder_of_its_own_can_be_written_and_is_gone_afterwards(jail):
    code = "import os\nwith open('notes', 'w') as file: file.write('kept')\n"
    code += "def add(a, b): return [os.path.abspath('notes'), open('notes').read()]"
    tests = "path, text = add(0, 0)\nassert text == 'kept'\nraise ValueError(path)"
    verdict = jail.run(program(code, tests))
    if jail.kind == "seccomp":
        assert verdict.stderr.startswith("PermissionError")
        return
    path = verdict.stderr.split(" ")[1]
    assert verdict.stderr.startswith("ValueError: /") and not os.path.exists(path)
    full = jail.run(program("with open('notes', 'w') as file: file.write('x' * (2 << 20))"))
    assert full.happened == "failed" and full.stderr.startswith("OSError")


def test_nothing_of_ours_is_told(jail, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "abc")
    read, write = os.pipe()
    os.set_inheritable(write, True)
    code = "import os\ndef add(a, b): return [dict(os.environ), [fd for fd in range(64) if opened(fd)]]\n"
    code += "def opened(fd):\n  try: os.fstat(fd); return True\n  except OSError: return False"
    tests = "told, files = add(0, 0)\nassert not set(told) - {'LC_CTYPE', 'PWD', 'PYTHONHASHSEED'}, told\nassert len(files) == 5, files"
    verdict = jail.run(program(code, tests))
    os.close(read)
    os.close(write)
    assert verdict.passed, verdict


def test_verdicts_come_in_order_and_as_they_are_needed(jail):
    drawn = []

    def programs():
        for number in range(40):
            drawn.append(number)
            time_taken = "import time\ntime.sleep(0.3)\n" if number == 0 else ""
            yield program(f"{time_taken}def add(a, b): return {number} if a == 2 else [1, 2]")

    verdicts = jail.run_all(programs())
    assert next(verdicts).happened == "failed" and len(drawn) < 40
    assert [verdict.passed for verdict in verdicts] == [number == 5 for number in range(1, 40)]


def test_it_can_be_used_from_threads_at_once(jail):
    found: list[Verdict] = []
    threads = [threading.Thread(target=lambda: found.append(jail.run(program("def add(a, b): return a + b")))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and all(verdict.passed for verdict in found)


def test_a_jail_that_does_not_come_up_judges_nothing(monkeypatch):
    for kind in sandbox.usable():
        monkeypatch.setattr(sandbox, "PYTHON", "/nowhere/python")
        verdict = Sandbox(kind=kind).run(program("def add(a, b): return a + b"))
        assert verdict.happened == "not judged" and "/nowhere/python" in verdict.stderr


def test_a_jail_that_leaks_is_not_used(monkeypatch):
    """A program that gets out of a jail, which the probe tries, takes the kind from the list."""
    monkeypatch.setattr(sandbox, "_PROBE", "def free(path): return [3]")
    assert not any(sandbox._holds(kind) for kind in KINDS)


def test_other_systems_are_refused(monkeypatch):
    sandbox.usable.cache_clear()
    try:
        monkeypatch.setattr(sandbox.sys, "platform", "darwin")
        with pytest.raises(ValueError, match="Programs are judged on Linux only"):
            Sandbox()
    finally:
        monkeypatch.undo()
        sandbox.usable.cache_clear()
