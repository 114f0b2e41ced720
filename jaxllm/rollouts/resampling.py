"""Dynamic sampling: prompts whose samples all have one reward give way to the next prompts, a few times at most (DAPO)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxllm.rollouts.rewards import Rewarded
from jaxllm.rollouts.rollout import Samples


class Judged(NamedTuple):
    """Samples and what they are worth.

    Attributes:
      samples: of whole groups, in the order of their places.
      rewarded: of each, [R].
    """

    samples: Samples
    rewarded: Rewarded


def dull(total: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The groups in which no two rewards differ, or none is there, int [n]; they train nothing (arXiv 2503.14476, eq. 11)."""
    found = []
    for group in np.unique(groups):
        own = total[(groups == group) & np.isfinite(total)]
        if not len(own) or own.max() == own.min():
            found.append(group)
    return np.array(found, np.int64)


def resample(first: Judged, more: Callable[[np.ndarray, int], Judged], tries: int) -> tuple[Judged, np.ndarray]:
    """A rollout without dull groups, as far as `tries` goes; the last ones stay, whatever they are.

    Args:
      first: a rollout as it was drawn.
      more: (places [m], which try from 1 on) -> as many groups of the next prompts, to stand in these places.
      tries: for each place.

    Returns:
      the rollout, and how many groups were thrown away in each place, int [places].
    """
    judged, thrown = first, np.zeros(int(first.samples.groups[-1]) + 1, np.int64)
    for number in range(1, tries + 1):
        places = dull(judged.rewarded.total, judged.samples.groups)
        if not len(places):
            break
        judged = replaced(judged, places, more(places, number))
        thrown[places] += 1
    return judged, thrown


def replaced(old: Judged, places: np.ndarray, new: Judged) -> Judged:
    """The groups of `new` in these places of `old`."""
    size = len(old.samples.groups) // (int(old.samples.groups[-1]) + 1)
    rows = (places[:, None] * size + np.arange(size)).reshape(-1)
    samples, other = old.samples, new.samples

    def list_of(mine: Sequence, theirs: Sequence) -> list:
        found = list(mine)
        for row, one in zip(rows, theirs, strict=True):
            found[row] = one
        return found

    def array_of(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        found = mine.copy()
        found[rows] = theirs
        return found

    kept = Samples(
        list_of(samples.prompts, other.prompts),
        samples.groups,
        list_of(samples.finished, other.finished),
        list_of(samples.answers, other.answers),
        array_of(samples.ids, other.ids),
    )
    mine, theirs = old.rewarded, new.rewarded
    parts = {name: array_of(values, theirs.parts[name]) for name, values in mine.parts.items()}
    return Judged(kept, Rewarded(array_of(mine.total, theirs.total), parts, mine.problems + theirs.problems))
