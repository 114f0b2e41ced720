"""Rewards: components, their rules, and what becomes of a component that fails."""

import functools
import json
import sys

import numpy as np
import pytest

from jaxllm.rollouts import components
from jaxllm.rollouts.resampling import dull
from jaxllm.rollouts.rewards import Answer, Component, Failed, Rewards, Spoken, make, named
from jaxllm.rollouts.rules import RULES, Bound
from jaxllm.rollouts.shaping import missing_end
from jaxllm.tasks.arithmetic import Arithmetic
from jaxllm.tasks.task import Unscored

GROUPS = np.array([0, 0, 1, 1])


def answer(text, prompt="p", ended=True, tokens=None, **row):
    return Answer(prompt, text, row, np.arange(len(text) if tokens is None else tokens, dtype=np.int32), ended)


ANSWERS = [answer("4", question="2 + 2 =", answer="4"), answer("5", question="2 + 2 =", answer="4", ended=False)]
ANSWERS += [answer(" 7", question="3 + 4 =", answer="7"), answer("seven", question="3 + 4 =", answer="7")]
TURNS = [(Spoken("model", "a"), Spoken("python", "4", "done")), (Spoken("python", "error: no", "error"),), (), ()]
TALKED = [answer._replace(turns=turns) for answer, turns in zip(ANSWERS, TURNS, strict=True)]


def test_every_kind_says_what_it_means(tmp_path):
    (tmp_path / "mine.py").write_text("def score(prompts, completions, rows):\n    return [len(c) + len(rows) for c in completions]\n")
    judge = "import json, sys\nfor x in map(json.loads, sys.stdin):\n    print(json.dumps({'id': x['id'], 'reward': len(x['completion'])}))"
    found = {
        "task": components.task(Arithmetic())(ANSWERS),
        "exact": components.exact()(ANSWERS),
        "length": components.length(cost=0.5, free=1)(ANSWERS),
        "overlong": components.overlong(buffer=4, longest=5)(ANSWERS),
        "ended": components.ended()(ANSWERS),
        "format": components.form(r"^\s*\d+$")(ANSWERS),
        "tools": components.tools()(TALKED),
        "function": components.function(f"{tmp_path / 'mine.py'}:score")(ANSWERS),
        "command": components.command([sys.executable, "-c", judge])(ANSWERS),
    }
    assert found.keys() == components.KINDS.keys()
    assert found["task"] == found["exact"] == [1.0, 0.0, 1.0, 0.0]
    assert found["length"] == [0, 0, -0.5, -2.0] and found["overlong"] == [0, 0, -0.25, -1.0]
    assert found["ended"] == [1, 0, 1, 1] and found["format"] == [1, 1, 1, 0]
    assert found["function"] == [5, 5, 6, 9] and found["command"] == [1, 1, 2, 5]
    assert found["tools"] == [1, 0, 0, 0] == components.tools("python")(TALKED) and components.tools("search")(TALKED) == [0] * 4
    (tmp_path / "talk.py").write_text(
        "def count(prompts, completions, rows, turns):\n    return [sum(t['who'] != 'model' for t in x) for x in turns]\n"
    )
    assert components.function(f"{tmp_path / 'talk.py'}:count")(TALKED) == [1, 1, 0, 0]
    assert components.load_function("json:dumps") is json.dumps


@pytest.mark.parametrize("rule", RULES)
def test_a_component_that_fails_is_missing_and_never_zero(rule):
    def fails(answers):
        return [1 / (a.text != "5") for a in answers]  # raises for the whole batch: only the culprit is missing

    good = Component("good", lambda answers: [0.0, 1.0, 0.0, 1.0])  # trap 13: a 0 is a reward like any other
    bad = Component("bad", fails)
    if rule == "constraint":
        bad = bad._replace(weight=0.0, bound=Bound(least=0.5))
    found = Rewards([good, bad], rule)(ANSWERS, GROUPS)
    assert np.isnan(found.total).tolist() == [False, True, False, False] == np.isnan(found.parts["bad"]).tolist()
    assert not np.isnan(found.parts["good"]).any()
    assert "no value for 1 of 4" in found.problems[0] and "ZeroDivisionError" in found.problems[0]
    if rule != "constraint":
        unused = Rewards([good, Component("bad", fails, weight=0.0)], rule)(ANSWERS, GROUPS)
        assert np.isfinite(unused.total).all()


