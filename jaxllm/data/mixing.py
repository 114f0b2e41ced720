"""How much of each source: rates from the sources' sizes, and rows of different kinds of stream in one batch."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxllm.data.mixtures import Mixture
from jaxllm.data.pipeline import Rows, chosen_rows, stack

Counts = Mapping[str, int]
Rates = dict[str, float]


def proportional(counts: Counts, *, cap: float | None = None) -> Rates:
    """Examples-proportional: r_m = min(n_m, K) / sum_k min(n_k, K) (T5, arXiv 1910.10683, section 3.5.2; OPT-IML, arXiv 2212.12017: EPS).

    Args:
      counts: n_m, the examples of each source.
      cap: K, from which on a larger source is not drawn from more often; None: no cap.
    """
    if cap is not None and not cap > 0:
        raise ValueError(f"cap={cap} is not a number of examples. Give 1 or more (OPT-IML: 4096), or leave it out.")
    return _normalised({name: float(count if cap is None else min(count, cap)) for name, count in counts.items()})


def tempered(counts: Counts, *, temperature: float = 1.0, cap: float | None = None) -> Rates:
    """Temperature-scaled: the proportional rates, each to the power of 1/T and normalised again (T5, section 3.5.2: T = 2, K = 2^21).

    Args:
      counts: n_m, the examples of each source.
      temperature: T; 1: proportional; the larger, the nearer to equal.
      cap: see `proportional`.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} is not above 0. Give 1 for proportional rates, more for rates nearer to equal.")
    return _normalised({name: rate ** (1 / temperature) for name, rate in proportional(counts, cap=cap).items()})


def equal(counts: Counts) -> Rates:
    """The same for every source."""
    return _normalised(dict.fromkeys(counts, 1.0))


def fixed(counts: Counts, *, weights: Mapping[str, float]) -> Rates:
    """As given, normalised.

    Args:
      counts: names the sources.
      weights: a positive number for each.
    """
    if set(weights) != set(counts):
        raise ValueError(f"Weights are given for {sorted(weights)}, but the sources are {sorted(counts)}. Name each source once.")
    if wrong := [name for name in counts if not weights[name] > 0]:
        raise ValueError(f"Source {wrong[0]!r} has weight {weights[wrong[0]]}. Give it more than 0, or leave the source out.")
    return _normalised({name: float(weights[name]) for name in counts})


RATES: dict[str, Callable[..., Rates]] = {"proportional": proportional, "temperature": tempered, "equal": equal, "fixed": fixed}


def rates(kind: str, counts: Counts, **options: Any) -> Rates:
    """Source name -> its share of the examples drawn; they sum to 1.

    Args:
      kind: one of RATES.
      counts: the examples of each source.
      options: those of that kind.

    Raises:
      ValueError: an unknown kind, an option that it does not have or lacks, a source without examples.
    """
    if kind not in RATES:
        raise ValueError(f"Unknown rates {kind!r}. Choose one of: {', '.join(RATES)}.")
    known = {name: p.default is p.empty for name, p in inspect.signature(RATES[kind]).parameters.items() if p.kind == p.KEYWORD_ONLY}
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"Rates {kind!r} have no option {unknown[0]!r}. Choose from: {', '.join(known) or 'none'}.")
    if missing := [name for name, needed in known.items() if needed and name not in options]:
        raise ValueError(f"Rates {kind!r} need {missing[0]}. Give it, or choose one of: {', '.join(set(RATES) - {kind})}.")
    if empty := [name for name, count in counts.items() if count < 1]:
        raise ValueError(f"Source {empty[0]!r} has no examples. Leave it out.")
    return RATES[kind](counts, **options)


def by_group(rates: Mapping[str, float], groups: Mapping[str, str], weights: Mapping[str, float]) -> Rates:
    """Rates within each group as they are, scaled so that each group has its share (OPT-IML: benchmarks with weights).

    Args:
      rates: source name -> rate.
      groups: source name -> its group.
      weights: group -> relative share.

    Raises:
      ValueError: a source without a group, or weights that do not name the groups.
    """
    if bare := [name for name in rates if name not in groups]:
        raise ValueError(f"Source {bare[0]!r} is in no group. Name its group.")
    totals = dict.fromkeys((groups[name] for name in rates), 0.0)
    for name, rate in rates.items():
        totals[groups[name]] += rate
    shares = fixed(dict.fromkeys(totals, 1), weights=weights)
    return {name: rate / totals[groups[name]] * shares[groups[name]] for name, rate in rates.items()}


