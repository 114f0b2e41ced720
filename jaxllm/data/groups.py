"""Encoded answers to prompts on the disk, those to one prompt together, with what was said of them."""

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxllm.data.examples import Example, Examples, open_examples, write_examples

EXAMPLES, SAID = "examples", "said.npz"


class Said(NamedTuple):
    """What was said of n groups of m answers in all.

    Attributes:
      ends: int64 [n], answers up to the end of each group.
      ranks: float32 [m], of each answer in its group: smaller is better, equal is a tie; the best stand first.
      values: float32 [n], the rating, class, or 1 and 0 of a single answer; NaN where answers are compared.
      margins: float32 [n], how much better the first of a pair is said to be; 0: nothing is said.
      prompts: uint64 [n], equal where prompts are.
    """

    ends: np.ndarray
    ranks: np.ndarray
    values: np.ndarray
    margins: np.ndarray
    prompts: np.ndarray


DTYPES = Said(np.int64, np.float32, np.float32, np.float32, np.uint64)  # type: ignore[arg-type]


class Group(NamedTuple):
    """The encoded answers to one prompt (each with it), and what was said of them."""

    answers: tuple[Any, ...]
    ranks: tuple[float, ...]
    value: float
    margin: float
    prompt: int


class Groups(Protocol):
    """What a reader needs of a store."""

    said: Said
    answers: Examples


class GroupStore:
    """A store, opened.

    Attributes:
      said: of its groups.
      answers: the answers, one group's after another's, each with its prompt in front.
    """

    def __init__(self, said: Said, answers: Examples):
        self.said, self.answers = said, answers


class Chosen:
    """Some of a store's groups, by their places."""

    def __init__(self, groups: Groups, which: np.ndarray):
        starts, said = np.concatenate([[0], groups.said.ends[:-1]]), groups.said
        sizes = (said.ends - starts)[which]
        taken = [np.arange(start, stop) for start, stop in zip(starts[which].tolist(), said.ends[which].tolist(), strict=True)]
        self._taken = np.concatenate([*taken, np.zeros(0, np.int64)]).astype(np.int64)
        of_groups = (said.values[which], said.margins[which], said.prompts[which])
        self.said = Said(np.cumsum(sizes), said.ranks[self._taken], *of_groups)
        self.answers: Examples = _Taken(groups.answers, self._taken)


class _Taken:
    """Some of a store's examples, by their places."""

    def __init__(self, examples: Examples, which: np.ndarray):
        self._examples, self._which = examples, which
        self.num_examples = len(which)

    @cached_property
    def lengths(self) -> np.ndarray:
        return self._examples.lengths[self._which]

    @cached_property
    def trained(self) -> np.ndarray:
        return self._examples.trained[self._which]

    def example(self, index: int) -> Example:
        return self._examples.example(int(self._which[index]))


def singles(groups: Groups) -> Groups:
    """Every answer by itself: the best of its group have value 1, the others 0; answers that have a value keep it; ties are left out."""
    said = groups.said
    sizes = np.diff(said.ends, prepend=0)
    of = np.repeat(np.arange(len(sizes)), sizes)
    best, worst = (np.minimum, np.maximum)
    first = np.concatenate([[0], said.ends[:-1]]).astype(np.int64)
    low, high = (extreme.reduceat(said.ranks, first) for extreme in (best, worst))
    values = np.where(np.isnan(said.values[of]), (said.ranks == low[of]).astype(np.float32), said.values[of])
    kept = np.flatnonzero((sizes == 1)[of] | (low < high)[of])
    count = np.arange(1, len(kept) + 1, dtype=np.int64)
    alone = Said(count, np.zeros(len(kept), np.float32), values[kept], np.zeros(len(kept), np.float32), said.prompts[of][kept])
    return GroupStore(alone, _Taken(groups.answers, kept))


def write_groups(
    folder: str | os.PathLike, groups: Iterable[Group], *, vocab_size: int, fingerprint: str, notes: Mapping[str, Any]
) -> None:
    """Writes a store; it is whole when its last file is there.

    Args:
      folder: where to; it must not exist.
      groups: read once.
      vocab_size: of the tokenizer.
      fingerprint: of what they were made from.
      notes: filled in by whoever makes the groups, and written when they have ended.

    Raises:
      ValueError: see `examples.write_examples`.
    """
    path, columns = Path(folder), Said([], [], [], [], [])  # type: ignore[arg-type]
    path.mkdir(parents=True)
    write_examples(path / EXAMPLES, _answers(groups, columns), vocab_size=vocab_size, fingerprint=fingerprint, notes=notes)
    arrays = {name: np.asarray(column, dtype) for name, column, dtype in zip(Said._fields, columns, DTYPES, strict=True)}
    with open(path / f"{SAID}.partial", "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    (path / f"{SAID}.partial").rename(path / SAID)


def _answers(groups: Iterable[Group], columns: Any) -> Iterator[Any]:
    """The answers one by one; what was said of them goes into the columns."""
    count = 0
    for group in groups:
        count += len(group.answers)
        columns.ends.append(count)
        columns.ranks.extend(group.ranks)
        columns.values.append(group.value)
        columns.margins.append(group.margin)
        columns.prompts.append(group.prompt)
        yield from group.answers


def is_whole(folder: str | os.PathLike) -> bool:
    """Whether a store was written to its end."""
    return Path(folder, SAID).exists()


def open_groups(folder: str | os.PathLike, *, fingerprint: str) -> tuple[GroupStore, Mapping[str, Any]]:
    """A store that `write_groups` wrote, and its notes.

    Raises:
      ValueError: see `examples.open_examples`.
    """
    store = open_examples(Path(folder, EXAMPLES), fingerprint=fingerprint)
    with np.load(Path(folder, SAID), allow_pickle=False) as found:
        said = Said(*(found[name] for name in Said._fields))
    assert said.ends[-1] == store.num_examples == len(said.ranks), (said.ends[-1], store.num_examples)
    return GroupStore(said, store), store.index["notes"]
