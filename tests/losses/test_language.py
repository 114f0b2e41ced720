"""The weighted cross-entropy against ten lines of numpy, and its gradients where they matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.losses.language import cross_entropy, cross_entropy_totals


def draw(seed=0, shape=(3, 5)):
    rng = np.random.default_rng(seed)
    log_probs = -rng.exponential(size=shape).astype(np.float32)
    log_z = rng.normal(size=shape).astype(np.float32) * 3
    weights = rng.choice([0.0, 1.0, 0.25], size=shape).astype(np.float32)
    correct = rng.random(shape) < 0.5
    return log_probs, log_z, weights, correct


def test_equals_numpy():
    log_probs, log_z, weights, correct = map(jnp.asarray, draw())
    terms, report = cross_entropy(log_probs, log_z, weights, correct=correct, z_loss=1e-2)
    totals = cross_entropy_totals(weights)
    mean = {name: float(term.sum) / float(totals[name]) for name, term in terms.items()}
    assert mean["cross_entropy"] == pytest.approx(np.average(-log_probs, weights=weights), rel=1e-6)
    assert mean["z_loss"] == pytest.approx(np.average(log_z**2, weights=weights), rel=1e-6)
    assert float(report["accuracy"] / totals["accuracy"]) == pytest.approx(np.average(correct, weights=weights), rel=1e-6)
    assert terms["z_loss"].coefficient == 1e-2


def test_without_z_loss_there_is_no_such_term():
    log_probs, log_z, weights, _ = draw()
    terms, report = cross_entropy(log_probs, log_z, weights)
    assert set(terms) == {"cross_entropy"} and report == {}


@pytest.mark.parametrize("bad", [-np.inf, np.nan])
def test_masked_tokens_have_no_value_and_no_gradient(bad):
    log_probs, log_z, weights, _ = draw()
    log_probs = np.where(weights == 0, bad, log_probs).astype(np.float32)
    log_z = np.where(weights == 0, bad, log_z).astype(np.float32)

    def loss(log_probs, log_z):
        terms, _ = cross_entropy(log_probs, log_z, weights, z_loss=1.0)
        return sum(term.sum * term.coefficient for term in terms.values())

    value, (by_log_probs, by_log_z) = jax.value_and_grad(loss, argnums=(0, 1))(log_probs, log_z)
    assert np.isfinite(value)
    np.testing.assert_array_equal(by_log_probs, -weights)
    np.testing.assert_allclose(by_log_z, 2 * weights * np.where(weights == 0, 0, log_z), rtol=1e-6)


def test_gradient_is_finite_at_the_extremes():
    grad = jax.grad(lambda x: cross_entropy(x, 1e4 * x, jnp.ones_like(x), z_loss=1e-4)[0]["z_loss"].sum)(jnp.full((2, 2), -1e8))
    assert np.isfinite(grad).all()


def test_low_precision_inputs_are_summed_in_float32():
    log_probs = jnp.full((1, 4096), -1.0, jnp.bfloat16)
    terms, _ = cross_entropy(log_probs, log_probs, jnp.ones((1, 4096), jnp.float32))
    assert terms["cross_entropy"].sum.dtype == jnp.float32 and float(terms["cross_entropy"].sum) == 4096


def test_a_fused_objective_keeps_the_terms_and_has_the_whole_gradient():
    log_probs, log_z, weights, _ = draw()

    def terms(fused):
        return cross_entropy(log_probs, log_z, weights, z_loss=1e-2, fused=fused)[0]

    objective = lambda terms: sum(term.sum * term.coefficient for term in terms.values())  # noqa: E731
    plain = terms(None)
    assert {name: float(term.sum) for name, term in terms(objective(plain)).items()} == pytest.approx(
        {name: float(term.sum) for name, term in plain.items()}, rel=1e-6
    )
    assert float(jax.grad(lambda fused: objective(terms(fused)))(objective(plain))) == 1.0
