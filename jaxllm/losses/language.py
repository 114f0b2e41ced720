"""The weighted cross-entropy that serves every language objective, from log-probabilities per token."""

import jax
import jax.numpy as jnp

from jaxllm.losses.terms import Report, Term, Terms, trained


def cross_entropy(
    log_probs: jax.Array,
    log_z: jax.Array,
    weights: jax.Array,
    *,
    correct: jax.Array | None = None,
    z_loss: float = 0.0,
    fused: jax.Array | None = None,
) -> tuple[Terms, Report]:
    """Cross-entropy of the targets and, if asked for, the z-loss that keeps the logits' normaliser near 1.

    Args:
      log_probs: [B, T] float, log-probability of each target.
      log_z: [B, T] float, log of the softmax's normaliser.
      weights: [B, T] float, 0 where nothing is learned.
      correct: [B, T] bool or float, whether the target is the likeliest token; None: no accuracy in the report.
      z_loss: coefficient of the mean of log_z^2 (PaLM, arXiv 2204.02311, section 5: 1e-4); 0 leaves the term out.
      fused: the same objective as one sum, from `Model.fused_cross_entropy` with the same weights and z_loss. The gradient is then its own,
        whole in the first term; without it the gradient goes through log_probs and log_z.

    Returns:
      terms: "cross_entropy" in nats and, with z_loss, "z_loss"; sums over this microbatch.
      report: "accuracy", the weighted count of correct tokens. The totals of all three are those of `cross_entropy_totals`.
    """
    squares = jnp.sum(weights * jnp.square(trained(log_z, weights))) if z_loss else jnp.zeros(())
    nats = -jnp.sum(weights * trained(log_probs, weights)) if fused is None else fused - z_loss * jax.lax.stop_gradient(squares)
    terms = {"cross_entropy": Term(nats, 1.0)}
    if z_loss:
        terms["z_loss"] = Term(squares if fused is None else jax.lax.stop_gradient(squares), z_loss)
    report = {} if correct is None else {"accuracy": jnp.sum(weights * trained(correct, weights))}
    return terms, report


def cross_entropy_totals(weights: jax.Array) -> Report:
    """What the sums of `cross_entropy` are divided by: the weight of the whole batch, [B, T] -> scalars."""
    total = jnp.sum(weights, dtype=jnp.float32)
    return {"cross_entropy": total, "z_loss": total, "accuracy": total}
