"""Texts of a task's rows as tokens: what stands before an answer, with as many solved examples as fit."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxllm.data.tokenizer_kinds import Tokenizer
from jaxllm.sampling.text import encode_prompt
from jaxllm.tasks.task import Choice, Continuation, Row, Task

Pair = tuple[list[int], list[int]]  # what stands before, what follows


class Split(NamedTuple):
    """The rows of a task: solved ones that are shown, and those that are asked."""

    shown: list[Row]
    asked: list[Row]


def split(task: Task, rows: Sequence[Row], examples: Sequence[Row] | None = None) -> Split:
    """The first `task.shots` rows of `examples`, or, without any, of the rows themselves, which are then not asked.

    Raises:
      ValueError: fewer rows than shots, or none left to ask.
    """
    source = rows if examples is None else examples
    asked = list(rows if examples is not None else rows[task.shots :])
    if task.shots < 0 or len(source) < task.shots or not asked:
        raise ValueError(f"tasks.shots={task.shots} of {len(source)} rows leaves nothing to ask. Give fewer, at least 0.")
    return Split(list(source[: task.shots]), asked)


def pair(tokenizer: Tokenizer, before: str, after: str) -> Pair:
    """The tokens of `before + after`, cut where `before` ends; spaces at its end, line ends too, belong to what follows (lm-eval's rule).

    A token that joins characters of both belongs to what stands before, unless nothing would be left: that is lm-eval's rule too.
    A text begins with the beginning-of-text token where the tokenizer has one, and with the end-of-text token where `before` is empty.
    """
    spaces = len(before) - len(before.rstrip())
    if spaces:
        before, after = before[:-spaces], before[-spaces:] + after
    start = [*tokenizer.opening, *([] if tokenizer.bos_id is None else [tokenizer.bos_id])]
    head, whole = tokenizer.encode(before).tolist() if before else [], tokenizer.encode(before + after).tolist()
    cut = len(head)
    if cut >= len(whole):  # the last characters of both became one token
        cut = next((i for i, (a, b) in enumerate(zip(head, whole, strict=False)) if a != b), len(whole) - 1)
    return start + whole[:cut] or [tokenizer.eos_id], whole[cut:]


def pairs_of(task: Task, tokenizer: Tokenizer, row: Row, shown: str) -> tuple[list[Pair], list[int]]:
    """The pairs of one row, and how many characters each choice has, or bytes a continuation."""
    if isinstance(task, Choice):
        texts = [(shown + before, after) for before, after in task.pairs(row)]
        sizes = [len(after) - len(task.BEFORE_ANSWER) for _, after in texts]
    else:
        assert isinstance(task, Continuation)
        before, after = shown + task.prompt(row), task.target(row)
        spaced = not before or before[-1].isspace() or after[:1].isspace()  # as published
        texts, sizes = [(before, after if spaced else task.BEFORE_ANSWER + after)], [len(after.encode())]
    return [pair(tokenizer, *text) for text in texts], sizes


def windows(tokenizer: Tokenizer, text: str, length: int) -> list[Pair]:
    """A document as pairs that predict each of its tokens once, after as much as a window of `length` tokens holds (lm-eval's rule)."""
    ids = tokenizer.encode(text).tolist()
    first = [*tokenizer.opening, tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id]
    opening, length = list(tokenizer.opening), length - len(tokenizer.opening)
    pairs: list[Pair] = [(first, ids[:length])] if ids else []
    for start in range(length, len(ids), length):
        end = min(start + length, len(ids))
        pairs.append((opening + ids[max(0, end - length - 1) : start], ids[start:end]))
    return pairs


def fitting(name: str, task: Task, split: Split, longest: Callable[[str, Sequence[Row]], tuple[int, int]], room: int) -> tuple[int, str]:
    """As many of the examples as leave room for every row.

    Args:
      name: of the task.
      task: what is asked.
      split: its rows.
      longest: (text before, rows) -> the most tokens of any of them with it, and which row that is.
      room: how many tokens there may be.

    Returns:
      How many examples, and the text of them.

    Raises:
      ValueError: a row does not fit without any; names it.
    """
    for shots in range(len(split.shown), -1, -1):
        shown = task.shown(split.shown[:shots])
        size, row = longest(shown, split.asked)
        if size <= room:
            return shots, shown
    raise ValueError(f"{name}: row {row + 1} has {size} tokens and may have {room} here. Leave such rows out, or use another model.")


def prompt_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """A prompt that the model continues."""
    return encode_prompt(tokenizer, text).tolist()
