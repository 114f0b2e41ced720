"""Token streams into batches: a batch is a pure function of (seed, step), whoever reads it, however far ahead, from wherever it starts."""

import collections
import concurrent.futures
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxllm.data.mixtures import Mixture, shuffle_key, shuffled

Rows = dict[str, np.ndarray]
FIELDS = {"tokens": np.int32, "targets": np.int32, "weights": np.float32, "segments": np.int32, "positions": np.int32}


class Stream(Protocol):
    """What a reader needs of `token_files.TokenStream`."""

    num_tokens: int

    def read(self, start: int, stop: int) -> np.ndarray: ...
    def ends(self, start: int, stop: int) -> np.ndarray: ...


class RowReader(Protocol):
    """Anything that gives rows of the global batch of a step."""

    batch_size: int

    def rows(self, step: int, row_indices: Sequence[int] | np.ndarray | None = None) -> Rows: ...


def num_windows(num_tokens: int, sequence_length: int) -> int:
    """How many windows of T+1 tokens, T apart, it takes for every token but the first to be a target once."""
    return max(0, -(-(num_tokens - 1) // sequence_length))


def window_row(stream: Stream, window: int, sequence_length: int) -> Rows:
    """One row: tokens [window * T, window * T + T] of the stream as inputs and targets.

    A token attends only within its document (`segments`, `positions` restart), and the last token of a document (its end token) has weight
    0, so that no target crosses into the next. A window past the end is padded with segment 0 and weight 0.

    Returns:
      arrays [T] with the dtypes of `FIELDS`.
    """
    start = window * sequence_length
    stop = min(start + sequence_length + 1, stream.num_tokens)
    tokens = stream.read(start, stop)
    begins = stream.ends(start, stop - 1) - start  # places in the window where a document begins, 0 left out
    size = len(tokens) - 1
    place = np.arange(size + 1, dtype=np.int32)
    segments = np.searchsorted(begins, place, side="right").astype(np.int32) + 1
    first = np.concatenate([[0], begins]).astype(np.int32)
    inside = segments[1:] == segments[:-1]
    row = empty_row(sequence_length)
    row["tokens"][:size] = tokens[:-1]
    row["targets"][:size] = np.where(inside, tokens[1:], 0)
    row["weights"][:size] = inside
    row["segments"][:size] = segments[:-1]
    row["positions"][:size] = (place - first[segments - 1])[:-1]
    return row


def empty_row(sequence_length: int) -> Rows:
    """A row of padding: segment 0, weight 0."""
    return {name: np.zeros(sequence_length, dtype) for name, dtype in FIELDS.items()}


def stack(rows: Sequence[Rows], row_indices: np.ndarray) -> Rows:
    """Rows of the same fields and length as one batch, with their places in the global batch."""
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    batch["row"] = row_indices.astype(np.int32)
    return batch


def chosen_rows(row_indices: Sequence[int] | np.ndarray | None, batch_size: int) -> np.ndarray:
    """Which rows of a global batch are asked for, int64; None: all."""
    chosen = np.arange(batch_size) if row_indices is None else np.asarray(row_indices, np.int64)
    assert chosen.size and chosen.min() >= 0 and chosen.max() < batch_size, (chosen, batch_size)
    return chosen


class Reader:
    """The training rows: windows of every source, shuffled anew in each epoch, mixed by weight, without end.

    Row r of step s is element s * batch_size + r of the mixture; the k-th row taken from a source is window `shuffled(k mod W)` of its
    epoch k div W.

    Args:
      streams: source name -> its tokens.
      sequence_length: T.
      batch_size: rows of the GLOBAL batch.
      seed: of the order.
      weights: source name -> relative share; None: each source in proportion to its windows.
      threads: rows read at the same time (for remote streams); it does not change them.

    Raises:
      ValueError: no stream, a stream too short, or weights that do not name the streams.
    """

    def __init__(
        self,
        streams: Mapping[str, Stream],
        *,
        sequence_length: int,
        batch_size: int,
        seed: int,
        weights: Mapping[str, float] | None = None,
        threads: int = 1,
    ):
        if not streams:
            raise ValueError("There are no tokens to train on. Check data.train, or data.prepared.")
        self.sequence_length, self.batch_size, self.seed = sequence_length, batch_size, seed
        self.names = tuple(streams)
        self._streams = tuple(streams.values())
        self.windows = {name: num_windows(stream.num_tokens, sequence_length) for name, stream in streams.items()}
        for name, count in self.windows.items():
            if count == 0:
                raise ValueError(
                    f"Source {name!r} has {streams[name].num_tokens} tokens, too few for a row. Give it more text, or leave it out."
                )
        if weights is not None and set(weights) != set(streams):
            raise ValueError(f"Weights are given for {sorted(weights)}, but the sources are {sorted(streams)}. Name each source once.")
        self._mixture = Mixture([weights[name] if weights is not None else self.windows[name] for name in self.names])
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, "rows") if threads > 1 else None

    def place(self, step: int, row: int) -> tuple[str, int, int]:
        """(source, epoch, window) of a row of the global batch of a step."""
        source, count = self._mixture[step * self.batch_size + row]
        name = self.names[source]
        epoch, index = divmod(count, self.windows[name])
        window = shuffled(np.asarray([index]), self.windows[name], shuffle_key(self.seed, name, epoch))[0]
        return name, epoch, int(window)

    def _row(self, step: int, row: int) -> Rows:
        name, _, window = self.place(step, row)
        return window_row(self._streams[self.names.index(name)], window, self.sequence_length)

    def rows(self, step: int, row_indices: Sequence[int] | np.ndarray | None = None) -> Rows:
        """Rows of the global batch of a step.

        Args:
          step: batches consumed before it.
          row_indices: which rows, 0..batch_size-1; None: all.

        Returns:
          the fields of a Batch: tokens, targets, segments, positions int32 [rows, T]; weights float32 [rows, T]; row int32 [rows].
        """
        chosen = chosen_rows(row_indices, self.batch_size)
        run = map if self._pool is None else self._pool.map
        return stack(list(run(lambda row: self._row(step, int(row)), chosen)), chosen)

    def epochs(self, step: float) -> dict[str, float]:
        """How often each source has been gone through after `step` batches."""
        counts = self._mixture.counts(step * self.batch_size)
        return {name: float(count) / self.windows[name] for name, count in zip(self.names, counts, strict=True)}


class EvalReader:
    """The rows of an eval split: every window once, in order; the last batch is filled up with rows of weight 0.

    Args:
      stream: the tokens of one source.
      sequence_length: T.
      batch_size: rows of the global batch.
      max_batches: read no more than these; None: all.
    """

    def __init__(self, stream: Stream, *, sequence_length: int, batch_size: int, max_batches: int | None = None):
        self.sequence_length, self.batch_size = sequence_length, batch_size
        self._stream = stream
        self.num_rows = num_windows(stream.num_tokens, sequence_length)
        whole = -(-self.num_rows // batch_size)
        self.num_batches = whole if max_batches is None else min(whole, max_batches)

    def rows(self, step: int, row_indices: Sequence[int] | np.ndarray | None = None) -> Rows:
        """Rows of batch `step` (0..num_batches-1); see `Reader.rows`."""
        assert 0 <= step < self.num_batches, (step, self.num_batches)
        chosen = chosen_rows(row_indices, self.batch_size)
        windows = [step * self.batch_size + int(row) for row in chosen]
        length = self.sequence_length
        return stack([window_row(self._stream, w, length) if w < self.num_rows else empty_row(length) for w in windows], chosen)


class Feed:
    """The batches of a reader one after the other, read ahead by threads; its whole state is how many were consumed.

    Args:
      reader: gives the rows.
      make_global: turns (rows of this process, their indices in the global batch) into global arrays; called in the caller's thread.
      rows: the rows of the global batch that this process reads; None: all.
      prefetch: batches read ahead.
      threads: batches read at the same time.
      position: batches consumed before the first call.
    """

    def __init__(
        self,
        reader: RowReader,
        make_global: Callable[[Rows, np.ndarray], Any],
        *,
        rows: Sequence[int] | np.ndarray | None = None,
        prefetch: int = 2,
        threads: int = 1,
        position: int = 0,
    ):
        self._reader, self._make_global, self._prefetch = reader, make_global, max(prefetch, 0)
        self._rows = chosen_rows(rows, reader.batch_size)
        self._pool = concurrent.futures.ThreadPoolExecutor(max(threads, 1), "feed")
        self._ahead: collections.deque[concurrent.futures.Future] = collections.deque()
        self._position = position

    def __call__(self, state: Any = None, frozen: Any = None) -> Any:
        while len(self._ahead) < self._prefetch + 1:
            self._ahead.append(self._pool.submit(self._reader.rows, self._position + len(self._ahead), self._rows))
        rows = self._ahead[0].result()
        batch = self._make_global(rows, self._rows)
        self._ahead.popleft()
        self._position += 1
        self._ahead.append(self._pool.submit(self._reader.rows, self._position + len(self._ahead), self._rows))
        return batch

    def state(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {"position": self._position}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to where `state()` was taken."""
        self._drop()
        self._position = int(state["position"])

    def _drop(self) -> None:
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()

    def close(self) -> None:
        """Ends the threads."""
        self._drop()
        self._pool.shutdown(wait=True, cancel_futures=True)
