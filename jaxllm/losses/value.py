"""A critic: its loss, clipped as in PPO, and how much of the returns it explains."""

import jax
import jax.numpy as jnp

from jaxllm.losses.terms import Report, Term, Terms, trained, weighted_sum


def value_loss(
    values: jax.Array, old_values: jax.Array, returns: jax.Array, weights: jax.Array, *, clip: float | None = 0.2, coefficient: float = 1.0
) -> tuple[Terms, Report]:
    """0.5 max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2) (PPO as in Ziegler et al., arXiv 1909.08593, and OpenAI's baselines).

    Args:
      values: float [B, T], with the gradient.
      old_values: float [B, T], at the first of the updates that the samples serve.
      returns: float [B, T].
      weights: float [B, T], of `policy.token_weights`.
      clip: how far V may move from V_old for nothing; None: the squared error alone.
      coefficient: of the term, usually 0.1 with language models and 0.5 elsewhere.

    Returns:
      terms: "value".
      report: "value_clipped", the sum over tokens where the clipped one is the larger. Totals in `value_totals`.
    """
    values, old_values, returns = (trained(array, weights) for array in (values, old_values, returns))
    old_values, returns = jax.lax.stop_gradient(old_values), jax.lax.stop_gradient(returns)
    plain = jnp.square(values - returns)
    if clip is None:
        return {"value": Term(0.5 * weighted_sum(plain, weights), coefficient)}, {"value_clipped": jnp.zeros(())}
    held = jnp.square(old_values + jnp.clip(values - old_values, -clip, clip) - returns)
    share = jnp.sum((held > plain) & (weights != 0), dtype=jnp.float32)
    return {"value": Term(0.5 * weighted_sum(jnp.maximum(plain, held), weights), coefficient)}, {"value_clipped": share}


def value_totals(weights: jax.Array, shares: jax.Array) -> Report:
    """What the sums of `value_loss` are divided by: the shares of the whole batch (`policy.token_weights`), and its tokens."""
    return {"value": jnp.sum(shares, dtype=jnp.float32), "value_clipped": jnp.sum(weights != 0, dtype=jnp.float32)}


def explained_variance(values: jax.Array, returns: jax.Array, mask: jax.Array) -> jax.Array:
    """1 - Var(R - V) / Var(R) over the mask of the WHOLE batch: 1 is perfect, 0 no better than the mean; 0 if all returns are equal."""

    def variance(x):
        x, number = trained(x, mask), jnp.maximum(jnp.sum(mask != 0), 1)
        mean = jnp.sum(x) / number
        return jnp.sum(jnp.where(mask != 0, jnp.square(x - mean), 0.0)) / number

    whole = variance(returns)
    return jnp.where(whole > 0, 1 - variance(trained(returns, mask) - trained(values, mask)) / jnp.where(whole > 0, whole, 1.0), 0.0)
