"""Factors for tokens that another policy sampled than the one that is trained: an older one, or the sampler's rounding of this one."""

import jax
import jax.numpy as jnp

from jaxllm.losses.kl import bounded_exp
from jaxllm.losses.terms import Report, check_choice, trained

LEVELS = ("token", "sequence", "geometric")
MODES = ("truncate", "mask")


def importance_weights(
    log_probs: jax.Array,
    sampler: jax.Array,
    mask: jax.Array,
    *,
    level: str = "token",
    mode: str = "truncate",
    floor: float = 0.0,
    cap: float = 2.0,
) -> tuple[jax.Array, Report]:
    """w = pi / pi_sampler, held within bounds; no gradient.

    "truncate" at "token" is TIS, min(w, C); "mask" at "token" with floor=0.5, cap=5 is IcePop; "mask" at "geometric" with 0.999 and 1.002
    is the sequence mask of NeMo-RL and verl. Both distributions must be over the same tokens: a sampler's top-p changes its
    log-probabilities.

    Args:
      log_probs: float [B, T], of the sampled tokens in the training graph, before the first update on them.
      sampler: float [B, T], what the sampler said of them.
      mask: bool [B, T].
      level: the ratio of a "token", of the whole "sequence" (a product), or the "geometric" mean over the row's tokens.
      mode: "truncate" to the bounds, or "mask": 0 outside them.
      floor: lower bound.
      cap: upper bound.

    Returns:
      weights: float32 [B, T], 0 outside the mask.
      report: sums over tokens: "importance", "importance_bounded" (outside the bounds), "importance_kept" (not 0: where the share is small,
        most of the batch trains nothing). Totals in `importance_totals`.

    Raises:
      ValueError: an unknown level or mode; bounds that hold nothing.
    """
    check_choice("level of importance weights", level, LEVELS)
    check_choice("mode of importance weights", mode, MODES)
    if not 0 <= floor < cap:
        raise ValueError(f"Importance weights between floor={floor} and cap={cap} are none. Choose 0 <= floor < cap; usual: 0 and 2.")
    mask = mask.astype(bool)
    log_ratio = trained(log_probs, mask) - trained(sampler, mask)
    if level != "token":
        log_ratio = jnp.sum(log_ratio, axis=1, keepdims=True)
        if level == "geometric":
            log_ratio = log_ratio / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    ratio = jnp.broadcast_to(bounded_exp(log_ratio), mask.shape)
    outside = (ratio < floor) | (ratio > cap)
    weights = jnp.clip(ratio, floor, cap) if mode == "truncate" else jnp.where(outside, 0.0, ratio)
    weights = jax.lax.stop_gradient(jnp.where(mask, weights, 0.0))
    shares = {"importance": weights, "importance_bounded": mask & outside, "importance_kept": weights > 0}
    return weights, {name: jnp.sum(value, dtype=jnp.float32) for name, value in shares.items()}


def importance_totals(mask: jax.Array) -> Report:
    """What the report of `importance_weights` is divided by: the tokens of the whole batch."""
    tokens = jnp.sum(mask != 0, dtype=jnp.float32)
    return dict.fromkeys(("importance", "importance_bounded", "importance_kept"), tokens)
