"""The critic's loss and its explained variance against numpy."""

import jax
import numpy as np
import pytest

from jaxllm.losses.value import explained_variance, value_loss, value_totals

rng = np.random.default_rng(7)
V, OLD, R = (rng.normal(size=(3, 4)).astype(np.float32) for _ in range(3))
MASK = np.array([[1, 1, 1, 0], [0, 1, 1, 0], [1, 1, 1, 1]], np.float32)


@pytest.mark.parametrize("clip", [None, 0.3])
def test_equals_numpy(clip):
    terms, report = value_loss(V, OLD, R, MASK, clip=clip, coefficient=0.1)
    held = V if clip is None else OLD + np.clip(V - OLD, -clip, clip)
    expected = 0.5 * np.maximum((V - R) ** 2, (held - R) ** 2)
    totals = value_totals(MASK, MASK.sum(1))
    assert terms["value"].coefficient == 0.1
    assert float(terms["value"].sum / totals["value"]) == pytest.approx(np.average(expected, weights=MASK), rel=1e-5)
    assert float(report["value_clipped"]) == np.sum(MASK * ((held - R) ** 2 > (V - R) ** 2))


def test_a_value_that_has_moved_far_enough_towards_the_return_has_no_gradient():
    grad = jax.grad(lambda v: value_loss(v, np.zeros(2), np.ones(2), np.ones(2), clip=0.2)[0]["value"].sum)(
        np.array([0.5, 0.1], np.float32)
    )
    np.testing.assert_allclose(grad, [0.0, -0.9], rtol=1e-6)


def test_explained_variance_equals_numpy():
    there = MASK > 0
    assert float(explained_variance(V, R, MASK)) == pytest.approx(1 - np.var((R - V)[there]) / np.var(R[there]), rel=1e-5)
    assert float(explained_variance(R, R, MASK)) == 1.0
    assert float(explained_variance(V, np.ones_like(R), MASK)) == 0.0
