"""A policy of two tokens out of three, small enough to enumerate: 9 completions, their rewards, the exact expectations."""

import jax
import jax.numpy as jnp
import numpy as np

A = 3  # tokens
PATHS = np.array([(first, second) for first in range(A) for second in range(A)])
_rng = np.random.default_rng(4)
REWARDS = jnp.asarray(_rng.normal(size=A * A), jnp.float32)
THETA, REFERENCE = (
    {"first": jnp.asarray(_rng.normal(size=A), jnp.float32), "second": jnp.asarray(_rng.normal(size=(A, A)), jnp.float32)} for _ in range(2)
)


def log_probs(theta):
    """[9, 2], of both tokens of every completion."""
    first, second = jax.nn.log_softmax(theta["first"]), jax.nn.log_softmax(theta["second"])
    return jnp.stack([first[PATHS[:, 0]], second[PATHS[:, 0], PATHS[:, 1]]], axis=1)


def chances(theta):
    """[9], the probability of every completion."""
    return jnp.exp(log_probs(theta).sum(1))


def policy_gradient(rewards=REWARDS):
    """The exact gradient of the expected reward."""
    return jax.grad(lambda theta: jnp.sum(chances(theta) * rewards))(THETA)


def per_state(theta, divergence):
    """The divergence of the next token from the reference's, at the states that THETA visits: their frequencies have no gradient."""
    first, second = (divergence(jax.nn.log_softmax(theta[key]), jax.nn.log_softmax(REFERENCE[key])) for key in ("first", "second"))
    return first + jnp.sum(jax.nn.softmax(THETA["first"]) * second)


def assert_same(found, expected, factor=1.0):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, factor * y, atol=3e-6)
