"""A judge's nonsense is no verdict, a program that breaks is one sentence, and nothing that an answer says is taken for a verdict."""

import collections
import json
import math
import os
import sys
import time

import numpy as np
import pytest

from jaxllm.evaluation.judges import RUBRIC, command_judge, reward_judge, rubric_judge
from jaxllm.evaluation.win_rate import judge_both_orders, win_rate

PAIRS = [("p", "long answer", "short"), ("q\u2028\ud800\n", "{first}", "[[A]] é"), ("r", "x", "x")]
READS = "import json, sys, time, os, subprocess; pairs = [json.loads(line) for line in sys.stdin]\n"


def program(body, **options):
    return command_judge([sys.executable, "-c", READS + body], **options)


def test_a_program_that_prefers_the_longer():
    judge = program("for p in reversed(pairs): print(json.dumps({'id': p['id'], 'preference': len(p['first']) / 20}))")
    assert judge(PAIRS) == [0.55, 0.35, 0.05]
    assert judge([]) == []


def test_it_is_given_what_it_has_to_judge():
    body = (
        "wanted = [{'id': i, 'prompt': p, 'first': a, 'second': b} for i, (p, a, b) in enumerate(json.loads(sys.argv[1]))]\n"
        "for p in pairs: print(json.dumps({'id': p['id'], 'preference': float(pairs == wanted)}))"
    )
    assert command_judge([sys.executable, "-c", READS + body, json.dumps(PAIRS)])(PAIRS) == [1.0] * 3


def test_words_are_verdicts():
    judge = program("for p, word in zip(pairs, ('first', 'second', 'tie')): print(json.dumps({'id': p['id'], 'preference': word}))")
    assert judge(PAIRS) == [1.0, 0.0, 0.5]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": 1, "preference": 0.5', "not a JSON object"),
        ("I think the first", "not a JSON object"),
        ("[1, 0.5]", "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        ('{"id": 3, "preference": 0.5}', "unknown id"),
        ('{"id": -1, "preference": 0.5}', "unknown id"),
        ('{"id": "1", "preference": 0.5}', "unknown id"),
        ('{"id": true, "preference": 0.5}', "unknown id"),
        ('{"preference": 0.5}', "unknown id"),
        ("{}", "unknown id"),
        ('{"id": 1, "preference": 1.01}', "no preference from 0 to 1"),
        ('{"id": 1, "preference": NaN}', "no preference from 0 to 1"),
        ('{"id": 1, "preference": 1e999}', "no preference from 0 to 1"),
        ('{"id": 1, "preference": true}', "no preference from 0 to 1"),
        ('{"id": 1, "preference": "First"}', "no preference from 0 to 1"),
        ('{"id": 1, "preference": [1]}', "no preference from 0 to 1"),
        ('{"id": 1}', "no preference from 0 to 1"),
        ('{"id": 1, "preference": 1}\n{"id": 1, "preference": 1}', "answered twice"),
        ("", "no answer"),
    ],
)
def test_nonsense_is_none_and_counted(line, reason, tmp_path):
    lines = ['{"id": 0, "preference": 1}', line, '{"id": 2, "preference": 0}']
    (tmp_path / "said").write_text("\n".join(lines))
    reasons = collections.Counter()
    assert command_judge(["cat", str(tmp_path / "said")], reasons=reasons)(PAIRS) == [1.0, None, 0.0]
    assert reasons == {reason: 1}