def _normalised(numbers: Rates) -> Rates:
    total = sum(numbers.values())
    return {name: number / total for name, number in numbers.items()}


class MixableReader(Protocol):
    """What `MixedReader` needs of a reader: rows of one length, and how often its sources have been gone through."""

    batch_size: int
    sequence_length: int

    def rows(self, step: int, row_indices: Sequence[int] | np.ndarray | None = None) -> Rows: ...
    def epochs(self, step: float) -> dict[str, float]: ...


class MixedReader:
    """Rows of several readers in one batch, by share: packed examples with 5 % of pretraining windows among them, say.

    Row r of step s is element s * batch_size + r of the mixture; the k-th row taken from a reader is its row k mod b of its step k div b,
    where b is its own batch size: it never notices that others are read too.

    Args:
      readers: name -> reader; of rows of one length.
      shares: name -> relative share of the ROWS.
      batch_size: rows of the global batch.

    Raises:
      ValueError: shares that do not name the readers, or rows of different lengths.
    """

    def __init__(self, readers: Mapping[str, MixableReader], shares: Mapping[str, float], *, batch_size: int):
        self.names, self._readers = tuple(readers), tuple(readers.values())
        self._mixture = Mixture(list(fixed(dict.fromkeys(readers, 1), weights=shares).values()))
        self.batch_size, self.sequence_length = batch_size, self._readers[0].sequence_length
        for name, reader in readers.items():
            if getattr(reader, "mode", None) == "padded":
                raise ValueError(
                    f"The rows of {name!r} are padded to buckets and cannot share a batch with others. Set its mode to packed."
                )
            if reader.sequence_length != self.sequence_length:
                raise ValueError(
                    f"The rows of {name!r} have {reader.sequence_length} tokens, those of {self.names[0]!r} {self.sequence_length}."
                    " Give all readers one sequence_length."
                )

    def _taken(self, step: int, chosen: np.ndarray) -> list[tuple[int, int, int]]:
        """(reader, its step, its row) of rows of a batch."""
        first = step * self.batch_size
        numbers, counts = (array[chosen].tolist() for array in self._mixture.places(first, first + self.batch_size))
        return [(number, *divmod(count, self._readers[number].batch_size)) for number, count in zip(numbers, counts, strict=True)]

    def rows(self, step: int, row_indices: Sequence[int] | np.ndarray | None = None) -> Rows:
        """Rows of the global batch of a step; see `pipeline.Reader.rows`. A reader without the field `turns` has -1 there."""
        chosen = chosen_rows(row_indices, self.batch_size)
        taken = self._taken(step, chosen)
        found: dict[tuple[int, int, int], Rows] = {}
        for number, inner in sorted({(number, inner) for number, inner, _ in taken}):
            wanted = sorted({row for *where, row in taken if where == [number, inner]})
            part = self._readers[number].rows(inner, wanted)
            found |= {(number, inner, row): {name: part[name][at] for name in part if name != "row"} for at, row in enumerate(wanted)}
        if any("turns" in row for row in found.values()):
            nothing = {"turns": np.full(self.sequence_length, -1, np.int32)}
            found = {where: nothing | row for where, row in found.items()}
        return stack([found[where] for where in taken], chosen)

    def place(self, step: int, row: int) -> tuple[str, int, int]:
        """(reader, its step, its row) of a row of the global batch of a step: ask that reader for more."""
        number, inner, at = self._taken(step, np.asarray([row]))[0]
        return self.names[number], inner, at

    def epochs(self, step: float) -> dict[str, float]:
        """How often each source of each reader has been gone through after `step` batches, as "reader/source"."""
        counts = self._mixture.counts(step * self.batch_size).tolist()
        found = {
            name: reader.epochs(count / reader.batch_size) for name, reader, count in zip(self.names, self._readers, counts, strict=True)
        }
        return {f"{name}/{source}": value for name, inner in found.items() for source, value in inner.items()}

    def steps_for(self, name: str, steps: int) -> int:
        """How many updates it takes to read so many batches of one of the readers: `steps_for("sft", sft.steps_for(epochs))`."""
        number = self.names.index(name)
        rows = steps * self._readers[number].batch_size / float(self._mixture.shares[number])
        return int(np.ceil(rows / self.batch_size - 1e-9))
