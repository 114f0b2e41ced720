"""Reward models: scores that agree with people's comparisons, rankings, ratings and verdicts."""

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid

from jaxllm.losses.terms import Report, Term, Terms, check_choice, trained, weighted_sum


def _half(difference: jax.Array, tied: jax.Array, width: float) -> jax.Array:
    """A tie is half a win of each: the cross-entropy of the target 1/2. `width` is not read."""
    return jnp.where(tied, -0.5 * (log_sigmoid(difference) + log_sigmoid(-difference)), -log_sigmoid(difference))


def _rao_kupper(difference: jax.Array, tied: jax.Array, width: float) -> jax.Array:
    """P(w > l) = s(d - n), P(tie) = (e^{2n} - 1) s(d - n) s(-d - n) (Rao and Kupper 1967, theta = e^n; n is `width`)."""
    won, lost = log_sigmoid(difference - width), log_sigmoid(-difference - width)
    return jnp.where(tied, -(won + lost + jnp.log(jnp.expm1(2 * width))), -won)


def _davidson(difference: jax.Array, tied: jax.Array, width: float) -> jax.Array:
    """P(w > l) = 1 / (1 + e^{-d} + n e^{-d/2}), P(tie) = n e^{-d/2} P(w > l) (Davidson 1970; n is `width`)."""
    log_wins = -jax.nn.logsumexp(jnp.stack([jnp.zeros_like(difference), -difference, jnp.log(width) - difference / 2]), axis=0)
    return -jnp.where(tied, jnp.log(width) - difference / 2 + log_wins, log_wins)


TIES = {"half": _half, "rao_kupper": _rao_kupper, "davidson": _davidson}


def bradley_terry(
    chosen: jax.Array,
    rejected: jax.Array,
    weights: jax.Array,
    *,
    margins: jax.Array | float = 0.0,
    tied: jax.Array | None = None,
    ties: str = "half",
    tie_width: float = 1.0,
    centering: float = 0.0,
) -> tuple[Terms, Report]:
    """-log s(r_w - r_l - margin) of pairs (Bradley and Terry 1952; margins as in Llama 2, arXiv 2307.09288, eq. 2).

    Args:
      chosen: float [B], the reward of the better answer.
      rejected: float [B].
      weights: float [B], 0 where a pair is dropped or padding.
      margins: float [B], by how much the reward should differ; none between answers that tie.
      tied: bool [B], pairs that people call equal; None: there are none.
      ties: how such a pair is modelled: "half", "rao_kupper", "davidson" (the last two also change what a win costs).
      tie_width: the parameter of the latter two, positive; 0 would make ties impossible.
      centering: coefficient of (r_w + r_l)^2, which holds the mean reward at 0 (Eisenstein et al., arXiv 2312.09244; usually 0.01).

    Returns:
      terms: "reward" and, if asked for, "centering".
      report: "accuracy" (over pairs that are not tied; equal rewards count half), "margin", "reward_mean"; totals in `pair_totals`.

    Raises:
      ValueError: an unknown model of ties, or a width that is not positive.
    """
    check_choice("model of ties", ties, TIES)
    if ties != "half" and not tie_width > 0:
        raise ValueError(f"tie_width={tie_width} is not positive: ties would be impossible. Try 1.0, or ties='half'.")
    chosen, rejected = trained(chosen, weights), trained(rejected, weights)
    equal = jnp.zeros(chosen.shape, bool) if tied is None else tied
    difference = chosen - rejected
    model = TIES[ties] if tied is not None else _half
    losses = model(difference - jnp.where(equal, 0.0, margins), equal, tie_width)
    terms = {"reward": Term(weighted_sum(losses, weights))}
    if centering:
        terms["centering"] = Term(weighted_sum(jnp.square(chosen + rejected), weights), centering)
    return terms, {
        "accuracy": weighted_sum((jnp.sign(difference) + 1) / 2, weights * ~equal),
        "margin": weighted_sum(difference, weights * ~equal),
        "reward_mean": weighted_sum((chosen + rejected) / 2, weights),
    }


