"""Wins are counted in both orders, places and lengths have their share taken out, and what was not judged is not scored."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.evaluation.win_rate import Judged, _logistic_regression, judge_both_orders, length_controlled, preference, preferences, win_rate

PROMPTS = ["p0", "p1", "p2", "p3"]


def longer(pairs):
    return [0.5 if len(a) == len(b) else float(len(a) > len(b)) for _, a, b in pairs]


def test_by_hand():
    judged = judge_both_orders(PROMPTS, ["aaa", "aa", "a", "aa"], ["a", "a", "aaa", "aa"], longer)
    found = win_rate(judged)
    assert preferences(judged).tolist() == [1, 1, 0, 0.5]
    assert (found.win_rate.mean, found.ties, found.disagreement, found.shown_first) == (0.625, 0.25, 0.0, 0.5)
    assert found.win_rate.low < 0.625 < found.win_rate.high and found.win_rate[4:] == (4, 0)


def test_a_judge_that_looks_at_the_place_alone():
    found = win_rate(judge_both_orders(PROMPTS, list("abcd"), list("efgh"), lambda pairs: [1.0] * len(pairs)))
    assert (found.win_rate.mean, found.ties, found.disagreement, found.shown_first) == (0.5, 1.0, 1.0, 1.0)
    soft = win_rate(judge_both_orders(PROMPTS, list("abcd"), list("efgh"), lambda pairs: [0.7] * len(pairs)))
    assert (soft.win_rate.mean, soft.ties, soft.disagreement, soft.shown_first) == pytest.approx((0.5, 1.0, 1.0, 0.7))


def test_every_pair_is_shown_in_both_orders_in_one_call():
    calls = []
    judge_both_orders(["p", "q"], ["a", "b"], ["c", "d"], lambda pairs: calls.append(pairs) or [0.5] * len(pairs))
    assert calls == [[("p", "a", "c"), ("q", "b", "d"), ("p", "c", "a"), ("q", "d", "b")]]


def test_nonsense_is_counted_and_never_scored():
    verdicts = iter([1.0, None, 1.5, math.nan, 0.0, 0.0, 0.0, 0.0])
    judged = judge_both_orders(PROMPTS, list("abcd"), list("efgh"), lambda pairs: [next(verdicts) for _ in pairs])
    assert preferences(judged).tolist() == pytest.approx([1.0, math.nan, math.nan, math.nan], nan_ok=True)
    found = win_rate(judged)
    assert (found.win_rate.mean, found.win_rate.num_scored, found.win_rate.num_missing) == (1.0, 1, 3)
    nothing = win_rate(judge_both_orders(PROMPTS, list("abcd"), list("efgh"), lambda pairs: [None] * len(pairs)))
    assert math.isnan(nothing.win_rate.mean) and math.isnan(nothing.ties) and nothing.win_rate.num_missing == 4


def test_what_a_verdict_may_be():
    assert [preference(x) for x in (0, 1.0, np.float32(0.25), np.array(0.5))] == [0, 1, 0.25, 0.5]
    assert all(math.isnan(preference(x)) for x in (None, True, "first", "0.5", math.nan, -0.01, 10**400, [1.0], 1j))


@given(st.lists(st.tuples(st.sampled_from([None, 0, 0.3, 0.5, 1]), st.sampled_from([None, 0, 0.3, 0.5, 1])), min_size=1, max_size=12))
def test_the_sets_may_change_places(verdicts):
    n = len(verdicts)
    sets = [f"{i}" for i in range(n)], ["a"] * n, ["b"] * n

    def judge(pairs):
        return [verdicts[int(p)][a == "b"] for p, a, _ in pairs]

    one, other = (win_rate(judge_both_orders(sets[0], *both, judge)) for both in (sets[1:], sets[:0:-1]))
    assert other[1:] == pytest.approx(one[1:], nan_ok=True)
    assert other.win_rate.mean == pytest.approx(1 - one.win_rate.mean, nan_ok=True)
    assert (other.win_rate.num_missing, other.win_rate.error) == (one.win_rate.num_missing, pytest.approx(one.win_rate.error, nan_ok=True))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: judge_both_orders(PROMPTS, ["a"], list("abcd"), longer), "4 prompts, 1 and 4 answers"),
        (lambda: judge_both_orders(PROMPTS, list("abcd"), list("abcd"), lambda pairs: [1.0]), "gave 1 verdicts on 8 pairs"),
        (lambda: length_controlled([1, 0], [5, 6], [3, 4]), r"is \+2 long"),
        (lambda: length_controlled([1, 0], [5], [3, 4]), "1 and 2 lengths"),
        (lambda: length_controlled([1, 2], [5, 6], [3, 3]), "A preference is 2"),
        (lambda: length_controlled([1, 0], [5, 6], [3, 3], ridge=0), "A ridge of 0"),
    ],
)
def test_a_mistake_is_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def planted(quality, length, pairs=4000, seed=0):
    """Verdicts drawn from logistic(quality + length * feature) on answers of which the first are longer by far on the whole."""
    draw = np.random.default_rng(seed)
    first, second = draw.integers(100, 2000, pairs), draw.integers(50, 1200, pairs)
    feature = np.tanh((first - second) / (first - second).std())
    return (draw.random(pairs) < 1 / (1 + np.exp(-quality - length * feature))).astype(float), first, second


def test_where_length_alone_decides_nothing_is_left():
    wins, first, second = planted(0.0, 3.0)
    found = length_controlled(wins, first, second)
    assert wins.mean() > 0.65
    assert found.low < 0.5 < found.high and abs(found.win_rate - 0.5) < 0.03 and found.length == pytest.approx(3.0, rel=0.1)


def test_where_quality_alone_decides_all_is_left():
    wins, first, second = planted(1.0, 0.0)
    found = length_controlled(wins, first, second)
    assert found.win_rate == pytest.approx(1 / (1 + math.exp(-1)), abs=0.02) and abs(found.length) < 0.15
    assert found.win_rate == pytest.approx(wins.mean(), abs=0.02)


def test_both_are_told_apart_and_the_interval_holds_the_truth_as_often_as_it_says():
    truth = 1 / (1 + math.exp(0.5))
    held = [x.low < truth < x.high for x in (length_controlled(*planted(-0.5, 1.5, 200, seed), level=0.9) for seed in range(300))]
    assert 0.85 < np.mean(held) < 0.95


def test_newton_finds_where_the_gradient_is_nothing():
    wins, first, second = planted(0.5, 1.0, 50)
    features = np.stack([np.ones(50), (first - second) / 300.0], axis=1)
    for ridge in (0.01, 5.0):
        weights, _ = _logistic_regression(features, wins, ridge)
        assert features.T @ (1 / (1 + np.exp(-features @ weights)) - wins) + ridge * weights == pytest.approx(np.zeros(2), abs=1e-8)
    counts = np.array([1.0, 1, 1, 0])  # without a length it is the log-odds of the mean
    assert _logistic_regression(np.ones((4, 1)), counts, 1e-9)[0][0] == pytest.approx(math.log(3))


def test_what_is_not_judged_is_left_out_of_the_regression():
    wins, first, second = planted(0.5, 1.0, 60)
    gaps = [*wins, None, math.nan]
    assert length_controlled(gaps, [*first, 9, 9], [*second, 9000, 9]) == length_controlled(wins, first, second)
    assert length_controlled([None], [1], [2]).num_judged == 0


def test_the_ends():
    always = length_controlled(np.ones(100), range(100), [50] * 100)
    assert 0.99 < always.win_rate < 1 and math.isfinite(always.quality)
    equal = length_controlled([1, 1, 1, 0], [7] * 4, [7] * 4)
    assert equal.win_rate == pytest.approx(0.75, abs=0.01) and equal.length == 0
    wins, first, second = planted(0.5, 1.0, 60)
    assert length_controlled(1 - wins, second, first).win_rate == pytest.approx(1 - length_controlled(wins, first, second).win_rate)


def test_pairs_of_one_prompt_are_drawn_together():
    draw = np.random.default_rng(0)
    by_prompt = draw.integers(2, size=40).astype(float)
    once = Judged(by_prompt, by_prompt)
    many = Judged(np.repeat(by_prompt, 5), np.repeat(by_prompt, 5))
    groups = np.repeat(np.arange(40), 5).tolist()
    alone, apart, together = win_rate(once).win_rate, win_rate(many).win_rate, win_rate(many, groups).win_rate
    assert together[:4] == pytest.approx(alone[:4]) and together.num_scored == 200
    assert apart.high - apart.low < 0.6 * (alone.high - alone.low)  # five times the same verdict is no more known
    lengths = draw.integers(1, 9, size=(2, 40))
    one = length_controlled(by_prompt, *lengths.tolist(), ridge=1e-6)
    five = length_controlled(np.repeat(by_prompt, 5), *np.repeat(lengths, 5, axis=1).tolist(), ridge=5e-6, groups=groups)
    assert five[:5] == pytest.approx(one[:5], rel=1e-6)
    with pytest.raises(ValueError, match="2 groups do not go with 40 pairs"):
        win_rate(once, [0, 1])
