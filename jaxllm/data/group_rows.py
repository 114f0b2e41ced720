"""Answers to prompts into rows of a batch: all answers to a prompt stand in one row, each a segment of its own."""

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxllm.data.example_order import LISTED, NO_PREFIX, TOO_LONG, Elements, Order, Source, TooLong, check_weights
from jaxllm.data.examples import Example
from jaxllm.data.groups import Groups
from jaxllm.data.layouts import LAYOUTS
from jaxllm.data.pipeline import FIELDS, Rows, chosen_rows, empty_row, stack

NONE = -1.0  # the rank of an answer that is not there
OTHER = "other_"  # in front of the fields of mismatched pairs


class Shape(NamedTuple):
    """A batch of B rows of T tokens, with places for G groups of K answers in each row.

    Slot g * K + k of a row is answer k of its group g; the tokens of slot s are segment s + 1.
    """

    batch_size: int
    sequence_length: int
    groups: int
    answers: int

    def arrays(self, rows: int | None = None) -> dict[str, tuple[tuple[int, ...], type]]:
        """The fields of a batch beside `pipeline.FIELDS`: name -> shape, dtype."""
        B = self.batch_size if rows is None else rows
        each, one = (B, self.groups, self.answers), (B, self.groups, 1)
        return {"lengths": (each, np.int32), "ranks": (each, np.float32), "values": (one, np.float32), "margins": (one, np.float32)}


