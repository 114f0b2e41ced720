"""How an endless sequence of examples becomes batches: rows packed full, or rows of one example padded to a bucket."""

import bisect
import collections
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from jaxllm.data.example_order import Elements, Order
from jaxllm.data.packing import best_fit, bucket_lengths, by_length, check_buckets

WINDOW = 8192  # examples that are packed, or sorted, together
PLANS = 16  # windows whose plan is kept
MEASURED = 8  # windows that the efficiency is measured on


class Layout(Protocol):
    """What a reader needs of a layout."""

    def find(self, step: int, row: int) -> tuple[int, Elements]: ...
    def consumed(self, step: float) -> float: ...
    def steps_for(self, num_elements: float) -> int: ...
    def efficiency(self) -> float: ...


class Plan(NamedTuple):
    """A window's examples in the order of their rows: row (or batch) r holds elements[offsets[r] : offsets[r + 1]]."""

    elements: Elements
    lengths: np.ndarray
    offsets: np.ndarray

    def row(self, index: int) -> Elements:
        return self.elements.take(slice(int(self.offsets[index]), int(self.offsets[index + 1])))


class Recent:
    """A function of an integer whose last few results are kept; any thread may ask."""

    def __init__(self, make: Callable[[int], Plan], size: int = PLANS):
        self._make, self._size = make, size
        self._kept: collections.OrderedDict[int, Plan] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, index: int) -> Plan:
        with self._lock:
            if index not in self._kept:
                self._kept[index] = self._make(index)
            self._kept.move_to_end(index)
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
            return self._kept[index]


def _arranged(order: Order, start: int, stop: int, cut: Callable, *key: int | str) -> Plan:
    """Elements [start, stop) packed by `cut` and the rows shuffled."""
    elements = order.elements(start, stop)
    lengths = order.lengths(elements)
    items, offsets = cut(lengths)
    chosen = order.shuffle(len(offsets) - 1, *key)
    items = np.concatenate([items[offsets[row] : offsets[row + 1]] for row in chosen.tolist()])
    return Plan(elements.take(items), lengths[items], np.concatenate([[0], np.cumsum(np.diff(offsets)[chosen])]))


