"""Scores with an answer of their own: ratings, yes or no, one of several classes, rules broken, steps of a solution."""

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid

from jaxllm.losses.terms import Report, Term, Terms, check_choice, trained, weighted_sum

STEP_REDUCTIONS = ("step", "row")


def rating(scores: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[Terms, Report]:
    """Squared error of a scalar rating (Ziegler's ScalarRating), and the report "absolute_error". Arrays of one shape, [B] or any other."""
    error = trained(scores, weights) - trained(targets, weights)
    return {"rating": Term(weighted_sum(jnp.square(error), weights))}, {"absolute_error": weighted_sum(jnp.abs(error), weights)}


def binary(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[Terms, Report]:
    """Cross-entropy of yes-or-no verdicts.

    It serves single verdicts [B] (toxic or not, a verifier's), rules [B, R] (the probability that a dialogue breaks a rule, conditional on
    the rule: Sparrow, arXiv 2209.14375; weights say which rules were judged) and steps [B, T].

    Args:
      logits: float, any shape.
      targets: the same shape, 0 to 1; soft where annotators disagree.
      weights: the same shape, 0 where there is no verdict.

    Returns:
      terms: "verdict", in nats.
      report: "accuracy", whether logit and target are on one side of a half (a logit of 0 counts half, a target of 1/2 is right either
        way).
    """
    logits, targets = trained(logits, weights), trained(targets, weights)
    nats = -targets * log_sigmoid(logits) - (1 - targets) * log_sigmoid(-logits)
    right = jnp.where(targets == 0.5, 1.0, (jnp.sign(logits) * jnp.sign(targets - 0.5) + 1) / 2)
    return {"verdict": Term(weighted_sum(nats, weights))}, {"accuracy": weighted_sum(right, weights)}


def multiclass(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> tuple[Terms, Report]:
    """Cross-entropy of one of C classes: logits float [..., C], labels int [...], weights [...]; term "verdict", report "accuracy"."""
    logits = trained(logits, weights[..., None])
    log_probs = jax.nn.log_softmax(logits)
    nats = -jnp.take_along_axis(log_probs, jnp.where(weights != 0, labels, 0)[..., None], axis=-1)[..., 0]
    return {"verdict": Term(weighted_sum(nats, weights))}, {"accuracy": weighted_sum(jnp.argmax(logits, axis=-1) == labels, weights)}


def totals(weights: jax.Array) -> Report:
    """What the sums of `rating`, `binary`, `multiclass` and `reward.pick_best` are divided by: the weight of the whole batch."""
    total = jnp.sum(weights, dtype=jnp.float32)
    return dict.fromkeys(("rating", "verdict", "reward", "absolute_error", "accuracy"), total)


def step_weights(ends: jax.Array, *, over: str = "step") -> jax.Array:
    """The weights with which `binary` becomes a process reward model, one verdict at the last token of each step (arXiv 2305.20050).

    Args:
      ends: bool [B, T], the last token of each step that has a verdict.
      over: "step": all steps of the batch weigh the same; "row": all solutions do, however many steps they have.

    Returns:
      float32 [B, T]; with `totals` the loss is then a mean over steps, or over rows with a step.

    Raises:
      ValueError: another word for `over`.
    """
    check_choice("mean of steps", over, STEP_REDUCTIONS)
    steps = ends.astype(jnp.float32)
    return steps / jnp.maximum(jnp.sum(steps, axis=1, keepdims=True), 1) if over == "row" else steps