def pair_totals(weights: jax.Array, tied: jax.Array | None = None) -> Report:
    """What the sums of `bradley_terry` are divided by, of the whole batch: its weight; for accuracy and margin, without ties."""
    total = jnp.sum(weights, dtype=jnp.float32)
    decided = total if tied is None else jnp.sum(weights * ~tied, dtype=jnp.float32)
    return {"reward": total, "centering": total, "reward_mean": total, "accuracy": decided, "margin": decided}


def ranking(rewards: jax.Array, ranks: jax.Array, weights: jax.Array, *, centering: float = 0.0) -> tuple[Terms, Report]:
    """-log s(r_w - r_l) of all pairs of each prompt's K answers, each weighing 1 / C(K, 2) (InstructGPT, arXiv 2203.02155, eq. 1).

    A prompt's answers stay together in one row, so that they are one element of the batch (shuffled among others' as pairs they overfit,
    says the paper). Pairs of equal rank are dropped, and a prompt weighs 1 whatever number of its pairs is left: for K ranked answers, 1 /
    C(K, 2).

    Args:
      rewards: float [P, K], of K answers to each of P prompts.
      ranks: [P, K], smaller is better, equal is a tie; negative where there is no answer.
      weights: float [P], 0 where a prompt is padding.
      centering: coefficient of (r_w + r_l)^2, averaged over the same pairs.

    Returns:
      terms: "reward" and, if asked for, "centering".
      report: "accuracy" and "margin" of the pairs, with the same weights; totals in `ranking_totals`.
    """
    pairs = _ranked_pairs(ranks, weights)
    rewards = trained(rewards, (weights[:, None] != 0) & (ranks >= 0))
    difference = rewards[:, :, None] - rewards[:, None, :]
    terms = {"reward": Term(weighted_sum(-log_sigmoid(difference), pairs))}
    if centering:
        terms["centering"] = Term(weighted_sum(jnp.square(rewards[:, :, None] + rewards[:, None, :]), pairs), centering)
    return terms, {"accuracy": weighted_sum((jnp.sign(difference) + 1) / 2, pairs), "margin": weighted_sum(difference, pairs)}


def ranking_totals(ranks: jax.Array, weights: jax.Array) -> Report:
    """What the sums of `ranking` are divided by: the weight of the prompts of the whole batch that have a pair to compare."""
    total = jnp.sum(_ranked_pairs(ranks, weights), dtype=jnp.float32)
    return {"reward": total, "centering": total, "accuracy": total, "margin": total}


def _ranked_pairs(ranks: jax.Array, weights: jax.Array) -> jax.Array:
    """[P, K, K], how much the comparison of a better answer (first) with a worse one weighs."""
    there = ranks >= 0
    better = (ranks[:, :, None] < ranks[:, None, :]) & there[:, :, None] & there[:, None, :]
    return weights[:, None, None] * better / jnp.maximum(jnp.sum(better, axis=(1, 2), keepdims=True), 1)


def pick_best(rewards: jax.Array, best: jax.Array, there: jax.Array, weights: jax.Array) -> tuple[Terms, Report]:
    """Softmax cross-entropy of the one that people picked out of K (Ziegler et al., arXiv 1909.08593, eq. 1).

    Args:
      rewards: float [P, K].
      best: int [P], the one picked.
      there: bool [P, K], where there is an answer; the picked one must be.
      weights: float [P], 0 where a prompt is padding.

    Returns:
      terms: "reward".
      report: "accuracy", the share whose likeliest is the picked one; totals: those of `verdicts.totals(weights)`.
    """
    scores = jnp.where(there, trained(rewards, weights[:, None] * there), -jnp.inf)
    picked = jnp.take_along_axis(scores, best[:, None], axis=1)[:, 0]
    nats = jax.nn.logsumexp(jnp.where(weights[:, None] != 0, scores, 0.0), axis=1) - jnp.where(weights != 0, picked, 0.0)
    return {"reward": Term(weighted_sum(nats, weights))}, {"accuracy": weighted_sum(jnp.argmax(scores, axis=1) == best, weights)}
