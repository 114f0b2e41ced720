"""Which updates are skipped: non-finite gradients, and losses or gradient norms far above those of late."""

import dataclasses

import jax
import jax.numpy as jnp

REASONS = ("nonfinite", "loss_spike", "grad_norm_spike")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Guard:
    """What is remembered of the last W finite updates.

    Attributes:
      losses: float32 [W], a ring.
      grad_norms: float32 [W], a ring, before clipping.
      count: int32 scalar, finite updates seen.
      skipped: int32 [3], updates skipped so far, by `REASONS`.
    """

    losses: jax.Array
    grad_norms: jax.Array
    count: jax.Array
    skipped: jax.Array

    @classmethod
    def new(cls, window: int = 128) -> "Guard":
        """An empty memory of `window` updates."""
        if window < 2:
            raise ValueError(f"A window of {window} updates has no spread. Give at least 2.")
        return cls(jnp.zeros(window), jnp.zeros(window), jnp.zeros((), jnp.int32), jnp.zeros(len(REASONS), jnp.int32))


def _spike(value: jax.Array, ring: jax.Array, count: jax.Array, sigma: float) -> jax.Array:
    """Whether a value lies more than `sigma` standard deviations above the ring's mean (a spread under 1 % of the mean counts as 1 %)."""
    window = ring.shape[0]
    seen = jnp.arange(window) < count
    number = jnp.maximum(jnp.sum(seen), 2)
    mean = jnp.sum(jnp.where(seen, ring, 0.0)) / number
    deviation = jnp.sqrt(jnp.sum(jnp.where(seen, jnp.square(ring - mean), 0.0)) / (number - 1))
    far = value - mean > sigma * jnp.maximum(deviation, 0.01 * jnp.abs(mean))
    return far & (count >= max(2, window // 2))


def judge(guard: Guard | None, loss: jax.Array, grad_norm: jax.Array, sigma: float | None) -> tuple[jax.Array, Guard | None]:
    """Decides whether to skip this update.

    A spike is judged against the last W finite updates once W/2 of them are known, and then remembered like any other value, so that a
    lasting change of level is accepted in the end; as in OLMo-core's SkipStepOptimizer (window 128, six standard deviations).

    Args:
      guard: the memory, or None to skip non-finite updates only.
      loss: float32 scalar.
      grad_norm: float32 scalar, the global norm before clipping; it is not finite as soon as one gradient is not.
      sigma: how many standard deviations make a spike; None: spikes are kept.

    Returns:
      skip: bool scalar.
      guard: the memory after this update.
    """
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    if guard is None:
        return ~finite, None
    reasons = [~finite, jnp.zeros((), bool), jnp.zeros((), bool)]
    if sigma is not None:
        reasons[1] = finite & _spike(loss, guard.losses, guard.count, sigma)
        reasons[2] = finite & ~reasons[1] & _spike(grad_norm, guard.grad_norms, guard.count, sigma)
    slot = guard.count % guard.losses.shape[0]
    after = Guard(
        losses=guard.losses.at[slot].set(jnp.where(finite, loss, guard.losses[slot])),
        grad_norms=guard.grad_norms.at[slot].set(jnp.where(finite, grad_norm, guard.grad_norms[slot])),
        count=guard.count + finite,
        skipped=guard.skipped + jnp.stack(reasons).astype(jnp.int32),
    )
    return jnp.any(jnp.stack(reasons)), after
