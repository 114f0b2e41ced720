"""What is kept from training, at three levels of strangeness: whole categories, tasks of seen categories, instances of seen tasks."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from jaxllm.data.examples import Example, Examples
from jaxllm.data.preparation import document_hash, held_out

LEVELS = ("category", "task", "instance")


class Part:
    """Some of a store's examples.

    Args:
      examples: the store.
      which: int [n], those that are taken, by their place in it.
    """

    def __init__(self, examples: Examples, which: np.ndarray):
        self.examples, self.which = examples, np.asarray(which, np.int64)
        self.num_examples = len(self.which)

    @cached_property
    def lengths(self) -> np.ndarray:
        """int32 [n], tokens of each."""
        return self.examples.lengths[self.which]

    @cached_property
    def trained(self) -> np.ndarray:
        """int32 [n], targets of each that have a weight."""
        return self.examples.trained[self.which]

    def example(self, index: int) -> Example:
        """Example `index` of 0..n-1."""
        return self.examples.example(int(self.which[index]))


class Split(NamedTuple):
    """What is trained on, and the eval sets of each level: task -> examples."""

    train: dict[str, Examples]
    evals: dict[str, dict[str, Examples]]


def whole(example: Example) -> np.ndarray:
    """All of an example's tokens: copies of an example are on one side."""
    return example.tokens


def prompt(example: Example) -> np.ndarray:
    """The tokens before the first that is trained on: other answers to a question are on its side."""
    return example.tokens[: int(np.argmax(example.weights > 0))]


KEYS: dict[str, Callable[[Example], np.ndarray]] = {"example": whole, "prompt": prompt}


def hold_out(
    tasks: Mapping[str, Examples],
    table: Mapping[str, str],
    *,
    categories: Sequence[str] = (),
    held_tasks: Sequence[str] = (),
    instances: float = 0.0,
    by: str = "example",
) -> Split:
    """Splits tasks into what is trained on and the three generalization levels of OPT-IML (arXiv 2212.12017).

    A pure function: an instance is held out by a hash of its tokens, whatever else is in the data and in whatever order.

    Args:
      tasks: task -> its examples.
      table: task -> its category.
      categories: held out whole, level "category": nothing like their tasks is trained on.
      held_tasks: level "task": others of their category are trained on.
      instances: the fraction of the examples of every other task that is held out, level "instance".
      by: what of an example decides: "example" (all its tokens) or "prompt" (those before the first that is trained on).

    Returns:
      the split; tasks of which nothing is left do not appear.

    Raises:
      ValueError: a task without a category, an unknown category or task, a task held out twice or with all its category, a fraction that
        is none, or nothing left to train on.
    """
    _check(tasks, table, categories, held_tasks, instances, by)
    split = Split({}, {level: {} for level in LEVELS})
    for name, examples in tasks.items():
        if table[name] in categories:
            split.evals["category"][name] = examples
        elif name in held_tasks:
            split.evals["task"][name] = examples
        else:
            out = _held(examples, instances, KEYS[by])
            for side, which in ((split.train, ~out), (split.evals["instance"], out)):
                if which.any():
                    side[name] = examples if which.all() else Part(examples, np.flatnonzero(which))
    if not split.train:
        raise ValueError("Everything is held out: no example is left to train on. Hold fewer categories or tasks out.")
    return split


def _held(examples: Examples, fraction: float, key: Callable[[Example], np.ndarray]) -> np.ndarray:
    """bool [n], which examples are held out."""
    if not fraction:
        return np.zeros(examples.num_examples, bool)
    keys = (key(examples.example(index)).astype("<i4").tobytes().hex() for index in range(examples.num_examples))
    return np.asarray([held_out(document_hash(text), fraction) for text in keys], bool)


def _check(
    tasks: Mapping[str, Examples], table: Mapping[str, str], categories: Sequence[str], held_tasks: Sequence[str], instances: float, by: str
) -> None:
    if bare := sorted(set(tasks) - set(table)):
        raise ValueError(f"Task {bare[0]!r} has no category. Give the table a line for it.")
    known = {table[name] for name in tasks}
    if unknown := sorted(set(categories) - known):
        raise ValueError(f"Unknown category {unknown[0]!r}. Choose from: {', '.join(sorted(known))}.")
    if unknown := sorted(set(held_tasks) - set(tasks)):
        raise ValueError(f"Unknown task {unknown[0]!r}. Choose from: {', '.join(sorted(tasks))}.")
    for name in held_tasks:
        if table[name] in categories:
            raise ValueError(f"Task {name!r} is held out with its category {table[name]!r} already. Leave it out of the tasks.")
        if all(other in held_tasks for other in tasks if table[other] == table[name]):
            raise ValueError(
                f"No task of {table[name]!r} is left to train on, so {name!r} is of an unseen category. Hold out {table[name]!r} instead."
            )
    if not 0 <= instances < 1:
        raise ValueError(f"instances={instances} is not a fraction. Give 0 or more, and less than 1.")
    if by not in KEYS:
        raise ValueError(f"Unknown by={by!r}. Choose one of: {', '.join(KEYS)}.")
