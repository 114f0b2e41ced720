"""Advantages: how much better a token or a completion did than was to be expected. All are of the WHOLE batch, before it is split."""

import jax
import jax.numpy as jnp

from jaxllm.losses.terms import check_choice, trained, weighted_sum


def gae(
    rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    discount: float = 1.0,
    decay: float = 0.95,
    bootstrap: jax.Array | float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16): d_t = R_t + g V_{t+1} - V_t, A_t = d_t + g l A_{t+1}, return = A + V.

    A step is a token of the policy. Tokens outside the mask (an observation from a tool, padding) are no steps: V_{t+1} and A_{t+1} are
    those of the policy's next token behind them, values there are not read, and a reward there belongs to the policy's last token before.

    Args:
      rewards: [B, T] of any dtype.
      values: float [B, T], the critic's of the state in which the token is chosen.
      mask: bool or 0/1 [B, T], the policy's own tokens.
      discount: g, a step's.
      decay: l; 1 is the return minus the value, 0 the one-step error.
      bootstrap: float [B], the value after the last token where an episode was cut off; 0 where it ended.

    Returns:
      advantages, returns: float32 [B, T], 0 outside the mask.
    """
    rewards, mask = jnp.asarray(rewards, jnp.float32), mask.astype(bool)
    values = trained(values, mask)
    first = jnp.broadcast_to(jnp.asarray(bootstrap, jnp.float32), rewards.shape[:1])

    def back(after, now):
        value_after, advantage_after, waiting = after
        reward, value, own = now
        reward = reward + waiting
        advantage = reward + discount * value_after - value + discount * decay * advantage_after
        carry = jnp.where(own, value, value_after), jnp.where(own, advantage, advantage_after), jnp.where(own, 0.0, reward)
        return carry, jnp.where(own, advantage, 0.0)

    zeros = jnp.zeros_like(first)
    _, advantages = jax.lax.scan(back, (first, zeros, zeros), (rewards.T, values.T, mask.T), reverse=True)
    return advantages.T, jnp.where(mask, advantages.T + values, 0.0)


def returns_to_go(rewards: jax.Array, mask: jax.Array, *, discount: float = 1.0) -> jax.Array:
    """The discounted sum of the rewards from each of the policy's tokens on, [B, T]: `gae` without a critic. 0 outside the mask."""
    return gae(rewards, jnp.zeros(rewards.shape), mask, discount=discount, decay=1.0)[0]


def whiten(values: jax.Array, mask: jax.Array, *, shift_mean: bool = True, ddof: int = 0, eps: float = 1e-8) -> jax.Array:
    """(x - mean) / sqrt(variance + eps) over the mask of the whole batch; 0 outside.

    Args:
      values: float, any shape.
      mask: the same shape.
      shift_mean: False keeps the mean where it was, as for rewards (Ziegler et al.'s code).
      ddof: 0 for the variance of the population (Ziegler et al.), 1 for Bessel's (TRL).
      eps: inside the root.
    """
    values, mask = trained(values, mask), mask != 0
    mean, variance = _moments(values, mask, ddof)
    white = (values - mean) * jax.lax.rsqrt(variance + eps) + (0.0 if shift_mean else mean)
    return jnp.where(mask, white, 0.0)


def _moments(values: jax.Array, mask: jax.Array, ddof: int) -> tuple[jax.Array, jax.Array]:
    number = jnp.sum(mask, dtype=jnp.float32)
    mean = weighted_sum(values, mask) / jnp.maximum(number, 1)
    return mean, weighted_sum(jnp.square(values - mean), mask) / jnp.maximum(number - ddof, 1)


class Groups:
    """Rows of one prompt, found by their number wherever they stand in the batch.

    Args:
      groups: int [B], the prompt's number of each row; any numbers.
      scored: bool [B], rows that have a score; the others count in no mean and get an advantage of 0. None: all.
    """

    def __init__(self, groups: jax.Array, scored: jax.Array | None = None):
        self.size = groups.shape[0]
        self.ids = jnp.unique(groups, return_inverse=True, size=self.size)[1].reshape(-1)
        self.scored = jnp.ones(self.size, bool) if scored is None else scored.astype(bool)

    def sum(self, values: jax.Array) -> jax.Array:
        """The sum over each row's group, at each row, [B]."""
        return jax.ops.segment_sum(trained(values, self.scored), self.ids, self.size)[self.ids]

    @property
    def count(self) -> jax.Array:
        """How many rows of the group have a score, float32 [B]."""
        return self.sum(jnp.ones(self.size))

    def mean(self, values: jax.Array) -> jax.Array:
        """The mean over each row's group, [B]."""
        return self.sum(values) / jnp.maximum(self.count, 1)

    def std(self, values: jax.Array, ddof: int) -> jax.Array:
        """The standard deviation over each row's group, [B]."""
        return jnp.sqrt(self.sum(jnp.square(trained(values, self.scored) - self.mean(values))) / jnp.maximum(self.count - ddof, 1))


