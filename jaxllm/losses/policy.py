"""Policy gradients from sampled tokens: surrogates, what their ratio is of, and what each token weighs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.losses.kl import bounded_exp, k3
from jaxllm.losses.terms import Report, Term, Terms, check_choice, trained, weighted_sum

Surrogate = Callable[..., tuple[jax.Array, Report]]
DENOMINATORS = ("token", "sequence", "constant")


def token_weights(mask: jax.Array, *, over: str = "token", constant: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """What each token weighs and each row adds to the total, so that sum(weight * loss) / sum(share) is the mean that a method means.

    Both are functions of the batch alone: no split into microbatches, and no mesh, changes them.

    Args:
      mask: bool or 0/1 [B, T], the policy's own tokens that are trained.
      over: "token": the mean over all tokens of the batch (DAPO, arXiv 2503.14476; TRL's dapo). "sequence": the mean over rows of the rows'
        means (GRPO, arXiv 2402.03300). "constant": the sum over tokens / constant, its mean over rows (Dr. GRPO, arXiv 2503.20783, the
        longest completion; with constant=1 a row's log-probability counts whole, as in REINFORCE and RLOO).
      constant: for over="constant".

    Returns:
      weights: float32 [B, T], 0 where the mask is.
      shares: float32 [B]. A row without a trained token adds nothing (TRL counts it as a row with a loss of 0).

    Raises:
      ValueError: another denominator; a constant that is not positive.
    """
    check_choice("denominator", over, DENOMINATORS)
    if not constant > 0:
        raise ValueError(f"constant={constant} is not a length. Give the longest completion in tokens, or 1.")
    mask = mask.astype(jnp.float32)
    lengths = jnp.sum(mask, axis=1)
    if over == "token":
        return mask, lengths
    divisor = jnp.maximum(lengths, 1)[:, None] if over == "sequence" else constant
    return mask / divisor, (lengths > 0).astype(jnp.float32)


def policy_totals(weights: jax.Array, shares: jax.Array) -> Report:
    """What the sums of `policy`, `kl_term` and `entropy_term` are divided by: the shares of the whole batch; for the report its tokens."""
    total, tokens = jnp.sum(shares, dtype=jnp.float32), jnp.sum(weights != 0, dtype=jnp.float32)
    reports = ("ratio", "clipped_high", "clipped_low", "clipped_dual", "approx_kl", "approx_kl_k3")
    return dict.fromkeys(("policy", "kl", "entropy"), total) | dict.fromkeys(reports, tokens)


def clip(
    log_probs: jax.Array, log_ratio: jax.Array, advantages: jax.Array, *, low: float = 0.2, high: float = 0.2, dual: float | None = None
):
    """max(-A r, -A clip(r, 1 - low, 1 + high)) (PPO, arXiv 1707.06347, eq. 7; high > low is DAPO's clip-higher, arXiv 2503.14476, eq. 10).

    dual: where A < 0 the loss is at most -dual * A (dual-clip PPO, arXiv 1912.09729; usually 3; TRL calls it delta).
    """
    ratio = bounded_exp(log_ratio)
    plain, clipped = -advantages * ratio, -advantages * jnp.clip(ratio, 1 - low, 1 + high)
    loss = jnp.maximum(plain, clipped)
    report = {"clipped_high": (ratio > 1 + high) & (advantages > 0), "clipped_low": (ratio < 1 - low) & (advantages < 0)}
    if dual is not None:
        report["clipped_dual"] = (ratio > dual) & (advantages < 0)
        loss = jnp.where(advantages < 0, jnp.minimum(loss, -dual * advantages), loss)
    return loss, report


def cispo(log_probs: jax.Array, log_ratio: jax.Array, advantages: jax.Array, *, floor: float = 0.0, cap: float = 5.0):
    """-sg(clip(r, floor, cap)) A log pi: no token loses its gradient (MiniMax-M1, arXiv 2506.13585, eq. 4).

    floor and cap bound the ratio itself: TRL's epsilon_high is our cap, with floor=0; verl's and NeMo-RL's clip are 1 - floor and cap - 1.
    """
    ratio = bounded_exp(log_ratio)
    report = {"clipped_high": ratio > cap, "clipped_low": ratio < floor}
    return -jax.lax.stop_gradient(jnp.clip(ratio, floor, cap)) * advantages * log_probs, report


def reinforce(log_probs: jax.Array, log_ratio: jax.Array, advantages: jax.Array):
    """-A log pi, for samples that serve one update (Williams 1992; RLOO, arXiv 2402.14740; ReMax, arXiv 2310.10505)."""
    return -advantages * log_probs, {}


SURROGATES: dict[str, Surrogate] = {"clip": clip, "cispo": cispo, "reinforce": reinforce}


def token_ratio(log_ratio: jax.Array, mask: jax.Array) -> jax.Array:
    """Each token's own."""
    return log_ratio


def sequence_ratio(log_ratio: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean over the row's tokens, at each of them (GSPO, arXiv 2507.18071, eq. 7)."""
    mean = jnp.sum(log_ratio * mask, axis=1, keepdims=True) / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    return jnp.where(mask, mean, 0.0)


def sequence_token_ratio(log_ratio: jax.Array, mask: jax.Array) -> jax.Array:
    """The value of the row's mean with each token's own gradient, for advantages that differ from token to token (GSPO-token, eq. 14)."""
    return jax.lax.stop_gradient(sequence_ratio(log_ratio, mask) - log_ratio) + log_ratio


LEVELS = {"token": token_ratio, "sequence": sequence_ratio, "sequence_token": sequence_token_ratio}


def policy(
    log_probs: jax.Array,
    advantages: jax.Array,
    weights: jax.Array,
    surrogate: Surrogate = clip,
    *,
    old: jax.Array | None = None,
    level: str = "token",
    importance: jax.Array | None = None,
    **options: Any,
) -> tuple[Terms, Report]:
    """A surrogate whose gradient is that of the expected return.

    Args:
      log_probs: float [B, T], of the sampled tokens, with the gradient. At the temperature at which they were sampled, as all others here.
      advantages: float [B, T], or [B, 1] for all tokens of a row. No gradient goes through them.
      weights: float [B, T], from `token_weights`.
      surrogate: from `SURROGATES`.
      old: float [B, T], the log-probabilities at the first of the updates that the samples serve; None: it is the only one, the ratio 1.
      level: what the ratio is of, from `LEVELS`: "token", "sequence", "sequence_token".
      importance: float [B, T], factors from `importance.importance_weights` for samples of another policy; None: 1.
      options: of the surrogate.

    Returns:
      terms: "policy".
      report: sums over tokens of "ratio" (of the level), "clipped_high", "clipped_low", "clipped_dual" (where the clip ended a gradient),
        "approx_kl" and "approx_kl_k3" (KL(old || new), from the tokens' ratios, k1 and k3). Totals of all in `policy_totals`.

    Raises:
      ValueError: an unknown level.
    """
    check_choice("level of the ratio", level, LEVELS)
    mask = weights != 0
    log_probs = trained(log_probs, weights)
    old = jax.lax.stop_gradient(log_probs if old is None else trained(old, weights))
    advantages = jax.lax.stop_gradient(jnp.asarray(advantages, jnp.float32))
    tokens = log_probs - old
    log_ratio = LEVELS[level](tokens, mask)
    losses, clipped = surrogate(log_probs, log_ratio, jnp.broadcast_to(trained(advantages, mask), mask.shape), **options)
    if importance is not None:
        losses = losses * jax.lax.stop_gradient(trained(importance, weights))
    report = {"ratio": bounded_exp(log_ratio), **clipped, "approx_kl": -tokens, "approx_kl_k3": k3(-tokens)}
    return {"policy": Term(weighted_sum(losses, weights))}, {
        name: jax.lax.stop_gradient(jnp.sum(jnp.where(mask, value, 0), dtype=jnp.float32)) for name, value in report.items()
    }
