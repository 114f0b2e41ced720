"""Examples of many lengths into rows of one: best-fit packing, or batches of one bucket's length; pure functions of the lengths."""

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Packed(NamedTuple):
    """Which examples share a row.

    Attributes:
      items: int64 [n], the examples, row after row; within a row in their own order.
      offsets: int64 [rows + 1]: row r holds items[offsets[r] : offsets[r + 1]].
    """

    items: np.ndarray
    offsets: np.ndarray

    @property
    def num_rows(self) -> int:
        return len(self.offsets) - 1


def best_fit(lengths: np.ndarray, capacity: int) -> Packed:
    """Best-fit decreasing (Johnson 1973): the longest example first, each into the fullest row that has room for it.

    Never more than 11/9 of the fewest rows possible, and one more (Johnson, Demers, Ullman, Garey & Graham 1974). Time n log n.

    Args:
      lengths: int [n], each in 1..capacity.
      capacity: T.
    """
    lengths = np.asarray(lengths, np.int64)
    assert not lengths.size or (lengths.min() > 0 and lengths.max() <= capacity), (lengths.min(), lengths.max(), capacity)
    order = np.argsort(-lengths, kind="stable")
    rows = np.empty(len(lengths), np.int64)
    rooms: list[int] = []  # the different sizes of room that open rows have, ascending
    having: dict[int, list[int]] = {}  # room -> the rows that have it
    count = 0
    for item, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        at = bisect.bisect_left(rooms, length)
        if at == len(rooms):
            row, room = count, capacity
            count += 1
        else:
            room = rooms[at]
            row = having[room].pop()
            if not having[room]:
                del rooms[at]
        rows[item] = row
        if left := room - length:
            open_rows = having.setdefault(left, [])
            if not open_rows:
                bisect.insort(rooms, left)
            open_rows.append(row)
    return Packed(np.argsort(rows, kind="stable"), np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))]).astype(np.int64))


def by_length(lengths: np.ndarray, batch_size: int) -> Packed:
    """Batches (here the "rows") of examples of similar length: sorted, longest first, and cut; only the last may be short of examples.

    Args:
      lengths: int [n].
      batch_size: B.
    """
    count = len(lengths)
    offsets = np.minimum(np.arange(-(-count // batch_size) + 1) * batch_size, count)
    return Packed(np.argsort(-np.asarray(lengths, np.int64), kind="stable"), offsets)


def bucket_lengths(longest: int, *, shortest: int = 64, multiple: int = 1) -> tuple[int, ...]:
    """A few lengths to pad to: `longest`, then 3/4 and 1/2 of it, of that, and so on, down to `shortest`; each compiles a program once.

    So at most a third of a batch of equal examples is padding, with two buckets for every doubling of the length.

    Args:
      longest: the largest.
      shortest: none is smaller.
      multiple: each is rounded up to one of this, so far as that leaves it no longer than `longest`.
    """
    found, length = {longest}, longest
    while length % 4 == 0 and length // 2 >= shortest:
        found |= {length // 4 * 3, length // 2}
        length //= 2
    return tuple(sorted({min(-(-length // multiple) * multiple, longest) for length in found}))


def check_buckets(buckets: Sequence[int], sequence_length: int, multiple: int = 1) -> tuple[int, ...]:
    """The buckets, ascending, the whole row among them.

    Args:
      buckets: lengths.
      sequence_length: of the whole row.
      multiple: what divides each.

    Raises:
      ValueError: one that is longer than a row, or no length at all, or that `multiple` does not divide.
    """
    wrong = [bucket for bucket in buckets if not 2 <= bucket <= sequence_length]
    if wrong:
        raise ValueError(f"A bucket of {wrong[0]} tokens is not in 2..{sequence_length} (sequence_length). Leave it out.")
    found = tuple(sorted({*buckets, sequence_length}))
    if odd := [bucket for bucket in found if bucket % multiple]:
        raise ValueError(
            f"A bucket of {odd[0]} tokens (sequence_length={sequence_length}) is no multiple of {multiple},"
            f" as the mesh cuts it: take {-(-odd[0] // multiple) * multiple}."
        )
    return found
