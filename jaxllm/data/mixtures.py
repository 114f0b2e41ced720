"""Which row comes at which place: an endless mixture of sources by weight, and a shuffle of any size that is a formula."""

import hashlib
from collections.abc import Sequence

import numpy as np

ROUNDS = 6
ENDLESS = 1 << 62
POWERS = 1 << np.arange(63)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea & Flood 2014): a bijection of uint64 that scatters its bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def shuffle_key(*parts: int | str) -> int:
    """64 bits that depend on every part: seed, source, epoch."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def shuffled(index: np.ndarray, length: int | np.ndarray, key: int | np.ndarray) -> np.ndarray:
    """Where a pseudo-random permutation of 0..length-1 sends each index, without ever writing the permutation down.

    A Feistel network (Luby & Rackoff 1988) over the next even power of two, walked until it lands below `length` (Black & Rogaway 2002):
    time and memory do not depend on `length`. Ours rather than grain's `index_shuffle`, which holds 32 bits and whose epochs and seeds
    overlap.

    Args:
      index: int64 [n], each in 0..length-1.
      length: at most 2**62; or int64 [n], each index's own.
      key: see `shuffle_key`; or uint64 [n], each index's own.

    Returns:
      int64 [n].
    """
    length, key = np.asarray(length, np.int64), np.asarray(key, np.uint64)
    assert not length.size or 0 < length.min() <= length.max() <= ENDLESS, length
    half = ((np.searchsorted(POWERS, np.maximum(length - 1, 1), side="right") + 1) // 2).astype(np.uint64)
    mask = (np.uint64(1) << half) - np.uint64(1)
    rounds = np.arange(1, ROUNDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    keys = _mix(rounds.reshape(-1, *[1] * key.ndim) + key)
    limit = length.astype(np.uint64)
    x = np.asarray(index, np.int64).astype(np.uint64)
    pending = np.ones(x.shape, bool)
    while pending.any():
        shift, low = (part[pending] if part.ndim else part for part in (half, mask))
        left, right = x[pending] >> shift, x[pending] & low
        for round_key in keys:
            left, right = right, left ^ (_mix(right + (round_key[pending] if key.ndim else round_key)) & low)
        x[pending] = (left << shift) | right
        pending &= x >= limit
    return x.astype(np.int64)


class Mixture:
    """An endless sequence of (source, place within the source), each source in proportion to its weight and evenly spread.

    Built on `grain.MapDataset.mix`, whose element i is a function of i and the weights alone. grain rounds the weights to integers with the
    smallest at 100, so that a share is met to within 1 % of the smallest.

    Args:
      weights: one positive number for each source.
    """

    def __init__(self, weights: Sequence[float]):
        assert weights and all(weight > 0 for weight in weights), weights
        self.shares = np.asarray(weights, np.float64) / np.sum(weights)
        self._mixed = None
        if len(weights) > 1:
            import grain

            parts = [grain.MapDataset.range(ENDLESS).map(lambda place, source=source: (source, place)) for source in range(len(weights))]
            self._mixed = grain.MapDataset.mix(parts, weights=[float(weight) for weight in self.shares])

    def __getitem__(self, index: int) -> tuple[int, int]:
        return (0, index) if self._mixed is None else self._mixed[index]

    def places(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(source, place within it) of elements [start, stop), int64 [n] each: what `self[i]` gives, thousands at a time.

        grain's rule, on arrays: of the first k elements that the sources before left over, source i leaves k (r - p) // r, where p is its
        weight as an integer and r the sum of its own and the later ones'.
        """
        sources, within = np.zeros(stop - start, np.int64), np.arange(start, stop)
        if self._mixed is None:
            return sources, within
        parts = [int(share * (100 / self.shares.min())) for share in self.shares.tolist()]
        remaining = sum(parts)
        assert stop * remaining < 1 << 63, (stop, remaining)
        free, left = np.arange(stop - start), np.arange(start, stop + 1)  # elements without a source yet, and how many are before each
        for source, part in enumerate(parts):
            after = left * (remaining - part) // remaining
            taken = left - after
            mine = np.diff(taken) == 1
            sources[free[mine]], within[free[mine]] = source, taken[1:][mine] - 1
            free, left = free[~mine], np.arange(after[0], after[-1] + 1)
            remaining -= part
        return sources, within

    def counts(self, num_rows: float) -> np.ndarray:
        """How many of the first `num_rows` are of each source (expected; exact to a row or two), float64."""
        return self.shares * num_rows