def shape_of(batch_size: int, sequence_length: int, answers: int, packing: str) -> Shape:
    """The shape of batches: padded rows hold one group, packed ones up to 32, or as many as answers of 8 tokens would be."""
    groups = 1 if packing == "padded" else max(1, min(32, sequence_length // (8 * answers)))
    return Shape(batch_size, sequence_length, groups, answers)


@dataclass(frozen=True)
class GroupSource(Source):
    """A source's groups as rows take them; see `example_order.Source`, whose examples are groups here.

    Attributes:
      groups: the store.
      caps: int32 [n], the tokens that each answer of a kept group may have (the prefix aside).
      identical: groups left out because two answers that were judged differently became the same when cut.
    """

    groups: Groups
    caps: np.ndarray
    identical: int


def fit_groups(
    name: str,
    groups: Groups,
    shape: Shape,
    *,
    packed: bool = True,
    too_long: str = "truncate",
    prefix: Sequence[int] | np.ndarray = NO_PREFIX,
) -> GroupSource:
    """Cuts a source's groups to rows of T tokens.

    Args:
      name: of the source.
      groups: a store.
      shape: of batches.
      packed: whether rows are filled with several groups.
      too_long: what happens to a group whose answers do not fit a row together: "truncate" cuts the longest of them on the right until
        they do (the group is left out if nothing of an answer is left, or two that were judged differently are the same then), "skip"
        leaves it out, "refuse" stops. All are counted.
      prefix: ids in front of every answer, with weight 0.

    Raises:
      ValueError: an unknown policy, more answers to a prompt than K, a group refused, or none left.
    """
    if too_long not in TOO_LONG:
        raise ValueError(f"Unknown too_long={too_long!r}. Choose one of: {', '.join(TOO_LONG)}.")
    prefix, said = np.asarray(prefix, np.int32), groups.said
    starts = np.concatenate([[0], said.ends[:-1]]).astype(np.int64)
    sizes, lengths = said.ends - starts, groups.answers.lengths.astype(np.int64)
    if sizes.max() > shape.answers:
        raise ValueError(
            f"Source {name!r} has {sizes.max()} answers to a prompt, and batches have places for {shape.answers}."
            f" Set reward.answers to {sizes.max()}."
        )
    totals = np.add.reduceat(lengths, starts) + sizes * len(prefix)
    long = np.flatnonzero(totals > shape.sequence_length)
    if long.size and too_long == "refuse":
        raise ValueError(
            f"Group {long[0]} of {name!r} has {totals[long[0]]} tokens, more than the {shape.sequence_length} of a row ({long.size} groups"
            " have). Raise sequence_length, or set too_long to truncate or skip."
        )
    caps, fates = np.full(len(sizes), shape.sequence_length, np.int32), {}
    for g in long.tolist():
        own = range(starts[g], said.ends[g])
        cap = fair_cap(lengths[own], shape.sequence_length - len(own) * len(prefix))
        fates[g] = "skipped" if too_long == "skip" else _fate([groups.answers.example(i) for i in own], said.ranks[own], cap)
        caps[g], totals[g] = cap, int(np.minimum(lengths[own], cap).sum()) + len(own) * len(prefix)
    kept = np.setdiff1d(np.arange(len(sizes)), [g for g, fate in fates.items() if fate != "truncated"])
    if not kept.size:
        raise ValueError(f"No group of {name!r} fits a row of {shape.sequence_length} tokens. Raise sequence_length.")
    # No row holds more than G groups: in packed rows a short one counts as a G-th of a row.
    least = -(-shape.sequence_length // shape.groups) if packed else 0
    places = np.maximum(totals[kept], least).astype(np.int32)
    listed = tuple(TooLong(name, g, int(lengths[starts[g] : said.ends[g]].sum()), fates[g]) for g in long[:LISTED].tolist())
    count = list(fates.values()).count
    trained = int(np.add.reduceat(groups.answers.trained.astype(np.int64), starts)[kept].sum())
    return GroupSource(
        name,
        groups.answers,
        kept,
        places,
        prefix,
        room=shape.sequence_length,
        tokens=int(totals[kept].sum()),
        trained=trained,
        truncated=count("truncated"),
        skipped=count("skipped"),
        too_long=listed,
        groups=groups,
        caps=caps[kept],
        identical=count("made identical"),
    )


def fair_cap(lengths: np.ndarray, room: int) -> int:
    """The greatest cap so that min(length, cap) of all lengths fit a room together: the longest are cut first."""
    low, high = 0, int(lengths.max())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(lengths, middle).sum() <= room else (low, middle - 1)
    return low


def _fate(answers: Sequence[Example], ranks: np.ndarray, cap: int) -> str:
    """What becomes of a group when its answers are cut."""
    if any(not answer.weights[:cap].any() for answer in answers):
        return "skipped"
    cut = [answer.tokens[:cap].tobytes() for answer in answers]
    same = any(cut[i] == cut[j] and ranks[i] != ranks[j] for i in range(len(cut)) for j in range(i))
    return "made identical" if same else "truncated"


class Placed(NamedTuple):
    """A group in a row: its source, its place there, and its prompt."""

    source: GroupSource
    item: int

    @property
    def group(self) -> int:
        return int(self.source.kept[self.item])

    def answers(self) -> list[Example]:
        """Its answers, cut."""
        said = self.source.groups.said
        start, cap = int(said.ends[self.group - 1]) if self.group else 0, int(self.source.caps[self.item])
        whole = [self.source.groups.answers.example(i) for i in range(start, int(said.ends[self.group]))]
        return [Example(a.tokens[:cap], a.weights[:cap], a.turns[:cap], a.roles) for a in whole]


def put(row: Rows, at: int, segment: int, example: Example, prefix: np.ndarray = NO_PREFIX, front: str = "") -> int:
    """Writes an example into a row as a segment; returns where it ends. What does not fit is cut."""
    tokens = np.concatenate([prefix, example.tokens])[: len(row[f"{front}tokens"]) - at]
    stop, first = at + len(tokens), at + len(prefix)
    row[f"{front}tokens"][at:stop] = tokens
    row[f"{front}targets"][first : stop - 1] = example.tokens[1 : stop - first]
    row[f"{front}weights"][first : stop - 1] = example.weights[1 : stop - first]
    row[f"{front}segments"][at:stop] = segment
    row[f"{front}positions"][at:stop] = np.arange(stop - at)
    if "turns" in row and not front:
        row["turns"][first:stop] = example.turns[: stop - first]
    return stop


def group_row(placed: Sequence[Placed], shape: Shape, length: int, turns: bool = False) -> Rows:
    """One row: its groups one after the other, each answer a segment.

    Returns:
      arrays [length] as of `pipeline.FIELDS` (and turns), and of `Shape.arrays` without B: lengths int32 [G, K], tokens of each answer, 0
      where there is none; ranks float32 [G, K], -1 there; values and margins float32 [G, 1].
    """
    row = empty_row(length) | ({"turns": np.full(length, -1, np.int32)} if turns else {})
    row |= {name: np.zeros(size[1:], dtype) for name, (size, dtype) in shape.arrays(1).items()}
    row["ranks"][:] = NONE
    at = 0
    for g, one in enumerate(placed):
        said, start = one.source.groups.said, 0
        for k, answer in enumerate(one.answers()):
            start, at = at, put(row, at, g * shape.answers + k + 1, answer, one.source.prefix)
            row["lengths"][g, k] = at - start
            row["ranks"][g, k] = said.ranks[(int(said.ends[one.group - 1]) if one.group else 0) + k]
        row["values"][g] = np.nan_to_num(said.values[one.group])
        row["margins"][g] = said.margins[one.group]
    return row


Partners = Callable[[np.ndarray], np.ndarray]


def borrowed(own: Example, other: Example) -> Example:
    """A prompt with another's answer, for KTO's baseline."""
    mine, theirs = (int(np.argmax(example.weights > 0)) for example in (own, other))
    tokens, weights, turns = (np.concatenate([a[:mine], b[theirs:]]) for a, b in zip(own[:3], other[:3], strict=True))
    return Example(tokens, weights, turns, ())


class GroupReader:
    """The rows of groups of answers: for training shuffled and mixed without end, for evaluation each once and in order.

    Args:
      stores: source name -> its groups.
      shape: of batches.
      seed: of the order; None: an eval set, in order, every group once.
      packing: "packed": rows full of groups; "padded": one group in a row, rows of like length together.
      weights: source name -> share of the groups drawn; None: in proportion to their number.
      too_long: see `fit_groups`.
      prefixes: source name -> ids in front of each of its answers.
      partners: prompts uint64 [rows] of a batch -> int [rows], whose answer each row borrows (`losses.unpaired.mismatched`); rows then have
        the fields other_tokens, other_targets, other_weights, other_segments and other_positions. Rows of one single answer only.
      max_batches: of an eval set.

    Raises:
      ValueError: no source, an unknown packing, or see `fit_groups`.
    """

    def __init__(
        self,
        stores: Mapping[str, Groups],
        shape: Shape,
        *,
        seed: int | None,
        packing: str = "packed",
        weights: Mapping[str, float] | None = None,
        too_long: str = "truncate",
        prefixes: Mapping[str, np.ndarray] | None = None,
        partners: Partners | None = None,
        max_batches: int | None = None,
    ):
        if not stores:
            raise ValueError("There are no comparisons to train on. Check data.train.")
        if packing not in LAYOUTS:
            raise ValueError(f"Unknown data.packing={packing!r}. Choose one of: {', '.join(LAYOUTS)}.")
        assert partners is None or (shape.groups == shape.answers == 1), shape
        self.shape, self.batch_size, self.packing = shape, shape.batch_size, packing
        self.sources = tuple(
            fit_groups(name, store, shape, packed=packing == "packed", too_long=too_long, prefix=(prefixes or {}).get(name, NO_PREFIX))
            for name, store in stores.items()
        )
        self._partners, self._once = partners, seed is None
        self._order = Order(self.sources, seed, check_weights(weights, list(stores)))
        self.layout = LAYOUTS[packing](self._order, shape.sequence_length, shape.batch_size)
        self.buckets: tuple[int, ...] = getattr(self.layout, "buckets", (shape.sequence_length,))
        whole = self.layout.steps_for(self._order.total)
        self.num_batches = whole if max_batches is None else min(whole, max_batches)

    def placed(self, step: int, row: int) -> tuple[int, list[Placed]]:
        """The length of a row of a batch, and the groups in it."""
        length, elements = self.layout.find(step, row)
        if self._once and len(elements.epoch) and elements.epoch.max() > 0:  # the last batch of an eval set is filled up with nothing
            elements = Elements(*(array[:0] for array in elements))
        return length, [
            Placed(self.sources[source], item) for source, item in zip(elements.source.tolist(), elements.item.tolist(), strict=True)
        ]

    def rows(self, step: int, row_indices: Sequence[int] | np.ndarray | None = None, turns: bool = False) -> Rows:
        """Rows of the global batch of a step; see `pipeline.Reader.rows`, `group_row` and `partners`."""
        chosen = chosen_rows(row_indices, self.batch_size)
        if self._partners is None:
            found = [self.placed(step, int(row)) for row in chosen]
            return stack([group_row(groups, self.shape, length, turns) for length, groups in found], chosen)
        return self._with_others(step, chosen, turns)

    def _with_others(self, step: int, chosen: np.ndarray, turns: bool) -> Rows:
        found = [self.placed(step, row) for row in range(self.batch_size)]
        there = [row for row, (_, groups) in enumerate(found) if groups]
        prompts = np.asarray([found[row][1][0].source.groups.said.prompts[found[row][1][0].group] for row in there])
        assert self._partners is not None
        try:
            lent = {row: there[other] for row, other in zip(there, self._partners(prompts).tolist(), strict=True)}
        except ValueError:
            if len(there) == self.batch_size:
                raise
            lent = {}  # too few rows in the last batch of an epoch: it has no pairs for the baseline
        answers = {row: found[row][1][0].answers()[0] for row in there}
        others = {row: borrowed(answers[row], answers[lent[row]]) for row in lent}
        prefixes = {row: found[row][1][0].source.prefix for row in there}
        longest = max([found[0][0], *(len(prefixes[row]) + len(other.tokens) for row, other in others.items())])
        length = self.buckets[min(bisect.bisect_left(self.buckets, longest), len(self.buckets) - 1)]
        rows = []
        for row in chosen.tolist():
            made = group_row(found[row][1], self.shape, length, turns)
            made |= {f"{OTHER}{name}": np.zeros(length, dtype) for name, dtype in FIELDS.items()}
            if row in others:
                put(made, 0, 1, others[row], prefixes[row], OTHER)
            rows.append(made)
        return stack(rows, chosen)

    def epochs(self, step: float) -> dict[str, float]:
        """How often each source has been gone through after `step` batches."""
        return self._order.epochs(self.layout.consumed(step))

    def steps_for(self, epochs: float) -> int:
        """How many updates go through every source at least so often."""
        return self.layout.steps_for(self._order.needed(epochs))

    def describe(self) -> list[str]:
        """What is trained on, in lines for people."""
        lines = [
            f"{s.name}: {len(s.kept):,} groups of answers, {s.tokens:,} tokens, {s.truncated:,} truncated, {s.skipped:,} skipped,"
            f" {s.identical:,} left out as truncation would make their answers equal, {100 * share:.1f} % of the groups drawn."
            for s, share in zip(self.sources, self._order.shares, strict=True)
        ]
        long = [
            f"{x.source}: group {x.example} has {x.length:,} tokens, longer than a row: {x.fate}." for s in self.sources for x in s.too_long
        ]
        return [*lines, *long[:LISTED], f"Rows are {self.packing}, of up to {self.shape.groups} groups of {self.shape.answers} answers."]
