"""Tools: the same for the same, bounded, and told what went wrong; a table of kinds."""

import pytest

from jaxllm.rollouts.tools import DONE, ERROR, TIMEOUT, Call, answered, make

FUNCTION = "def shout(text):\n    return text.upper() if text else 1 / 0\n"
CORPUS = ["Ulm lies on the Danube.", "The cathedral of Ulm\nhas the tallest\tsteeple.", "Bonn lies on the Rhine."]
PROGRAMS = {
    "print(6 * 7)": ("42", DONE),
    "x = 1": ("", DONE),
    "for i in range(3):\n    print(i)": ("0\n1\n2", DONE),
    "print('a')\n1 / 0": ("a\nerror: ZeroDivisionError: division by zero", ERROR),
    "print(": ("error: SyntaxError", ERROR),
    "import sys\nsys.exit(3)": ("error: SystemExit: 3", ERROR),
    "while True: pass": ("error: timed out", TIMEOUT),
    "open('/etc/passwd')": ("Error", ERROR),
    "import socket; socket.socket()": ("error: ", ERROR),
    "import sys\nsys._getframe(1).f_code": ("", DONE),
    "print('\\ud800')": ("?", DONE),
    "print('x' * 10**6)": ("x" * 8000, DONE),
}


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    path = tmp_path_factory.mktemp("tools") / "own.py"
    path.write_text(FUNCTION)
    entries = ["calculator", {"kind": "python", "seconds": 1}, {"kind": "search", "results": 2, "characters": 30}]
    return make([*entries, {"kind": "function", "name": "shout", "path": f"{path}:shout", "open": "!", "close": "!"}], CORPUS)


def test_each_answers_and_says_what_went_wrong(tools):
    calls = [Call("calculator", "2 + 3"), Call("shout", "hey"), Call("search", "Ulm steeple"), Call("calculator", "2 +")]
    calls += [Call("shout", ""), Call("", problem="no tool of this name"), Call("search", "Paris")]
    texts = [result.text for result in answered(tools, calls)]
    assert texts[:2] == ["5", "HEY"] and texts[2] == "1. The cathedral of Ulm has the t\n2. Ulm lies on the Danube."
    assert texts[3:] == ["error: a number is missing at the end", "error: division by zero", "error: no tool of this name", "nothing found"]
    assert [result.happened for result in answered(tools, calls)] == [DONE] * 3 + [ERROR] * 3 + [DONE]


def test_programs_run_in_the_sandbox_and_print_the_same_every_time(tools):
    twice = "import random\nprint({'a', 'b', 'cd', 'e'}, random.random(), hash('x'))"
    found = answered(tools, [Call("python", code) for code in [*PROGRAMS, twice, twice]])
    for (code, (text, happened)), result in zip(PROGRAMS.items(), found, strict=False):
        assert result.happened == happened and text in result.text and len(result.text) <= 8000, (code, result)
    assert found[-1] == found[-2] and found[-1].happened == DONE


def test_a_schema_for_templates(tools):
    schema = tools["python"].schema()["function"]
    assert schema["name"] == "python" and schema["parameters"]["required"] == ["code"] and schema["description"]
    assert (tools["search"].open, tools["search"].close, tools["shout"].open) == ("<search>", "</search>", "!")


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (["calculater"], "Unknown kind of tool 'calculater'. Choose one of: calculator, python"),
        (["search"], "rollout.corpus is empty"),
        ([{"kind": "python", "second": 3}], "does not know 'second'. Its own options: seconds"),
        ([{"kind": "function"}], "needs 'path'"),
        (["calculator", "calculator"], "its own name"),
        ([{"kind": "calculator", "close": ""}], "its own name"),
        ([{"kind": "python", "seconds": 0}], "above 0"),
        ([{"kind": "calculator", "name": "model"}], "its own name"),
    ],
)
def test_mistakes_are_told(entries, said):
    with pytest.raises(ValueError, match=said):
        make(entries)
