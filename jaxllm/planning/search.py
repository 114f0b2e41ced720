"""The fastest of many choices that fits, compiling as few of them as can be."""

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Choice(NamedTuple):
    """One set of config values to try.

    Attributes:
      overrides: dotted config key -> value.
      bound: seconds that a step takes at least, known before it is compiled.
    """

    overrides: dict[str, object]
    bound: float


class Outcome(NamedTuple):
    """What compiling a choice gave.

    Attributes:
      fits: whether it does.
      seconds: of a step, at least.
    """

    fits: bool
    seconds: float


def search(
    choices: Sequence[Choice], evaluate: Callable[[Choice], Outcome | None], limit: int, needs_less: Callable[[Choice, Choice], bool]
) -> tuple[list[tuple[Choice, Outcome]], int]:
    """Evaluates choices in the order of their bounds until none that is left can be faster than the best that fits.

    Args:
      choices: in any order; of equal bounds the earlier comes first.
      evaluate: compiles one; None: it cannot be compiled, which says nothing of the others.
      limit: how many are evaluated at most.
      needs_less: whether the first of two choices may need less memory than the second: one that surely needs as much as what did not fit
        is passed over.

    Returns:
      What was evaluated: first those that fit, the fastest first, then the others. And how many that could be faster were not evaluated.
    """
    tried: list[tuple[Choice, Outcome]] = []
    best, count, left = float("inf"), 0, sorted(choices, key=lambda choice: choice.bound)
    while left and left[0].bound < best and count < limit:
        choice = left.pop(0)
        if any(not outcome.fits and not needs_less(choice, other) for other, outcome in tried):
            continue
        count, outcome = count + 1, evaluate(choice)
        if outcome is None:
            continue
        tried.append((choice, outcome))
        if outcome.fits:
            best = min(best, outcome.seconds)
    missed = sum(choice.bound < best for choice in left)
    return sorted(tried, key=lambda pair: (not pair[1].fits, pair[1].seconds)), missed
