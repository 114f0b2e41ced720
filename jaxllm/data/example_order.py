"""Which example comes at which place of a run: sources cut to the length of a row, shuffled and mixed without end."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxllm.data.examples import Examples
from jaxllm.data.mixtures import Mixture, shuffle_key, shuffled

TOO_LONG = ("truncate", "skip", "refuse")
LISTED = 5  # too long examples that are named, of each source
NO_PREFIX = np.zeros(0, np.int32)


class TooLong(NamedTuple):
    """An example that is longer than a row, and what became of it."""

    source: str
    example: int
    length: int
    fate: str  # truncated or skipped


@dataclasses.dataclass(frozen=True)
class Source:
    """The examples of one source as rows take them.

    Attributes:
      kept: int64 [n], those that are trained on, by their place in `examples`.
      lengths: int32 [n], tokens that each takes in a row, the prefix among them.
      prefix: int32 [p], ids in front of each.
      room: tokens of an example that a row has place for.
      tokens, trained: sums over the kept, as cut.
      truncated, skipped: how many were.
      too_long: the first few of both.
    """

    name: str
    examples: Examples
    kept: np.ndarray
    lengths: np.ndarray
    prefix: np.ndarray
    room: int
    tokens: int
    trained: int
    truncated: int
    skipped: int
    too_long: tuple[TooLong, ...]


def fit(
    name: str, examples: Examples, sequence_length: int, *, too_long: str = "truncate", prefix: Sequence[int] | np.ndarray = NO_PREFIX
) -> Source:
    """Cuts a source to rows of T tokens.

    Args:
      name: of the source.
      examples: a store, or a part of one.
      sequence_length: T.
      too_long: what happens to an example that a row has no place for: "truncate" cuts it on the right (and skips it if nothing to train
        on is left), "skip" leaves it out, "refuse" stops. All are counted.
      prefix: ids in front of every example, with weight 0: a soft prompt's, beyond the vocabulary.

    Raises:
      ValueError: an unknown policy, a prefix that fills the row, an example refused, or no example left.
    """
    if too_long not in TOO_LONG:
        raise ValueError(f"Unknown too_long={too_long!r}. Choose one of: {', '.join(TOO_LONG)}.")
    prefix = np.asarray(prefix, np.int32)
    room = sequence_length - len(prefix)
    if room < 2:
        raise ValueError(f"A prefix of {len(prefix)} tokens leaves {room} of sequence_length={sequence_length} for {name!r}. Shorten it.")
    lengths, trained = examples.lengths, examples.trained.astype(np.int64)
    long = np.flatnonzero(lengths > room)
    if long.size and too_long == "refuse":
        raise ValueError(
            f"Example {long[0]} of {name!r} has {lengths[long[0]]} tokens, more than the {room} of a row ({long.size} examples have)."
            " Raise sequence_length, or set too_long to truncate or skip."
        )
    trained[long] = [np.count_nonzero(examples.example(i).weights[:room]) if too_long == "truncate" else 0 for i in long.tolist()]
    kept = np.flatnonzero(trained)
    if not kept.size:
        raise ValueError(f"No example of {name!r} fits a row of {room} tokens: all {len(lengths)} are longer. Raise sequence_length.")
    cut = np.minimum(lengths[kept], room)
    skipped = len(lengths) - len(kept)
    fates = tuple(TooLong(name, i, int(lengths[i]), "truncated" if trained[i] else "skipped") for i in long[:LISTED].tolist())
    sizes = {"tokens": int(cut.sum()), "trained": int(trained.sum()), "truncated": int(long.size) - skipped, "skipped": skipped}
    return Source(name, examples, kept, (cut + len(prefix)).astype(np.int32), prefix, room, **sizes, too_long=fates)


class Elements(NamedTuple):
    """Elements of the endless sequence: int64 [n] each.

    Attributes:
      source: its number.
      item: which of the source's kept examples.
      epoch: how often the source was gone through before.
    """

    source: np.ndarray
    item: np.ndarray
    epoch: np.ndarray

    def take(self, which: np.ndarray | slice) -> "Elements":
        return Elements(self.source[which], self.item[which], self.epoch[which])


class Order:
    """The endless sequence of examples: element i is a function of (seed, i).

    Without weights all sources are shuffled as one, anew in each epoch, so that every `total` elements hold each example exactly once. With
    weights they are mixed by them (`mixtures.Mixture`), each shuffled by (seed, source, epoch).

    Args:
      sources: see `fit`.
      seed: of the order; None: no shuffling, one source after the other.
      weights: relative share of each source's examples; None: in proportion to their number.
    """

    def __init__(self, sources: Sequence[Source], seed: int | None, weights: Sequence[float] | None = None):
        self.sources, self.seed = tuple(sources), seed
        self.counts = np.asarray([len(source.kept) for source in sources], np.int64)
        self.total = int(self.counts.sum())
        self._mixture = None if weights is None else Mixture(weights)
        self.shares = self.counts / self.total if self._mixture is None else self._mixture.shares
        lengths = [source.lengths for source in sources]
        self._lengths, self._firsts = np.concatenate(lengths), np.concatenate([[0], np.cumsum(self.counts)])

    def elements(self, start: int, stop: int) -> Elements:
        """Elements [start, stop)."""
        if self._mixture is None:
            names = tuple(source.name for source in self.sources)
            place, epoch = self._shuffled(np.zeros(stop - start, np.int64), np.arange(start, stop), [names], np.asarray([self.total]))
            source = np.searchsorted(self._firsts, place, side="right") - 1
            return Elements(source, place - self._firsts[source], epoch)
        source, count = self._mixture.places(start, stop)
        item, epoch = self._shuffled(source, count, [(source.name,) for source in self.sources], self.counts)
        return Elements(source, item, epoch)

    def _shuffled(
        self, group: np.ndarray, count: np.ndarray, names: Sequence[tuple[str, ...]], sizes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where each count lands within its group's epoch, and which epoch that is; groups have names and sizes."""
        epoch, index = np.divmod(count, sizes[group])
        if self.seed is not None:
            pairs, which = np.unique(np.stack([group, epoch]), axis=1, return_inverse=True)
            keys = np.asarray([shuffle_key(self.seed, *names[number], when) for number, when in pairs.T.tolist()], np.uint64)
            index = shuffled(index, sizes[group], keys[which.reshape(-1)])
        return index, epoch

    def lengths(self, elements: Elements) -> np.ndarray:
        """int32 [n], tokens that each takes in a row."""
        return self._lengths[self._firsts[elements.source] + elements.item]

    def shuffle(self, count: int, *what: int | str) -> np.ndarray:
        """A permutation of 0..count-1 that depends on the seed and on what it is for."""
        places = np.arange(count)
        return places if self.seed is None or not count else shuffled(places, count, shuffle_key(self.seed, *what))

    def epochs(self, num_elements: float) -> dict[str, float]:
        """How often each source has been gone through after so many elements (expected; exact to an example or two)."""
        return {s.name: float(num_elements * share / n) for s, share, n in zip(self.sources, self.shares, self.counts, strict=True)}

    def needed(self, epochs: float) -> float:
        """How many elements it takes to go through every source so often."""
        return epochs * (self.total if self._mixture is None else float(np.max(self.counts / self.shares)))


def check_weights(weights: Mapping[str, float] | None, names: Sequence[str]) -> list[float] | None:
    """The weights in the order of the sources.

    Raises:
      ValueError: they do not name the sources, or one is not above 0.
    """
    if weights is None:
        return None
    if set(weights) != set(names):
        raise ValueError(f"Weights are given for {sorted(weights)}, but the sources are {sorted(names)}. Name each source once.")
    for name, weight in weights.items():
        if not weight > 0:
            raise ValueError(f"Source {name!r} has weight {weight}. Give it more than 0, or leave the source out.")
    return [float(weights[name]) for name in names]