SCALES = ("group", "batch", "none")


def group_relative(
    rewards: jax.Array, groups: jax.Array, scored: jax.Array | None = None, *, scale: str = "group", ddof: int = 1, eps: float = 1e-4
) -> jax.Array:
    """(r - mean of the group) / (standard deviation + eps) (GRPO, arXiv 2402.03300, section 4.1.2).

    Libraries differ: ddof=1 with eps=1e-4 is TRL, 1e-6 Tunix and NeMo-RL, 1e-9 OpenRLHF; numpy's own standard deviation has ddof=0.

    Args:
      rewards: [B] of any dtype; a 0 is a reward like any other.
      groups: int [B], which prompt.
      scored: bool [B], False where nothing could score the row; its advantage is 0.
      scale: "group"; "batch", the deviation of the whole batch of rewards; "none", Dr. GRPO (arXiv 2503.20783).
      ddof: 0 or 1.
      eps: outside the root.

    Returns:
      float32 [B]. A row alone in its group, and groups of equal rewards, get 0.

    Raises:
      ValueError: an unknown scale.
    """
    check_choice("scale of group advantages", scale, SCALES)
    grouped = Groups(groups, scored)
    rewards = trained(rewards, grouped.scored)
    centred = jnp.where(grouped.scored, rewards - grouped.mean(rewards), 0.0)
    if scale == "none":
        return centred
    std = grouped.std(rewards, ddof) if scale == "group" else jnp.sqrt(_moments(rewards, grouped.scored, ddof)[1])
    return centred / (std + eps)


def leave_one_out(rewards: jax.Array, groups: jax.Array, scored: jax.Array | None = None) -> jax.Array:
    """r_i - mean of the others of its group (RLOO, arXiv 2402.14740), float32 [B]; 0 for a row without others. Arguments as
    `group_relative`."""
    grouped = Groups(groups, scored)
    rewards = trained(rewards, grouped.scored)
    others = (grouped.sum(rewards) - rewards) / jnp.maximum(grouped.count - 1, 1)
    return jnp.where(grouped.scored & (grouped.count > 1), rewards - others, 0.0)


def group_mean(rewards: jax.Array, groups: jax.Array, scored: jax.Array | None = None) -> jax.Array:
    """r - mean of its group: Dr. GRPO's, and the baseline of REINFORCE++-baseline, which whitens it over the batch afterwards."""
    return group_relative(rewards, groups, scored, scale="none")


def best_of_group(rewards: jax.Array, groups: jax.Array, scored: jax.Array | None = None) -> jax.Array:
    """1 for the best row of each group (the first of several), else 0: best-of-n tuning, or RAFT (arXiv 2304.06767); float32 [B]."""
    grouped = Groups(groups, scored)
    rewards = jnp.where(grouped.scored, trained(rewards, grouped.scored), -jnp.inf)
    best = jax.ops.segment_max(rewards, grouped.ids, grouped.size)[grouped.ids]
    index = jnp.arange(grouped.size)
    first = jax.ops.segment_min(jnp.where(rewards == best, index, grouped.size), grouped.ids, grouped.size)[grouped.ids]
    return (grouped.scored & (index == first)).astype(jnp.float32)


def against_greedy(rewards: jax.Array, greedy: jax.Array) -> jax.Array:
    """r - reward of the greedy completion of the same prompt (ReMax, arXiv 2310.10505); float [B] both, in the same order."""
    return jnp.asarray(rewards, jnp.float32) - jnp.asarray(greedy, jnp.float32)


def informative(rewards: jax.Array, groups: jax.Array, scored: jax.Array | None = None) -> jax.Array:
    """Rows whose group has more than one reward, bool [B]; the others have an advantage of 0 and DAPO samples new ones (arXiv 2503.14476,
    eq. 11)."""
    grouped = Groups(groups, scored)
    rewards = trained(rewards, grouped.scored)
    low = jax.ops.segment_min(jnp.where(grouped.scored, rewards, jnp.inf), grouped.ids, grouped.size)[grouped.ids]
    high = jax.ops.segment_max(jnp.where(grouped.scored, rewards, -jnp.inf), grouped.ids, grouped.size)[grouped.ids]
    return grouped.scored & (high > low)


OUTCOME = {"group_relative": group_relative, "leave_one_out": leave_one_out, "group_mean": group_mean, "best": best_of_group}
