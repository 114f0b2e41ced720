"""Losses of reward models against numpy, and probabilities that add up to 1."""

import numpy as np
import pytest

from jaxllm.losses.reward import TIES, bradley_terry, pair_totals, pick_best, ranking, ranking_totals

rng = np.random.default_rng(2)
B, P, K = 6, 3, 4
CHOSEN, REJECTED = (rng.normal(size=B).astype(np.float32) for _ in range(2))
WEIGHTS = np.array([1, 1, 0, 2, 1, 1], np.float32)
TIED = np.array([0, 1, 0, 0, 1, 0], bool)
SCORES = rng.normal(size=(P, K)).astype(np.float32)


def sig(x):
    return 1 / (1 + np.exp(-x))


def mean(term, totals, name="reward"):
    return float(term / totals[name])


def test_bradley_terry_equals_numpy():
    margins = rng.random(B).astype(np.float32)
    terms, report = bradley_terry(CHOSEN, REJECTED, WEIGHTS, margins=margins, centering=0.01)
    totals, d = pair_totals(WEIGHTS), CHOSEN - REJECTED
    assert mean(terms["reward"].sum, totals) == pytest.approx(np.average(-np.log(sig(d - margins)), weights=WEIGHTS), rel=1e-5)
    assert terms["centering"].coefficient == 0.01
    assert mean(terms["centering"].sum, totals) == pytest.approx(np.average((CHOSEN + REJECTED) ** 2, weights=WEIGHTS), rel=1e-5)
    assert mean(report["accuracy"], totals) == pytest.approx(np.average(d > 0, weights=WEIGHTS))
    assert mean(report["margin"], totals, "margin") == pytest.approx(np.average(d, weights=WEIGHTS), rel=1e-5)
    assert mean(report["reward_mean"], totals) == pytest.approx(np.average((CHOSEN + REJECTED) / 2, weights=WEIGHTS), rel=1e-5)


def test_ties_cost_half_a_win_of_each_and_count_in_no_accuracy():
    terms, report = bradley_terry(CHOSEN, REJECTED, WEIGHTS, margins=0.3, tied=TIED)
    totals, d = pair_totals(WEIGHTS, TIED), CHOSEN - REJECTED
    expected = np.where(TIED, -0.5 * np.log(sig(d) * sig(-d)), -np.log(sig(d - 0.3)))
    assert mean(terms["reward"].sum, totals) == pytest.approx(np.average(expected, weights=WEIGHTS), rel=1e-5)
    assert mean(report["accuracy"], totals, "accuracy") == pytest.approx(np.average(d > 0, weights=WEIGHTS * ~TIED))


@pytest.mark.parametrize("ties", ["rao_kupper", "davidson"])
def test_win_loss_and_tie_are_probabilities(ties):
    """Of three outcomes that add up to 1, and as the papers state them."""
    d, no, yes = CHOSEN - REJECTED, np.zeros(B, bool), np.ones(B, bool)
    win, lose, tie = (np.exp(-np.asarray(TIES[ties](x, t, 0.6))) for x, t in ((d, no), (-d, no), (d, yes)))
    np.testing.assert_allclose(win + lose + tie, 1, rtol=1e-5)
    first, second = np.exp(CHOSEN), np.exp(REJECTED)
    stated = {"rao_kupper": first / (first + np.exp(0.6) * second), "davidson": first / (first + second + 0.6 * np.sqrt(first * second))}
    np.testing.assert_allclose(win, stated[ties], rtol=1e-5)


def test_ranking_weighs_a_prompt_once_however_many_answers_it_has():
    ranks = np.array([[0, 1, 2, 3], [1, 0, 1, -1], [2, 2, 2, 2]])
    weights = np.array([1, 2, 1], np.float32)
    terms, report = ranking(SCORES, ranks, weights, centering=0.1)
    totals, sums = ranking_totals(ranks, weights), np.zeros(4)
    for p in range(P):
        pairs = [(i, j) for i in range(K) for j in range(K) if 0 <= ranks[p, i] < ranks[p, j]]
        for i, j in pairs:
            d, s = SCORES[p, i] - SCORES[p, j], SCORES[p, i] + SCORES[p, j]
            sums += weights[p] / len(pairs) * np.array([-np.log(sig(d)), s**2, d > 0, d])
    assert float(totals["reward"]) == 3.0  # the third prompt has nothing to compare
    found = [terms["reward"].sum, terms["centering"].sum, report["accuracy"], report["margin"]]
    np.testing.assert_allclose(found, sums, rtol=1e-5)


def test_ranking_of_two_is_bradley_terry():
    both = np.stack([CHOSEN, REJECTED], axis=1)
    ranked = ranking(both, np.tile([0, 1], (B, 1)), WEIGHTS)[0]["reward"].sum
    assert float(ranked) == pytest.approx(float(bradley_terry(CHOSEN, REJECTED, WEIGHTS)[0]["reward"].sum), rel=1e-6)


def test_pick_best_is_a_softmax_over_the_answers_that_are_there():
    there = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], bool)
    best, weights = np.array([2, 1, 0]), np.array([1, 2, 0], np.float32)
    terms, report = pick_best(SCORES, best, there, weights)
    exp = np.exp(SCORES) * there
    nats = -np.log(exp[np.arange(P), best] / exp.sum(1))
    assert float(terms["reward"].sum) == pytest.approx(np.sum(weights * nats), rel=1e-5)
    assert float(report["accuracy"]) == np.sum(weights * (np.argmax(exp, 1) == best))


@pytest.mark.parametrize("options, words", [({"ties": "bradley"}, "bradley.*half"), ({"ties": "davidson", "tie_width": 0.0}, "0.0")])
def test_errors_name_the_value(options, words):
    with pytest.raises(ValueError, match=words):
        bradley_terry(CHOSEN, REJECTED, WEIGHTS, tied=TIED, **options)