def test_a_task_that_judges_many_at_once_and_raises_costs_the_culprit_alone():
    class Together(Arithmetic):
        def score_all(self, rows, answers):
            return [{"exact_match": float(int(answer) > 4)} for answer in answers]

    found = Rewards([Component("task", components.task(Together()))])(
        [*ANSWERS[:3], ANSWERS[3]._replace(prompt="a" * 90 + "3 + 4 =")], GROUPS
    )
    np.testing.assert_array_equal(found.total, [0.0, 1.0, 1.0, np.nan])
    (said,) = found.problems
    assert "no value for 1 of 4" in said and f"prompt '...{'a' * 73}3 + 4 ='" in said and "ValueError: invalid literal" in said


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_none_and_nan_are_missing(value):
    found = Rewards([Component("c", lambda answers: [value, 0.0, True, np.float32(2)])])(ANSWERS, GROUPS)
    assert np.isnan(found.total[0]) and found.total[1:].tolist() == [0, 1, 2] and "None or a number" in found.problems[0]


def test_what_nobody_could_mean_is_refused():
    with pytest.raises(ValueError, match="gave 1 values for 4"):
        Rewards([Component("c", lambda answers: [1.0])])(ANSWERS, GROUPS)
    with pytest.raises(ValueError, match="'good', which is no number"):
        Rewards([Component("c", lambda answers: ["good"] * 4)])(ANSWERS, GROUPS)
    for components_, said in ([[], "nothing would be trained"], [[Component("c", len)] * 2, "two components called 'c'"]):
        with pytest.raises(ValueError, match=said):
            Rewards(components_)
    for rule, bound in (("sum", Bound(most=1.0)), ("constraint", Bound())):
        with pytest.raises(ValueError, match="go together"):
            Rewards([Component("c", len), Component("d", len, 0.0, bound=bound)], rule)
    for entry, said in (
        ("lenght", "Unknown kind"),
        ({"kind": "ended", "at_least": 1, "at_most": 2}, "no second bound"),
        ({"kind": "ended", "at_least": 1, "weight": 2}, "has no weight"),
        ({"kind": "length"}, "needs 'cost'"),
        ({"kind": "ended", "cost": 1}, "does not know 'cost'"),
        ({"kind": "format", "pattern": "("}, "no regular expression"),
        ({"kind": "function", "path": "json:nothing"}, "does not load"),
        ({"kind": "command", "command": "echo"}, "no list of words"),
    ):
        with pytest.raises(ValueError, match=said):
            make(named([entry], components.KINDS), components.KINDS)


@pytest.mark.parametrize(("how", "expected"), [("set", -1.0), ("subtract", 1.25)])
def test_an_answer_without_an_end_has_its_penalty_wherever_rewards_are_read(how, expected):
    """In the total itself: resampling, the greedy baseline and labels compare what training does; what is missing stays so."""
    no_end = functools.partial(missing_end, value=expected if how == "set" else -1.0, how=how)
    rewards = Rewards([Component("c", lambda answers: [0.25, 0.25, None, 0.25])], no_end=no_end)
    cut = [answer._replace(ended=i not in (1, 2)) for i, answer in enumerate(ANSWERS)]
    found = rewards(cut, GROUPS)
    np.testing.assert_array_equal(found.total, [0.25, expected, np.nan, 0.25])
    np.testing.assert_array_equal(found.parts["c"], [0.25, 0.25, np.nan, 0.25])
    assert dull(found.total[:2], GROUPS[:2]).tolist() == []


def test_a_rule_without_a_value_says_so():
    """A root of a negative part is no number: it is told, and not taken for a part that is missing."""
    found = Rewards([Component("c", lambda answers: [4.0, -1.0, None, 0.0], weight=0.5)], "product")(ANSWERS, GROUPS)
    np.testing.assert_array_equal(found.total, [2.0, np.nan, np.nan, 0.0])
    assert len(found.problems) == 2 and "no value for 1 of 4 completions whose parts are all there" in found.problems[1]


def test_a_verifier_that_cannot_judge_and_a_judge_that_dies():
    class Strict(Arithmetic):
        def score(self, row, answer):
            if not answer.strip().isdigit():
                raise Unscored
            return super().score(row, answer)

    assert components.task(Strict())(ANSWERS) == [1.0, 0.0, 1.0, None]
    dies = components.command([sys.executable, "-c", "import sys; sys.exit('out of words')"])
    with pytest.raises(Failed, match="status 1: out of words"):
        dies(ANSWERS)
    found = Rewards([Component("judge", dies)])(ANSWERS, GROUPS)
    assert np.isnan(found.total).all() and "out of words" in found.problems[0]
    half = components.command([sys.executable, "-c", 'print(\'{"id": 2, "reward": 0}\')'])
    assert half(ANSWERS) == [None, None, 0, None]
