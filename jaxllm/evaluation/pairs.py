"""Files of answers, and of pairs of answers that people judged, as a judge takes them: prompts, first answers, second answers."""

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxllm.tasks.rows import read_rows

ANSWERS = ("text", "answer", "output", "response", "completion")  # fields of an answer; `text` is what `jaxllm sample` writes
BOTH = (("first", "second"), ("response1", "response2"), ("output_1", "output_2"), ("chosen", "rejected"))
WRITTEN = (
    str,
    bool,
    int,
    float,
    type(None),
)  # what an answer may be in a file of labels: some were read as Python before they were published
LABELS = ("label", "preference")  # beside annotator1, annotator2, ...
MEANING = {1: 1.0, 2: 0.0, 0: 0.5, 1.5: 0.5}  # what people's labels say: the first is better, the second, a tie (0, or 1.5)


class Pairs(NamedTuple):
    """Two answers to each prompt."""

    prompts: list[str]
    first: list[str]
    second: list[str]
    groups: list[int]  # the number of a pair's prompt: pairs of one prompt are not independent
    step: int = 0  # of the model that wrote the first answers, where the file says it
    labels: np.ndarray | None = None  # [pairs, annotators]: 1 the first is better, 0 the second, 0.5 a tie, NaN where nothing was said

    def add(self, prompt: str, first: str, second: str, group: int) -> None:
        for column, value in zip((self.prompts, self.first, self.second, self.groups), (prompt, first, second, group), strict=True):
            column.append(value)  # type: ignore[arg-type, attr-defined]

    def limited(self, count: int | None) -> "Pairs":
        """The first pairs; None: all."""
        labels = None if self.labels is None else self.labels[:count]
        return Pairs(self.prompts[:count], self.first[:count], self.second[:count], self.groups[:count], self.step, labels)


class Answers(NamedTuple):
    """One model's answers, several to a prompt where several were written."""

    of: dict[str, list[str]]  # prompt -> its answers, in the order of the file
    fields: tuple[str, ...]  # what was read, of the first line
    step: int


def read_answers(path: str) -> Answers:
    """A file of answers: {prompt, text} as `jaxllm sample` writes them, {prompt, answer}, {instruction, input, output} and their like.

    Raises:
      ValueError: no such file, no answer in it, or a row that is none.
    """
    found, fields, steps = defaultdict[str, list[str]](list), tuple[str, ...](), set[Any]()
    for number, row in enumerate(read_rows(path), 1):
        where = f"Row {number} of {path}"
        prompt, asked = _prompt(row, where)
        name = next((name for name in ANSWERS if isinstance(row.get(name), str)), None)
        if name is None:
            raise ValueError(f"{where} has the fields {', '.join(sorted(row))} and no answer. Name it one of: {', '.join(ANSWERS)}.")
        found[prompt].append(row[name])
        fields = fields or (*asked, name)
        steps.add(row.get("step"))
    if not found:
        raise ValueError(f"{path} has no answers. Write some: jaxllm sample --prompts FILE --output {path}.")
    step = steps.pop() if len(steps) == 1 else 0
    return Answers(dict(found), fields, step if type(step) is int else 0)


def _prompt(row: Mapping[str, Any], where: str) -> tuple[str, tuple[str, ...]]:
    """The prompt of a row and the fields it stands in; an instruction's input follows it after an empty line."""
    fields = next((fields for fields in (("prompt",), ("instruction", "input"), ("input",)) if isinstance(row.get(fields[0]), str)), None)
    if fields is None:
        raise ValueError(f"{where} has the fields {', '.join(sorted(row))} and no prompt. Name it prompt, instruction or input.")
    parts = [row[name] for name in fields if isinstance(row.get(name), str) and row[name]]
    return "\n\n".join(parts), tuple(name for name in fields if name in row)


def paired(first: Answers, second: Answers) -> Pairs:
    """The answers of two models to the same prompts; of several to a prompt, the first with the first, and so on.

    Raises:
      ValueError: a prompt that only one of them answers, or that they answer another number of times.
    """
    lone = [prompt for prompt in itertools.chain(first.of, second.of) if (prompt in first.of) != (prompt in second.of)]
    if lone:
        raise ValueError(
            f"{len(lone)} of {len(first.of.keys() | second.of.keys())} prompts are answered in one file alone: {lone[0][:80]!r}, for one."
            " Give answers to the same prompts."
        )
    found = Pairs([], [], [], [], first.step)
    for group, (prompt, own) in enumerate(first.of.items()):
        if len(own) != len(second.of[prompt]):
            raise ValueError(f"The prompt {prompt[:80]!r} has {len(own)} answers in one file and {len(second.of[prompt])} in the other.")
        for a, b in zip(own, second.of[prompt], strict=True):
            found.add(prompt, a, b, group)
    return found


def read_labelled(path: str) -> Pairs:
    """A file of pairs that people judged, as PandaLM, LLMBar and AlpacaEval publish theirs, or {prompt, chosen, rejected}.

    Labels are 1 (the first is better), 2 (the second is), 0 or 1.5 (a tie), null (nobody said anything); several people's stand in
    annotator1, annotator2, ...; an answer that is null is an empty one, and PandaLM's true is "True". The chosen answer of a
    {chosen, rejected} is the first.

    Raises:
      ValueError: no such file, nothing in it, a row of another form, or another label.
    """
    found, labels, numbers = Pairs([], [], [], []), list[list[float]](), dict[str, int]()
    for number, row in enumerate(read_rows(path), 1):
        where = f"Row {number} of {path}"
        prompt, _ = _prompt(row, where)
        both = next((names for names in BOTH if all(isinstance(row.get(name, ()), WRITTEN) for name in names)), None)
        if both is None:
            forms = " or ".join("{" + ", ".join(names) + "}" for names in BOTH)
            raise ValueError(f"{where} has the fields {', '.join(sorted(row))} and no two answers: {forms}.")
        first, second = ("" if row[name] is None else str(row[name]) for name in both)
        found.add(prompt, first, second, numbers.setdefault(prompt, len(numbers)))
        labels.append([1.0] if both[0] == "chosen" else _labels(row, where))
    if not labels:
        raise ValueError(f"{path} has no pairs.")
    width = max(map(len, labels))
    said = np.array([[*own, *[math.nan] * (width - len(own))] for own in labels])
    return found._replace(labels=said)


def _labels(row: Mapping[str, Any], where: str) -> list[float]:
    """What people said of a pair."""
    names = sorted(name for name in row if name.startswith("annotator")) or [name for name in LABELS if name in row][:1]
    if not names:
        raise ValueError(f"{where} has the fields {', '.join(sorted(row))} and no label. Name it label, preference, or annotator1, ...")
    if odd := [row[name] for name in names if row[name] is not None and not _is_label(row[name])]:
        raise ValueError(f"{where} has the label {odd[0]!r}. Choose from: 1 (the first is better), 2 (the second), 0 or 1.5 (a tie), null.")
    return [math.nan if row[name] is None else MEANING[row[name]] for name in names]


def _is_label(said: Any) -> bool:
    return isinstance(said, int | float) and not isinstance(said, bool) and said in MEANING
