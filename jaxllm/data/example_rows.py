"""Encoded examples into rows of a batch, for training and for evaluation: pure functions of (seed, step), whoever reads them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxllm.data.example_order import LISTED, NO_PREFIX, Elements, Order, Source, check_weights, fit
from jaxllm.data.examples import Examples
from jaxllm.data.layouts import LAYOUTS, PackedLayout
from jaxllm.data.pipeline import Rows, chosen_rows, empty_row, stack


class Placed(NamedTuple):
    """An example in a row.

    Attributes:
      source: its name.
      example: which of the source's.
      epoch: how often the source was gone through before.
      start: its first place in the row.
      length: the tokens it takes there, the prefix among them.
      roles: of its turns.
    """

    source: str
    example: int
    epoch: int
    start: int
    length: int
    roles: tuple[str, ...]


def placed(sources: Sequence[Source], elements: Elements) -> list[Placed]:
    """The examples of a row, one after the other from its beginning."""
    found, start = [], 0
    for number, item, epoch in zip(*(array.tolist() for array in elements), strict=True):
        source = sources[number]
        example, length = int(source.kept[item]), int(source.lengths[item])
        found.append(Placed(source.name, example, epoch, start, length, source.examples.example(example).roles))
        start += length
    return found


def example_row(sources: Sequence[Source], elements: Elements, length: int, turns: bool = False) -> Rows:
    """One row: each example a segment of its own, with its tokens as inputs and its next tokens as targets.

    The last token of a segment has no target: target and weight 0. So do the tokens of a prefix, whose ids may lie beyond the vocabulary.

    Args:
      sources: where the examples are from.
      elements: the examples, in their order.
      length: of the row; what is left is padding, of segment 0.
      turns: whether `turns` is among the fields: which message of its segment a token belongs to; -1: none.

    Returns:
      arrays [length] with the dtypes of `pipeline.FIELDS`; turns int32.
    """
    row = empty_row(length) | ({"turns": np.full(length, -1, np.int32)} if turns else {})
    start = 0
    for segment, (number, item) in enumerate(zip(elements.source.tolist(), elements.item.tolist(), strict=True), 1):
        source = sources[number]
        example = source.examples.example(int(source.kept[item]))
        stop = start + int(source.lengths[item])
        first = start + len(source.prefix)
        row["tokens"][start:first] = source.prefix
        row["tokens"][first:stop] = example.tokens[: source.room]
        row["targets"][first : stop - 1] = example.tokens[1 : source.room]
        row["weights"][first : stop - 1] = example.weights[1 : source.room]
        row["segments"][start:stop] = segment
        row["positions"][start:stop] = np.arange(stop - start)
        if turns:
            row["turns"][first:stop] = example.turns[: source.room]
        start = stop
    return row


class ExampleReader:
    """The training rows of encoded examples: shuffled anew in each epoch, mixed by weight, packed or padded, without end.

    Args:
      stores: source name -> its examples.
      sequence_length: T.
      batch_size: rows of the GLOBAL batch.
      seed: of the order.
      mode: "packed": rows of T tokens, full of examples; "padded": rows of one example, each batch as long as one of `buckets`.
      weights: source name -> relative share of the EXAMPLES (see `mixing.rates`); None: in proportion to their number.
      too_long: "truncate", "skip" or "refuse", see `example_order.fit`.
      prefixes: source name -> ids put in front of each of its examples with weight 0.
      buckets: lengths of batches in mode "padded"; None: `packing.bucket_lengths`.
      multiple: what must divide the buckets: twice the devices that sequences are cut over, where they are cut.
      turns: whether rows have the field `turns`, see `example_row`.

    Raises:
      ValueError: no source, an unknown mode or policy, weights or prefixes that do not name the sources, or see `fit`.
    """

    def __init__(
        self,
        stores: Mapping[str, Examples],
        *,
        sequence_length: int,
        batch_size: int,
        seed: int,
        mode: str = "packed",
        weights: Mapping[str, float] | None = None,
        too_long: str = "truncate",
        prefixes: Mapping[str, Sequence[int] | np.ndarray] | None = None,
        buckets: Sequence[int] | None = None,
        multiple: int = 1,
        turns: bool = False,
    ):
        prefixes = prefixes or {}
        if not stores:
            raise ValueError("There are no examples to train on. Check data.train.")
        if mode not in LAYOUTS:
            raise ValueError(f"Unknown mode={mode!r}. Choose one of: {', '.join(LAYOUTS)}.")
        if unknown := set(prefixes) - set(stores):
            raise ValueError(f"A prefix is given for {min(unknown)!r}, but the sources are {sorted(stores)}. Name one of them.")
        if buckets is not None and mode != "padded":
            raise ValueError(
                f"buckets={tuple(buckets)} are given, but mode={mode!r} pads to no bucket. Set mode to padded, or leave them out."
            )
        self.sequence_length, self.batch_size, self.mode, self._turns = sequence_length, batch_size, mode, turns
        self.sources = tuple(
            fit(name, store, sequence_length, too_long=too_long, prefix=prefixes.get(name, NO_PREFIX)) for name, store in stores.items()
        )
        self._order = Order(self.sources, seed, check_weights(weights, list(stores)))
        extra = {"buckets": buckets, "multiple": multiple} if mode == "padded" else {}
        self.layout = LAYOUTS[mode](self._order, sequence_length, batch_size, **extra)
        self.buckets: tuple[int, ...] = getattr(self.layout, "buckets", (sequence_length,))  # every length that a batch can have

    def rows(self, step: int, row_indices: Sequence[int] | np.ndarray | None = None) -> Rows:
        """Rows of the global batch of a step; see `pipeline.Reader.rows`. In mode "padded" T is the length of the step's bucket."""
        chosen = chosen_rows(row_indices, self.batch_size)
        found = [self.layout.find(step, int(row)) for row in chosen]
        return stack([example_row(self.sources, elements, length, self._turns) for length, elements in found], chosen)

    def place(self, step: int, row: int) -> list[Placed]:
        """The examples in a row of the global batch of a step."""
        return placed(self.sources, self.layout.find(step, row)[1])

    def roles(self, step: int, row: int) -> list[tuple[str, ...]]:
        """The roles of the messages of each segment of a row, from segment 1 on: what its field `turns` counts."""
        return [example.roles for example in self.place(step, row)]

    def epochs(self, step: float) -> dict[str, float]:
        """How often each source has been gone through after `step` batches."""
        return self._order.epochs(self.layout.consumed(step))

    def steps_for(self, epochs: float) -> int:
        """How many updates go through every source at least so often (in a weighted mixture: through the slowest of them, on average)."""
        return self.layout.steps_for(self._order.needed(epochs))

    def statistics(self) -> dict[str, Any]:
        """What is trained on: of each source (and in all) examples, tokens, trained, truncated, skipped; share, efficiency, too_long."""
        names = ("tokens", "trained", "truncated", "skipped")
        sources = {
            source.name: {"examples": len(source.kept)} | {name: getattr(source, name) for name in names} | {"share": float(share)}
            for source, share in zip(self.sources, self._order.shares, strict=True)
        }
        total = {name: sum(said[name] for said in sources.values()) for name in ("examples", *names)}
        too_long = [found for source in self.sources for found in source.too_long]
        return {"sources": sources, **total, "efficiency": float(self.layout.efficiency()), "too_long": too_long}

    def describe(self) -> list[str]:
        """The statistics in lines for people."""
        said = self.statistics()
        lines = [
            f"{name}: {s['examples']:,} examples, {s['tokens']:,} tokens, {s['trained']:,} trained on,"
            f" {s['truncated']:,} truncated, {s['skipped']:,} skipped, {100 * s['share']:.1f} % of the examples drawn."
            for name, s in said["sources"].items()
        ]
        lines += [
            f"{x.source}: example {x.example} has {x.length:,} tokens, longer than a row: {x.fate}." for x in said["too_long"][:LISTED]
        ]
        return [*lines, f"Rows are {self.mode}: {100 * said['efficiency']:.1f} % of their places hold a token."]


