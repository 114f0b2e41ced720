"""What every loss hands to the training step: sums of ONE microbatch, to be divided by totals of the whole batch."""

from typing import NamedTuple

import jax


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
