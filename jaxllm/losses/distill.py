"""A student after a teacher: divergences of their next-token distributions, over the whole vocabulary or the teacher's likeliest tokens."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.losses.terms import Report, Term, Terms, check_choice, weighted_sum


def forward_kl(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """KL(teacher || student) of log-probabilities [..., V] -> [...]: covers all that the teacher does (Hinton et al., arXiv 1503.02531)."""
    return _kl(teacher, student)


def reverse_kl(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """KL(student || teacher) of log-probabilities [..., V] -> [...]: does only what the teacher does (MiniLLM, arXiv 2306.08543)."""
    return _kl(student, teacher)


def jsd(student: jax.Array, teacher: jax.Array, *, beta: float = 0.5) -> jax.Array:
    """b KL(P || M) + (1 - b) KL(Q || M), M = b P + (1 - b) Q, teacher P, student Q (GKD, arXiv 2306.13649, eq. 1).

    Divided by b it tends to the forward KL as b goes to 0, divided by 1 - b to the reverse as b goes to 1; at the ends themselves it is 0,
    so they are refused. (TRL's beta=0 and beta=1 are our `forward_kl` and `reverse_kl`.)

    Raises:
      ValueError: b is not inside (0, 1).
    """
    if not 0 < beta < 1:
        raise ValueError(
            f"beta={beta} of jsd is not in (0, 1), where it is 0 for all. Choose forward_kl (their limit at 0) or reverse_kl (at 1)."
        )
    student, teacher = jnp.maximum(student, -1e30), jnp.maximum(teacher, -1e30)  # the gradient of log(0 + 0) is NaN
    mixture = jnp.logaddexp(student + jnp.log1p(-beta), teacher + jnp.log(beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _kl(p: jax.Array, q: jax.Array) -> jax.Array:
    """sum p log(p / q) of log-probabilities; where p is 0 nothing is added, whatever q is."""
    there = p > -jnp.inf
    safe = jnp.where(there, p, 0.0)
    return jnp.sum(jnp.where(there, jnp.exp(safe) * (safe - jnp.where(there, q, 0.0)), 0.0), axis=-1)


DIVERGENCES: dict[str, Callable[..., jax.Array]] = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "jsd": jsd}
TAILS = ("rest", "renormalise")


def likeliest(student: jax.Array, teacher: jax.Array, indices: jax.Array, *, tail: str = "rest") -> tuple[jax.Array, jax.Array]:
    """Two distributions over the teacher's k likeliest tokens, and what becomes of the rest of their mass.

    Args:
      student: float [..., V], log-probabilities (normalised over the whole vocabulary).
      teacher: float [..., k], log-probabilities of its k likeliest (normalised over the whole vocabulary).
      indices: int [..., k], which they are.
      tail: "rest": all other tokens count as one more, so that mass moved there costs; "renormalise": both are renormalised over the k.

    Returns:
      Log-probabilities of the student and the teacher, [..., k + 1] or [..., k], for any of `DIVERGENCES`.

    Raises:
      ValueError: another word for `tail`.
    """
    check_choice("tail", tail, TAILS)
    both = jnp.take_along_axis(student.astype(jnp.float32), indices, axis=-1), teacher.astype(jnp.float32)
    if tail == "renormalise":
        return jax.nn.log_softmax(both[0]), jax.nn.log_softmax(both[1])
    return _with_rest(both[0]), _with_rest(both[1])


def _with_rest(log_probs: jax.Array) -> jax.Array:
    """With the mass that is missing from 1 as one more token; at least 1e-7, float32's rounding of 1."""
    rest = jnp.log(jnp.maximum(1 - jnp.sum(jnp.exp(log_probs), axis=-1, keepdims=True), 1e-7))
    return jnp.concatenate([log_probs, rest], axis=-1)


def distill(
    student: jax.Array,
    teacher: jax.Array,
    weights: jax.Array,
    divergence: Callable[..., jax.Array] = forward_kl,
    *,
    coefficient: float = 1.0,
    **options: Any,
) -> tuple[Terms, Report]:
    """The divergence at each token.

    Args:
      student: float [B, T, V], log-probabilities, with the gradient. At a temperature S, of logits / S; Hinton's factor is coefficient=S^2.
      teacher: float [B, T, V], log-probabilities at the same temperature; no gradient. Or both [B, T, k], of `likeliest`.
      weights: float [B, T].
      divergence: from `DIVERGENCES`.
      coefficient: of the term.
      options: of the divergence.

    Returns:
      terms: "distill", in nats a token; its total is the weight of the whole batch.
      report: "agreement", whether the likeliest token is the same; the same total.
    """
    there = (weights != 0)[..., None]
    student, teacher = (jnp.where(there, array.astype(jnp.float32), 0.0) for array in (student, jax.lax.stop_gradient(teacher)))
    agreement = jnp.argmax(student, axis=-1) == jnp.argmax(teacher, axis=-1)
    terms = {"distill": Term(weighted_sum(divergence(student, teacher, **options), weights), coefficient)}
    return terms, {"agreement": weighted_sum(agreement, weights)}


def distill_totals(weights: jax.Array) -> Report:
    """What the sums of `distill` are divided by: the weight of the whole batch."""
    total = jnp.sum(weights, dtype=jnp.float32)
    return {"distill": total, "agreement": total}
