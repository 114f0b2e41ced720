"""Learning from single completions, each called desirable or not: KTO and its family, and the baseline it takes from mismatched pairs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid, sigmoid

from jaxllm.losses.terms import Report, Term, Terms, trained, weighted_sum


def kto(
    log_ratios: jax.Array,
    desirable: jax.Array,
    baseline: jax.Array | float,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> jax.Array:
    """w_D (1 - s(beta (r - z0))) of the desirable, w_U (1 - s(beta (z0 - r))) of the others (Ethayarajh et al., arXiv 2402.01306).

    Keep w_D * n_D / (w_U * n_U) between 1 and 4/3, says the paper.

    Args:
      log_ratios: float [B], r = log pi(y | x) - log pi_ref(y | x), sums over the completion's tokens.
      desirable: bool [B].
      baseline: scalar z0, from `kto_baseline` over the whole batch, before it is split.
    """
    value = beta * (log_ratios - jax.lax.stop_gradient(baseline))
    return jnp.where(desirable, desirable_weight * sigmoid(-value), undesirable_weight * sigmoid(value))


def bco(log_ratios: jax.Array, desirable: jax.Array, baseline: jax.Array | float, *, beta: float = 0.1) -> jax.Array:
    """-log s(r - shift) of the desirable, -log s(shift - r) of the others, r = beta * log-ratio (arXiv 2404.04656).

    The baseline is the shift: half the sum of the mean rewards (with beta) of the two kinds, a running mean that the state keeps.
    """
    value = beta * log_ratios - jax.lax.stop_gradient(baseline)
    return -log_sigmoid(jnp.where(desirable, value, -value))


def apo_zero(log_ratios: jax.Array, desirable: jax.Array, baseline: jax.Array | float = 0.0, *, beta: float = 0.1) -> jax.Array:
    """1 - s(beta r) of the desirable, s(beta r) of the others: no baseline is read (arXiv 2408.06266, eq. 7, unpaired)."""
    return sigmoid(jnp.where(desirable, -beta, beta) * log_ratios)


LOSSES: dict[str, Callable[..., jax.Array]] = {"kto": kto, "bco": bco, "apo_zero": apo_zero}


def unpaired(
    log_probs: jax.Array,
    reference: jax.Array,
    desirable: jax.Array,
    baseline: jax.Array | float,
    weights: jax.Array,
    loss: Callable[..., jax.Array] = kto,
    **options: Any,
) -> tuple[Terms, Report]:
    """The loss of single completions.

    Args:
      log_probs: float [B], log pi(y | x), summed over the completion's tokens.
      reference: float [B], the same under the reference policy.
      desirable: bool [B].
      baseline: scalar, see the loss.
      weights: float [B], 0 where a row is dropped or padding.
      loss: from `LOSSES`.
      options: of the loss.

    Returns:
      terms: "preference".
      report: "reward_desirable" and "reward_undesirable", beta * log-ratio; totals of all in `unpaired_totals`.
    """
    ratios = trained(log_probs, weights) - jax.lax.stop_gradient(trained(reference, weights))
    rewards = options.get("beta", 0.1) * jax.lax.stop_gradient(ratios)
    return {"preference": Term(weighted_sum(loss(ratios, desirable, baseline, **options), weights))}, {
        "reward_desirable": weighted_sum(rewards, weights * desirable),
        "reward_undesirable": weighted_sum(rewards, weights * ~desirable),
    }


def unpaired_totals(weights: jax.Array, desirable: jax.Array) -> Report:
    """What the sums of `unpaired` are divided by: the weight of the whole batch, and of its two kinds of rows."""
    good = jnp.sum(weights * desirable, dtype=jnp.float32)
    total = jnp.sum(weights, dtype=jnp.float32)
    return {"preference": total, "reward_desirable": good, "reward_undesirable": total - good}


def kto_baseline(log_probs: jax.Array, reference: jax.Array, weights: jax.Array) -> jax.Array:
    """z0 = max(0, mean of log pi(y' | x) - log pi_ref(y' | x)) over mismatched pairs (KTO, arXiv 2402.01306); no gradient.

    Args:
      log_probs: float [B] of the WHOLE batch, each prompt with another prompt's completion (`mismatched`).
      reference: float [B], of the same pairs.
      weights: float [B].
    """
    mean = weighted_sum(trained(log_probs, weights) - trained(reference, weights), weights) / jnp.maximum(jnp.sum(weights), 1e-9)
    return jax.lax.stop_gradient(jnp.maximum(mean, 0.0))


def mismatched(prompts: np.ndarray) -> np.ndarray:
    """For each row of a batch the row whose completion it borrows for KTO's baseline: always another prompt's, each lent once.

    Args:
      prompts: int [B] on the host, equal where two rows have the same prompt.

    Returns:
      int [B], a permutation.

    Raises:
      ValueError: one prompt has more than half of the rows, so that some would keep their own; so has a batch of one.
    """
    prompts = np.asarray(prompts)
    order = np.argsort(prompts, kind="stable")
    most = int(np.unique(prompts, return_counts=True)[1].max(initial=0))
    if not len(prompts) or 2 * most > len(prompts):
        raise ValueError(
            f"KTO's baseline needs completions of other prompts, but {most} of {len(prompts)} rows have one prompt. "
            "Use a larger batch_size, or fewer completions of a prompt in a batch."
        )
    lent = np.empty_like(order)
    lent[order] = np.roll(order, -most)  # sorted by prompt, `most` rows further on stands another one
    return lent