class PackedLayout:
    """Rows of T tokens packed full, each window of the sequence by itself; an epoch is cut into windows of equal size, at most WINDOW.

    Row r of the run is found by the rows of the windows before: those are packed once, in order, at about a quarter of a million examples
    a second.

    Args:
      order: the examples.
      sequence_length: T.
      batch_size: B.
    """

    def __init__(self, order: Order, sequence_length: int, batch_size: int):
        self._order, self._length, self._batch = order, sequence_length, batch_size
        self._per_epoch = -(-order.total // WINDOW)
        self._plan = Recent(self._make)
        self._firsts = [0]  # the first row of each window, as far as windows were packed
        self._lock = threading.Lock()

    def _start(self, window: int) -> int:
        """The element that a window begins with."""
        epoch, part = divmod(window, self._per_epoch)
        return epoch * self._order.total + part * self._order.total // self._per_epoch

    def _make(self, window: int) -> Plan:
        start, stop = self._start(window), self._start(window + 1)
        return _arranged(self._order, start, stop, lambda lengths: best_fit(lengths, self._length), "rows", window)

    def first(self, window: int) -> int:
        """The first row of a window."""
        with self._lock:
            while len(self._firsts) <= window:
                self._firsts.append(self._firsts[-1] + len(self._plan(len(self._firsts) - 1).offsets) - 1)
            return self._firsts[window]

    def window_of(self, row: int) -> int:
        """Which window a row of the run is in."""
        while self._firsts[-1] <= row:
            self.first(len(self._firsts))
        return bisect.bisect_right(self._firsts, row) - 1

    def find(self, step: int, row: int) -> tuple[int, Elements]:
        """The length of a row of the batch of a step, and the examples in it."""
        index = step * self._batch + row
        window = self.window_of(index)
        return self._length, self._plan(window).row(index - self._firsts[window])

    def consumed(self, step: float) -> float:
        """How many elements the batches before a step hold."""
        row = int(step * self._batch)
        window = self.window_of(row)
        return self._start(window) + float(self._plan(window).offsets[row - self._firsts[window]])

    def steps_for(self, num_elements: float) -> int:
        """How many batches hold the first `num_elements`; exact at the end of a window, in proportion within."""
        window = int(num_elements // self._order.total) * self._per_epoch
        while self._start(window + 1) <= num_elements:
            window += 1
        part = (num_elements - self._start(window)) / (self._start(window + 1) - self._start(window))
        rows = self.first(window) + (part * (self.first(window + 1) - self.first(window)) if part else 0)
        return int(np.ceil(rows / self._batch - 1e-9))

    def num_rows(self) -> int:
        """Rows of the first epoch."""
        return self.first(self._per_epoch)

    def efficiency(self) -> float:
        """The share of a row's places that hold a token, over the first epoch or its first windows."""
        plans = [self._plan(window) for window in range(min(self._per_epoch, MEASURED))]
        return sum(plan.lengths.sum() for plan in plans) / (sum(len(plan.offsets) - 1 for plan in plans) * self._length)


class PaddedLayout:
    """Rows of one example; a batch is as long as the smallest bucket that holds all of it, and windows are sorted by length.

    Shapes are static, so each bucket compiles the train step once. The last batch of an epoch is filled up with empty rows.

    Args:
      order: the examples.
      sequence_length: T, the largest bucket.
      batch_size: B.
      buckets: lengths to pad to; None: `packing.bucket_lengths`.
      multiple: what must divide each of them.
    """

    def __init__(self, order: Order, sequence_length: int, batch_size: int, buckets: Sequence[int] | None = None, multiple: int = 1):
        self._order, self._batch = order, batch_size
        found = bucket_lengths(sequence_length, multiple=multiple) if buckets is None else buckets
        self.buckets = check_buckets(found, sequence_length, multiple)
        self._per_window = max(1, WINDOW // batch_size)  # batches
        self._per_epoch = -(-order.total // batch_size)  # batches
        self._windows = -(-self._per_epoch // self._per_window)
        self._plan = Recent(self._make)

    def _make(self, window: int) -> Plan:
        epoch, part = divmod(window, self._windows)
        size = self._per_window * self._batch
        start, stop = epoch * self._order.total + part * size, epoch * self._order.total + min((part + 1) * size, self._order.total)
        return _arranged(self._order, start, stop, lambda lengths: by_length(lengths, self._batch), "batches", window)

    def _batch_of(self, step: int) -> tuple[int, Elements]:
        epoch, batch = divmod(step, self._per_epoch)
        plan = self._plan(epoch * self._windows + batch // self._per_window)
        elements = plan.row(batch % self._per_window)
        return self.buckets[bisect.bisect_left(self.buckets, int(self._order.lengths(elements).max()))], elements

    def find(self, step: int, row: int) -> tuple[int, Elements]:
        """The length of a row of the batch of a step, and the example in it (none in a row that fills the last batch up)."""
        length, elements = self._batch_of(step)
        return length, elements.take(slice(row, row + 1))

    def consumed(self, step: float) -> float:
        """How many elements the batches before a step hold."""
        epoch, batch = divmod(step, self._per_epoch)
        return epoch * self._order.total + min(batch * self._batch, self._order.total)

    def steps_for(self, num_elements: float) -> int:
        """How many batches hold the first `num_elements`."""
        epochs, rest = divmod(num_elements, self._order.total)
        return int(epochs) * self._per_epoch + int(np.ceil(rest / self._batch - 1e-9))

    def efficiency(self) -> float:
        """The share of a batch's places that hold a token, over the first epoch or its first windows."""
        batches = [self._batch_of(step) for step in range(min(self._per_epoch, MEASURED * self._per_window))]
        held = sum(int(self._order.lengths(elements).sum()) for _, elements in batches)
        return held / (self._batch * sum(length for length, _ in batches))


LAYOUTS: dict[str, Callable[..., Layout]] = {"packed": PackedLayout, "padded": PaddedLayout}
