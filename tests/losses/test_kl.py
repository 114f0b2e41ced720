"""Estimators of the KL, and their gradients against the enumerated divergence of a two-step policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.losses import kl
from tests.losses.tiny_mdp import REFERENCE, THETA, log_probs, per_state

D = np.array([[0.3, -1.2, 0.0], [2.0, 0.7, -0.4]], np.float32)
NUMPY = {"k1": D, "k2": D**2 / 2, "k3": np.exp(-D) - 1 + D}


@pytest.mark.parametrize("name", kl.ESTIMATORS)
def test_equals_numpy(name):
    np.testing.assert_allclose(kl.kl_estimate(D - 1, np.full_like(D, -1), name), NUMPY[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", kl.ESTIMATORS)
def test_finite_at_the_extremes(name):
    value, grad = jax.value_and_grad(lambda d: kl.ESTIMATORS[name](d).sum())(jnp.array([1e4, -1e4, 0.0]))
    assert np.isfinite(value) and np.isfinite(grad).all()


def gradient(estimator, corrected):
    """The expected gradient of the term over the policy's own completions, by enumeration: 9 completions of 2 tokens."""

    def loss(theta):
        logp = log_probs(theta)
        chances = jnp.exp(jax.lax.stop_gradient(logp).sum(1, keepdims=True))
        factor = jnp.exp(logp - jax.lax.stop_gradient(logp)) if corrected else 1.0
        return jnp.sum(chances * factor * kl.kl_estimate(logp, log_probs(REFERENCE), estimator))

    return jax.jit(jax.grad(loss))(THETA)


def true_gradient(divergence):
    return jax.jit(jax.grad(lambda theta: per_state(theta, divergence)))(THETA)


def same(a, b):
    return all(np.allclose(x, y, atol=2e-6) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_gradients_against_the_enumerated_divergence():
    forward = true_gradient(lambda p, q: jnp.sum(jnp.exp(p) * (p - q), axis=-1))
    backward = true_gradient(lambda p, q: jnp.sum(jnp.exp(q) * (q - p), axis=-1))
    assert not same(forward, backward)
    for estimator, corrected in (("k1", True), ("k2", False), ("k3", True)):
        assert same(gradient(estimator, corrected), forward), estimator
    assert same(gradient("k1", False), jax.tree.map(jnp.zeros_like, THETA))
    assert same(gradient("k3", False), backward)


def test_the_term_has_that_gradient():
    """kl_term itself, weighted by each completion's chance."""
    chances = jnp.exp(log_probs(THETA).sum(1, keepdims=True)) * jnp.ones((1, 2))
    for estimator, corrected in (("k1", True), ("k2", False), ("k3", True)):

        def loss(theta, estimator=estimator, corrected=corrected):
            term = kl.kl_term(log_probs(theta), log_probs(REFERENCE), chances, coefficient=0.5, estimator=estimator, corrected=corrected)
            return term[0]["kl"].sum

        assert same(jax.jit(jax.grad(loss))(THETA), gradient(estimator, corrected))


def test_trap_15_what_is_logged_is_what_is_trained():
    """The objective's term over its total is the number in the log: there is one sum, with the estimator and the correction in it."""
    old = D - 0.2
    terms, report = kl.kl_term(D, np.zeros_like(D), np.ones_like(D), coefficient=0.5, estimator="k3", corrected=True, old=old)
    assert float(terms["kl"].sum) == pytest.approx(float(np.sum(np.exp(0.2) * NUMPY["k3"])), rel=1e-5) and "kl" not in report


@pytest.mark.parametrize("estimator, corrected, words", [("k1", False, "k1.*k2"), ("k2", True, "k2"), ("k4", False, "k4.*k1, k2, k3")])
def test_estimators_with_a_wrong_gradient_are_refused(estimator, corrected, words):
    with pytest.raises(ValueError, match=words):
        kl.kl_term(D, D, np.ones_like(D), coefficient=1.0, estimator=estimator, corrected=corrected)


def test_entropy_lowers_the_objective():
    terms, _ = kl.entropy_term(D, np.ones_like(D), coefficient=0.01)
    assert terms["entropy"].coefficient == -0.01 and float(terms["entropy"].sum) == pytest.approx(D.sum(), rel=1e-5)
