"""HumanEval and MBPP: prompts letter by letter, right programs pass, wrong and cheating ones do not."""

import pytest

from jaxllm.tasks import code, sandbox
from jaxllm.tasks.code import MBPP, HumanEval
from jaxllm.tasks.task import Unscored, WrongRow

try:
    JAILS = sandbox.usable()
except ValueError:
    JAILS = ()
pytestmark = pytest.mark.skipif(not JAILS, reason="programs are judged on Linux only")

EVAL_ROW = {
    "task_id": "HumanEval/x",
    "prompt": (
        'import math\nfrom typing import List\n\n\ndef poly(xs: List[float], x: float):\n    """ Evaluates. """\n'
        "    return sum(c * math.pow(x, i) for i, c in enumerate(xs))\n\n\n"
        'def root(xs: List[float]):\n    """ Where poly of a line is zero. """\n'
    ),
    "entry_point": "root",
    "canonical_solution": "    return -xs[0] / xs[1]\n",
    "test": (
        "\nMETADATA = {}\n\ndef check(candidate):\n    for xs in ([1, 2], [3, 4]):\n"
        "        assert math.fabs(poly(xs, candidate(xs))) < 1e-6\n"
    ),
}
MBPP_ROW = {
    "task_id": 2,
    "text": "Write a function to find the longest chain of pairs.",
    "code": (
        "import sys\r\nclass Pair(object):\r\n  def __init__(self, a, b):\r\n    self.a, self.b = a, b\r\n"
        "def total(pairs):\r\n  return sum(p.a * p.b for p in pairs) "
    ),
    "test_list": ["assert total([Pair(1, 2), Pair(3, 4)]) == 14", "assert total([]) == 0 and sys.maxsize > 0"],
    "test_setup_code": "",
    "challenge_test_list": [],
}


def test_the_prompts_of_the_papers():
    task, row = HumanEval(), HumanEval().normal(EVAL_ROW)
    assert task.shown([]) + task.prompt(row) + task.BEFORE_ANSWER + task.target(row) == EVAL_ROW["prompt"] + EVAL_ROW["canonical_solution"]
    task = MBPP()
    row = task.normal(
        {**MBPP_ROW, "code": "def one():\r\n  return 1\r\n", "test_list": ["assert one() == 1", "assert one()"], "text": "One."}
    )
    shot = "You are an expert Python programmer, and here is your task: One. Your code should pass these tests:\n\n"
    shot += "assert one() == 1\nassert one()\n[BEGIN]\n"
    assert task.prompt(row) == shot and task.shots == 3 and task.stop == ("[DONE]",)
    assert task.shown([row]) == shot + "def one():\n  return 1\n[DONE]\n\n"


@pytest.mark.parametrize(("task", "row"), [(HumanEval(), EVAL_ROW), (MBPP(), MBPP_ROW)])
def test_the_published_solution_passes_and_a_stub_does_not(task, row):
    row = task.normal(row)
    assert task.score(row, task.target(row)) == {task.METRIC: 1.0} and task.METRIC == "pass@1"
    assert task.score(row, "    pass\n") == {"pass@1": 0.0}
    assert task.score(row, task.target(row) + "\nraise SystemExit\n") == {"pass@1": 0.0}
    assert sandbox.usable()[0] in task.describe()


def test_an_answer_cannot_replace_what_the_prompt_gives_to_the_tests():
    task, row = HumanEval(), HumanEval().normal(EVAL_ROW)
    cheat = "    return 7.0\n\ndef poly(xs, x):\n    return 0.0\n\ndef check(candidate):\n    pass\nmath.fabs = poly\n"
    assert task.verdict(row, cheat).stderr.startswith("AssertionError")
    assert task.score(row, row["canonical_solution"] + "\ndef check(candidate):\n    assert False\n") == {"pass@1": 1.0}


def test_many_answers_at_once_are_scored_as_one_by_one():
    task, row = MBPP(), MBPP().normal(MBPP_ROW)
    answers = [task.target(row), "", "total = None", task.target(row).replace("*", "+")] * 3
    scores = task.score_all([row] * len(answers), answers)
    assert [one["pass@1"] for one in scores] == [1.0, 0.0, 0.0, 0.0] * 3
    with pytest.raises(ValueError, match="longer"):
        task.score_all([row], answers)


def test_setup_code_runs_after_the_answer_and_sanitized_rows_are_read():
    task = MBPP()
    setup = {**MBPP_ROW, "test_setup_code": "pairs = [Pair(1, 1)]\r\npairs[0].a = 5", "test_list": ["assert total(pairs) == 5"]}
    sanitized = {name: setup[name] for name in ("task_id", "code", "test_list")} | {"prompt": "Sum.", "test_imports": ["import math"]}
    sanitized["test_list"] = ["assert total([Pair(1, math.inf)]) == math.inf"]
    for row in map(task.normal, (setup, sanitized)):
        assert task.score(row, task.target(row)) == {"pass@1": 1.0}
        assert task.score(row, task.target(row).replace("p.a * p.b", "2")) == {"pass@1": 0.0}


@pytest.mark.parametrize(
    ("task", "row", "sentence"),
    [
        (HumanEval(), {"prompt": "x"}, "has no 'task_id'; its fields are prompt, and HumanEval needs {task_id, prompt"),
        (HumanEval(), {**EVAL_ROW, "canonical_solution": "return ("}, "a solution that is no Python"),
        (HumanEval(), {**EVAL_ROW, "entry_point": "os; x"}, "entry_point='os; x'"),
        (MBPP(), {**MBPP_ROW, "code": "print 1"}, "a solution that is no Python"),
    ],
)
def test_wrong_rows_are_told(task, row, sentence):
    with pytest.raises(WrongRow) as error:
        task.normal(row)
    assert sentence in str(error.value)


def test_a_broken_sandbox_scores_nothing(monkeypatch):
    task, row = MBPP(seconds=9.5), MBPP().normal(MBPP_ROW)
    code.sandbox(9.5)
    monkeypatch.setattr(sandbox, "PYTHON", "/nowhere/python")
    with pytest.raises(Unscored, match=r"The sandbox broke: .*/nowhere/python"):
        task.score(row, task.target(row))
    assert task.score_all([row], [task.target(row)]) == [{}]
