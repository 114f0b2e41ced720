"""From scores to what each token is trained with: the advantages of a method, over the whole rollout, before it is cut into minibatches."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.losses.kl import kl_estimate
from jaxllm.losses.terms import trained
from jaxllm.losses.value import explained_variance
from jaxllm.rollouts import advantages as estimators
from jaxllm.rollouts.methods import Method
from jaxllm.rollouts.shaping import token_rewards


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a config says of rewards beside the method.

    Attributes:
      discount: of rewards a token later.
      decay: lambda of GAE.
      estimator: of the KL in the reward.
      mask_truncated: whether completions that were cut off train nothing.
      whiten_rewards: whether token rewards are divided by their deviation, their mean left where it is (Ziegler et al.).
      normalise_returns: whether they are divided by the deviation of the returns that the run has seen.
    """

    discount: float = 1.0
    decay: float = 0.95
    estimator: str = "k1"
    mask_truncated: bool = False
    whiten_rewards: bool = False
    normalise_returns: bool = False


def credit(method: Method, shape: Shape, rollout: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Advantages of every token.

    Args:
      method: a row of `METHODS`.
      shape: see there.
      rollout: weights [R, T] (1 where a token was sampled), scores float [R] (NaN: missing), groups int [R], ended bool [R]; and as the
        method and the shape need them: log_probs and reference float [R, T], coefficient (a scalar), greedy float [R] (the scores of the
        greedy completions), values float [R, T] (the critic's), returns_seen float [3] (see `returns_scale`).

    Returns:
      advantages [R, T]; weights [R, T], without the samples that train nothing (no score, cut off, alike); divergence [R], nats from the
      reference; identical bool [R], whether all of a group's scores are equal; returns [R, T] and explained_variance (a
      scalar: how much of them the critic knew) where there is one; returns_seen and returns_scale where they are normalised.
    """
    scores, groups, ended = rollout["scores"], rollout["groups"], rollout["ended"]
    scored = jnp.isfinite(scores) & jnp.isfinite(rollout.get("greedy", scores))
    scores = jnp.where(scored, scores, 0.0)
    mask = (rollout["weights"] != 0) & scored[:, None]
    compared = "reference" in rollout and "log_probs" in rollout
    in_reward = method.kl == "reward" and compared
    kl = {"log_probs": rollout["log_probs"], "reference": rollout["reference"]} if in_reward else {}
    rewards, divergence = token_rewards(
        scores, mask, **kl, coefficient=rollout.get("coefficient", 0.0), estimator=shape.estimator if in_reward else "k1"
    )
    if compared and not in_reward:
        divergence = jnp.sum(trained(kl_estimate(rollout["log_probs"], rollout["reference"], "k1"), mask), axis=1)
    if shape.whiten_rewards:
        rewards = estimators.whiten(rewards, mask, shift_mean=False)
    seen = {}
    if shape.normalise_returns:
        scale, moments = returns_scale(rewards, mask, rollout["returns_seen"], shape.discount)
        rewards, seen = rewards / scale, {"returns_seen": moments, "returns_scale": scale}
    advantages, more = _advantages(method, shape, rewards, mask, scored, rollout)
    varied = estimators.informative(scores, groups, scored)
    kept = (ended | (not shape.mask_truncated)) & (varied | (not method.drop_uninformative))
    if method.advantages == "best":
        kept &= advantages[:, 0] > 0
    mask &= kept[:, None]
    advantages = jnp.where(mask, advantages, 0.0)
    if method.whiten:
        advantages = estimators.whiten(advantages, mask)
    return {
        "advantages": advantages,
        "weights": mask.astype(jnp.float32),
        "divergence": divergence,
        "identical": scored & ~varied,
        **more,
        **seen,
    }


MEMORY = 2.0**20  # tokens: older ones count for less and less, as returns drift while a policy learns


def returns_scale(rewards: jax.Array, mask: jax.Array, seen: jax.Array, discount: float) -> tuple[jax.Array, jax.Array]:
    """The deviation of the returns of tokens that a run has seen, this rollout included: what rewards are divided by, so that a critic
    learns numbers of size 1 (detail 30 of "The 37 implementation details of PPO"); 1 where all returns are equal.

    Args:
      rewards: float [R, T], of tokens.
      mask: [R, T], the policy's own tokens.
      seen: float [3]: number, mean and sum of squared distances from it, before this rollout.
      discount: of a step.

    Returns:
      the scale, and `seen` with this rollout (Chan, Golub and LeVeque 1979).
    """
    returns, number = estimators.returns_to_go(rewards, mask, discount=discount), jnp.sum(mask, dtype=jnp.float32)
    mean = jnp.sum(trained(returns, mask)) / jnp.maximum(number, 1)
    squares = jnp.sum(jnp.where(mask, jnp.square(returns - mean), 0.0))
    count = jnp.minimum(seen[0], MEMORY)
    before = seen[2] * count / jnp.maximum(seen[0], 1)
    total, apart = count + number, mean - seen[1]
    share = number / jnp.maximum(total, 1)
    squares = before + squares + jnp.square(apart) * count * share
    scale = jnp.sqrt(squares / jnp.maximum(total, 1))
    return jnp.where(scale > 0, scale, 1.0), jnp.stack([total, seen[1] + apart * share, squares])


def _advantages(method: Method, shape: Shape, rewards: jax.Array, mask: jax.Array, scored: jax.Array, rollout: dict[str, Any]):
    """Of every token [R, T], or of a completion at each of its tokens; and what else came of it."""
    if method.advantages == "gae":
        found, returns = estimators.gae(rewards, rollout["values"], mask, discount=shape.discount, decay=shape.decay)
        return found, {"returns": returns, "explained_variance": explained_variance(rollout["values"], returns, mask)}
    if method.advantages == "to_go":
        return estimators.returns_to_go(rewards, mask, discount=shape.discount), {}
    outcome = jnp.sum(rewards, axis=1)
    if method.advantages == "greedy":
        found = estimators.against_greedy(outcome, jnp.where(scored, rollout["greedy"], 0.0))
    else:
        options = method.scale if method.advantages == "group_relative" else {}
        found = estimators.OUTCOME[method.advantages](outcome, rollout["groups"], scored, **options)
    return jnp.broadcast_to(found[:, None], mask.shape), {}
