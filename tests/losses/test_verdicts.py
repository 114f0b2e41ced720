"""Ratings, verdicts, rules and steps against numpy."""

import numpy as np
import pytest

from jaxllm.losses.verdicts import binary, multiclass, rating, step_weights, totals

rng = np.random.default_rng(3)
LOGITS, TARGETS = rng.normal(size=(4, 5)).astype(np.float32), rng.random((4, 5)).round(1).astype(np.float32)
WEIGHTS = rng.choice([0.0, 1.0, 0.5], size=(4, 5)).astype(np.float32)


def test_rating_equals_numpy():
    terms, report = rating(LOGITS, TARGETS, WEIGHTS)
    assert float(terms["rating"].sum / totals(WEIGHTS)["rating"]) == pytest.approx(
        np.average((LOGITS - TARGETS) ** 2, weights=WEIGHTS), rel=1e-5
    )
    assert float(report["absolute_error"]) == pytest.approx(np.sum(WEIGHTS * abs(LOGITS - TARGETS)), rel=1e-5)


def test_binary_equals_numpy_for_soft_verdicts_of_rules():
    p = 1 / (1 + np.exp(-LOGITS))
    nats = -TARGETS * np.log(p) - (1 - TARGETS) * np.log(1 - p)
    terms, report = binary(LOGITS, TARGETS, WEIGHTS)
    assert float(terms["verdict"].sum / totals(WEIGHTS)["verdict"]) == pytest.approx(np.average(nats, weights=WEIGHTS), rel=1e-5)
    right = (TARGETS == 0.5) | ((p > 0.5) == (TARGETS > 0.5))
    assert float(report["accuracy"]) == pytest.approx(np.sum(WEIGHTS * right), rel=1e-6)


def test_multiclass_equals_numpy():
    labels, weights = (
        np.array([0, 4, 2, 99]),
        np.array([1, 2, 0.5, 0], np.float32),
    )  # a label that is none is not read where the weight is 0
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    terms, report = multiclass(LOGITS, labels, weights)
    assert float(terms["verdict"].sum) == pytest.approx(-np.sum(weights[:3] * np.log(p[np.arange(3), labels[:3]])), rel=1e-5)
    assert float(report["accuracy"]) == np.sum(weights * (LOGITS.argmax(-1) == labels))


def test_steps_weigh_the_same_or_solutions_do():
    ends = np.array([[0, 1, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(step_weights(ends), ends)
    rows = np.asarray(step_weights(ends, over="row"))
    np.testing.assert_allclose(rows.sum(1), [1, 1, 0], rtol=1e-6)
    assert float(totals(rows)["verdict"]) == pytest.approx(2.0)
    with pytest.raises(ValueError, match=r"solution.*step, row"):
        step_weights(ends, over="solution")
