"""What every loss hands to the training step: sums of ONE microbatch, to be divided by totals of the whole batch."""

import difflib
from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Term(NamedTuple):
    """One summand of an objective.

    The objective is the sum over terms of coefficient * sum / total, where the total is computed from the whole batch before it is
    split, so that no split of the batch can change the result.

    Attributes:
      sum: float32 scalar, the weighted sum over one microbatch.
      coefficient: the term's factor in the objective.
    """

    sum: jax.Array
    coefficient: float | jax.Array = 1.0


Terms = dict[str, Term]
Report = dict[str, jax.Array]


def trained(values: jax.Array | float, weights: jax.Array) -> jax.Array:
    """The values in float32, 0 where the weight is 0: what stands there (it may be -inf or NaN) is never looked at."""
    return jnp.where(weights != 0, jnp.asarray(values, jnp.float32), 0.0)


def weighted_sum(values: jax.Array, weights: jax.Array) -> jax.Array:
    """The sum of weight * value, float32, without the values whose weight is 0."""
    return jnp.sum(weights * trained(values, weights), dtype=jnp.float32)


def check_choice(what: str, value: str, choices: Collection[str]) -> None:
    """Refuses a word that is none of the choices.

    Raises:
      ValueError: it is not.
    """
    if not isinstance(value, str) or value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        raise ValueError(f"Unknown {what} {value!r}. Choose one of: {', '.join(choices)}.{f' Did you mean {near[0]!r}?' if near else ''}")
