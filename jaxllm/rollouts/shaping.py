"""From a completion's score to rewards: penalties for length and for no end, the KL from the reference, and who sets its coefficient."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.losses.kl import kl_estimate
from jaxllm.losses.terms import check_choice, trained

MISSING_END = ("set", "subtract")


def missing_end(scores: np.ndarray, ended: np.ndarray, *, value: float, how: str = "set") -> np.ndarray:
    """Scores of completions that never ended, which a reward model has not learned to judge.

    Args:
      scores: [B] of any dtype.
      ended: bool [B], whether the completion ends with a stop token (from the sampler's reason to stop, not from a token's number).
      value: "set": the score they all get, usually -1 ("N+ details", arXiv 2403.17031); "subtract": taken off (TRL's missing_eos_penalty).
      how: "set" or "subtract".

    Returns:
      float64 [B].

    Raises:
      ValueError: another word for `how`.
    """
    check_choice("treatment of missing ends", how, MISSING_END)
    scores = np.asarray(scores, np.float64)
    return np.where(ended, scores, value if how == "set" else scores - value)


def length_penalty(lengths: jax.Array, *, cost: float, free: int = 0) -> jax.Array:
    """-cost a token beyond the first `free` ones, float32 [B]; to be added to the scores."""
    return -cost * jnp.maximum(jnp.asarray(lengths, jnp.float32) - free, 0.0)


def soft_overlong(lengths: jax.Array, *, longest: int, buffer: int) -> jax.Array:
    """0 up to longest - buffer tokens, falling to -1 at the longest and beyond (DAPO, arXiv 2503.14476, eq. 13), float32 [B].

    Raises:
      ValueError: a buffer that does not fit.
    """
    if not 0 < buffer <= longest:
        raise ValueError(f"A buffer of {buffer} tokens does not fit into {longest}. Choose from 1 to {longest}; DAPO: 4096 of 20480.")
    return jnp.clip((longest - buffer - jnp.asarray(lengths, jnp.float32)) / buffer, -1.0, 0.0)


def last_token(mask: jax.Array) -> jax.Array:
    """bool [B, T], True at the last token of the mask in each row; nowhere where the row has none."""
    mask = mask.astype(bool)
    return mask & (jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1] == 1)


def token_rewards(
    scores: jax.Array,
    mask: jax.Array,
    *,
    log_probs: jax.Array | None = None,
    reference: jax.Array | None = None,
    coefficient: float | jax.Array = 0.0,
    estimator: str = "k1",
) -> tuple[jax.Array, jax.Array]:
    """-beta * KL at each token, plus the score at the last one (InstructGPT, arXiv 2203.02155, eq. 2).

    Args:
      scores: [B] of any dtype, of whole completions.
      mask: bool or 0/1 [B, T], the policy's own tokens. A score of a row without one is given to nothing.
      log_probs: float [B, T], at the time of sampling; None with `reference`: no KL.
      reference: float [B, T].
      coefficient: beta, from a controller.
      estimator: from `kl.ESTIMATORS`; k1 makes their sum the log-ratio of the completion.

    Returns:
      rewards: float32 [B, T], 0 outside the mask.
      divergence: float32 [B], the estimate summed over the row's tokens, in nats: what the reward contains, the log shows and the
        controller sees.
    """
    rewards = jnp.where(last_token(mask), jnp.asarray(scores, jnp.float32)[:, None], 0.0)
    if log_probs is None or reference is None:
        return rewards, jnp.zeros(rewards.shape[:1])
    divergence = kl_estimate(trained(log_probs, mask), trained(reference, mask), estimator)
    return rewards - coefficient * divergence, jnp.sum(divergence, axis=1)


def adaptive_kl(
    coefficient: float | jax.Array, divergence: float | jax.Array, episodes: int, *, target: float = 6.0, horizon: float = 10_000.0
) -> jax.Array:
    """The coefficient after a batch: beta (1 + clip(KL / target - 1, -0.2, 0.2) * n / horizon) (Ziegler et al., arXiv 1909.08593, 2.2).

    A pure function: the coefficient lives in the state of the feed and in its checkpoints. A fixed one is a number that nothing changes.

    Args:
      coefficient: beta before.
      divergence: the batch's mean KL of a completion, in nats.
      episodes: n, completions in the batch.
      target: nats that are wanted.
      horizon: episodes; the larger, the slower.
    """
    error = jnp.clip(divergence / target - 1, -0.2, 0.2)
    return jnp.asarray(coefficient, jnp.float32) * (1 + error * episodes / horizon)