class ExampleEvalReader:
    """The rows of an eval set: every example once, packed, in order; the last batch is filled up with empty rows.

    Args:
      examples: of one source.
      sequence_length: T.
      batch_size: rows of the global batch.
      max_batches: read no more than these; None: all.
      too_long: "truncate", "skip" or "refuse".
      prefix: ids put in front of each example with weight 0.
      turns: whether rows have the field `turns`.
      name: of the source, for what is said of it.

    Raises:
      ValueError: see `example_order.fit`.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        sequence_length: int,
        batch_size: int,
        max_batches: int | None = None,
        too_long: str = "truncate",
        prefix: Sequence[int] | np.ndarray = NO_PREFIX,
        turns: bool = False,
        name: str = "eval",
    ):
        self.sequence_length, self.batch_size, self._turns = sequence_length, batch_size, turns
        self.sources = (fit(name, examples, sequence_length, too_long=too_long, prefix=prefix),)
        self._layout = PackedLayout(Order(self.sources, None), sequence_length, batch_size)
        self.num_rows = self._layout.num_rows()
        whole = -(-self.num_rows // batch_size)
        self.num_batches = whole if max_batches is None else min(whole, max_batches)

    def _elements(self, step: int, row: int) -> Elements:
        if step * self.batch_size + row < self.num_rows:
            return self._layout.find(step, row)[1]
        nothing = np.zeros(0, np.int64)
        return Elements(nothing, nothing, nothing)

    def rows(self, step: int, row_indices: Sequence[int] | np.ndarray | None = None) -> Rows:
        """Rows of batch `step` (0..num_batches-1); see `ExampleReader.rows`."""
        assert 0 <= step < self.num_batches, (step, self.num_batches)
        chosen = chosen_rows(row_indices, self.batch_size)
        rows = [example_row(self.sources, self._elements(step, int(row)), self.sequence_length, self._turns) for row in chosen]
        return stack(rows, chosen)

    def place(self, step: int, row: int) -> list[Placed]:
        """The examples in a row of a batch."""
        return placed(self.sources, self._elements(step, row))