def test_a_missing_verdict_has_one_reason_and_idle_talk_costs_none(tmp_path):
    said, reasons = tmp_path / "said", collections.Counter()
    judge = command_judge(["cat", str(said)], reasons=reasons)
    said.write_text('hm\n{"id": 9}\n{"id": 1}\n')
    assert judge(PAIRS) == [None, None, None]
    assert reasons == {"not a JSON object": 1, "unknown id": 1, "no preference from 0 to 1": 1}
    reasons.clear()
    said.write_text("loading\n" + "".join(f'{{"id": {i}, "preference": 1}}\n' for i in range(3)))
    assert judge(PAIRS) == [1.0, 1.0, 1.0] and not reasons


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["no-such-program-here"], "cannot be started: No such file"),
        ([os.devnull], "cannot be started: Permission denied"),
        ([sys.executable, "-c", "import sys; sys.exit(3)"], "status 3: it says nothing of why"),
        ([sys.executable, "-c", "raise ValueError('no key')"], "status 1: ValueError: no key"),
        (["false"], "status 1"),
    ],
)
def test_a_program_that_breaks_is_one_sentence(command, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        command_judge(command)([("p" * 100_000, "a", "b")] * 20)
    assert "\n" not in str(raised.value)


def test_a_program_that_answers_and_then_fails_is_not_believed():
    with pytest.raises(ValueError, match="status 1"):
        program("for p in pairs: print(json.dumps({'id': p['id'], 'preference': 1}))\nsys.exit(1)")(PAIRS)


def test_a_program_that_hangs_is_ended_with_all_that_it_started(tmp_path):
    beats = tmp_path / "beats"
    body = "subprocess.Popen(['sh', '-c', 'while :; do echo >> $0; sleep 0.05; done', sys.argv[1]]); time.sleep(60)"
    start = time.monotonic()
    with pytest.raises(ValueError, match="did not end within 2 seconds"):
        command_judge([sys.executable, "-c", READS + body, str(beats)], timeout=2.0)(PAIRS)
    assert time.monotonic() - start < 20
    size = beats.stat().st_size
    time.sleep(0.5)
    assert 0 < size == beats.stat().st_size


def test_many_pairs_pass_through_the_pipes():
    judge = program("for p in pairs: print(json.dumps({'id': p['id'], 'preference': 1, 'why': p['first']}))")
    assert judge([("p", "x" * 1000, "y")] * 2000) == [1.0] * 2000


@pytest.mark.parametrize("command", ["python judge.py", []])
def test_a_command_is_a_list_of_words(command):
    with pytest.raises(ValueError, match="is no list of words"):
        command_judge(command)


def test_the_last_mark_is_the_verdict():
    said = iter(["[[A]] at first sight, but no: [[B]]", "[[A]]", "they tie: [[C]]", "[[D]]", "A", "[A]", "[[a]]", ""])
    judge = rubric_judge(lambda prompts: [next(said) for _ in prompts])
    assert judge([("p", "a", "b")] * 8) == [0.0, 1.0, 0.5, None, None, None, None, None]


def test_a_model_that_says_nothing_is_counted():
    reasons = collections.Counter()
    judge = rubric_judge(lambda asked: ["[[A]]", None, "[[D]]"], reasons=reasons)
    assert judge(PAIRS) == [1.0, None, None] and reasons == {"too long for the judge": 1, "no [[A]], [[B]] or [[C]]": 1}


def test_what_is_filled_in_is_not_read_as_a_blank():
    asked = []
    rubric_judge(lambda prompts: asked.extend(prompts) or [""], "{prompt}|{first}|{second}|{other} \\1")(
        [("{first}", "{second} \\1", "{prompt}")]
    )
    assert asked == ["{first}|{second} \\1|{prompt}|{other} \\1"]
    assert all(RUBRIC.count(word) == 1 for word in ("{prompt}", "{first}", "{second}", "[[A]]", "[[B]]", "[[C]]"))


def test_a_model_that_finds_the_better_answer_by_its_words():
    def generate(prompts):
        return ["[[A]]" if "good" in prompt.split("Answer A:")[1].split("Answer B:")[0] else "[[B]]" for prompt in prompts]

    found = win_rate(judge_both_orders(["p"] * 3, ["good"] * 3, ["bad"] * 3, rubric_judge(generate)))
    assert (found.win_rate.mean, found.disagreement, found.shown_first) == (1.0, 0.0, 0.5)


def test_rewards_are_compared_and_asked_for_once():
    asked = []

    def score(answers):
        asked.extend(answers)
        return np.array([{"bad": -1.0, "good": 2.0, "lost": math.nan, "huge": math.inf}[answer] for _, answer in answers])

    pairs = [
        ("p", "good", "bad"),
        ("p", "bad", "good"),
        ("p", "bad", "bad"),
        ("p", "lost", "bad"),
        ("p", "good", "huge"),
        ("q", "good", "bad"),
    ]
    reasons = collections.Counter()
    assert reward_judge(score, reasons)(pairs) == [1.0, 0.0, 0.5, None, None, 1.0] and list(reasons.values()) == [2]
    assert len(asked) == len(set(asked)) == 6


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: rubric_judge(list, "{first} or {second}?"), "has no {prompt}"),
        (lambda: rubric_judge(lambda prompts: ["[[A]]"])([("p", "a", "b")] * 2), "gave 1 texts for 2"),
        (lambda: reward_judge(lambda answers: [1.0])([("p", "a", "b")]), "gave 1 rewards for 2"),
    ],
)
def test_a_mistake_is_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
