"""Learning-rate schedules: a warm-up, then one of five shapes; functions of the number of updates taken before this one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxllm.training.choices import check_options, choose

Schedule = Callable[[jax.Array | int], jax.Array]
Shape = Callable[..., jax.Array]


def constant(step: jax.Array, *, warmup: int, steps: int) -> jax.Array:
    """1 for ever."""
    return jnp.ones_like(step, jnp.float32)


def cosine(step: jax.Array, *, warmup: int, steps: int, final: float = 0.1) -> jax.Array:
    """Half a cosine from 1 to `final` (SGDR, arXiv 1608.03983, eq. 5, without restarts; GPT-3 ends at 0.1)."""
    return final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * _progress(step, warmup, steps)))


def linear(step: jax.Array, *, warmup: int, steps: int, final: float = 0.0) -> jax.Array:
    """A straight line from 1 to `final` (to zero: arXiv 2502.15938)."""
    return 1 - (1 - final) * _progress(step, warmup, steps)


def wsd(step: jax.Array, *, warmup: int, steps: int, final: float = 0.0, decay: float = 0.2, shape: str = "sqrt") -> jax.Array:
    """Warm-up, stable, decay: 1, then over the last `decay` of all steps down to `final`.

    Args:
      step: float32.
      warmup: see `make_schedule`.
      steps: all steps of the run.
      final: where it ends, as a share of the peak.
      decay: the share of `steps` that decays (MiniCPM, arXiv 2404.06395: 0.1; arXiv 2405.18392: 0.2).
      shape: "sqrt" (1 - sqrt, the best of arXiv 2405.18392, section 4) or "linear".
    """
    progress = _progress(step, max(warmup, round(steps * (1 - decay))), steps)
    return 1 - (1 - final) * choose({"sqrt": jnp.sqrt, "linear": lambda x: x}, shape, "shape of the wsd schedule")(progress)


def inverse_sqrt(step: jax.Array, *, warmup: int, steps: int) -> jax.Array:
    """sqrt(warmup / step) after the warm-up (arXiv 1706.03762, eq. 3); it does not depend on `steps`."""
    return jnp.sqrt(max(warmup, 1) / jnp.maximum(step + 1, max(warmup, 1)))


SCHEDULES: dict[str, Shape] = {"constant": constant, "cosine": cosine, "linear": linear, "wsd": wsd, "inverse_sqrt": inverse_sqrt}
DEPENDS_ON_STEPS = ("cosine", "linear", "wsd")  # a longer run with one of these is another run from its first decayed step on


def depends_on_steps(name: str, warmup: float = 0) -> bool:
    """Whether a schedule changes with the length of the run: by its shape, or by a warm-up that is a share of it."""
    return name in DEPENDS_ON_STEPS or 0 < warmup < 1


def make_schedule(name: str, peak: float, *, steps: int, warmup: float = 0, **options) -> Schedule:
    """The learning rate of update number `step`, counted from 0.

    The warm-up rises in `warmup` equal stairs and its first update is already one stair up, so that no update is wasted on a rate of 0.
    The decay starts at the first update after the warm-up and would reach its end at update `steps`, one after the last.

    Args:
      name: a row of `SCHEDULES`.
      peak: the highest learning rate.
      steps: updates in the run.
      warmup: updates of warm-up; below 1, a share of `steps`.
      **options: the shape's own (`final`, as a share of the peak; `decay` and `shape` for wsd).

    Raises:
      ValueError: an unknown name or option, or a warm-up longer than the run.
    """
    shape = choose(SCHEDULES, name, "schedule")
    check_options(shape, options, f"The schedule {name!r}", fixed=("step", "warmup", "steps"))
    rises = round(warmup * steps) if 0 < warmup < 1 else warmup
    if not 0 <= rises <= steps or rises != int(rises):
        raise ValueError(
            f"A warm-up of {warmup} steps does not fit a run of {steps}. Give a whole number from 0 to {steps}, or a share between 0 and 1."
        )

    def schedule(step: jax.Array | int) -> jax.Array:
        now = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum((now + 1) / max(rises, 1), 1.0)
        return peak * rise * jnp.where(now < rises, 1.0, shape(now, warmup=rises, steps=steps, **options))

    return schedule


def _progress(step: jax.Array, start: int, end: int) -> jax.Array:
    return jnp.clip((step - start) / max(end - start, 1), 0.0, 1.0)
