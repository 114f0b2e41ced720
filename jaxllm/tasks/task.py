"""A task: what is asked about a row, a right answer to it, and how an answer is scored. It holds no rows, no model and no tokenizer."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

Row = Mapping[str, Any]
Fields = tuple[tuple[str, ...], ...]
Scores = dict[str, float]  # metric -> number; a metric of a row is averaged over the rows


class WrongRow(ValueError):
    """A row that is not of the task's format."""


class Unscored(Exception):
    """An answer that cannot be judged (a verifier that broke, a judge that answered nonsense): its score is missing, never 0."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What every task says of a row.

    Attributes:
      shots: how many solved rows stand before the one that is asked.
      description: a sentence before all of them.

    Class attributes:
      FIELDS: what a row of the published format has; of several formats, a set each.
      METRIC: by which models are compared.
      BETWEEN: what stands between two shots.
      BEFORE_ANSWER: what stands between a prompt and its answer.
      SHOTS: the field that says how many solved examples are shown.
    """

    shots: int = 0
    description: str = ""

    FIELDS: ClassVar[Fields] = ()
    METRIC: ClassVar[str] = "accuracy"
    BETWEEN: ClassVar[str] = "\n\n"
    BEFORE_ANSWER: ClassVar[str] = " "
    SHOTS: ClassVar[str] = "shots"

    def normal(self, row: Row) -> Row:
        """The row in the one form that the methods below read.

        Raises:
          WrongRow: fields are missing, or say what cannot be.
        """
        if not any(all(name in row for name in fields) for fields in self.FIELDS):
            forms = " or ".join("{" + ", ".join(fields) + "}" for fields in self.FIELDS)
            raise WrongRow(
                f"{_lacking(row, self.FIELDS)}; its fields are {', '.join(sorted(row))}, and {type(self).__name__} needs {forms}"
            )
        return row

    def prompt(self, row: Row) -> str:
        """What is asked of a normal row, up to where the answer begins."""
        raise NotImplementedError

    def target(self, row: Row) -> str:
        """A right answer of a normal row, as it would follow `BEFORE_ANSWER`: a shot, or what tuning learns."""
        raise NotImplementedError

    def shown(self, examples: Sequence[Row]) -> str:
        """The text before a prompt: the description and the solved examples, which are normal rows."""
        parts = [self.description] if self.description else []
        parts += [self.prompt(row) + self.BEFORE_ANSWER + self.target(row) for row in examples]
        return "".join(part + self.BETWEEN for part in parts)

    def material(self, row: Row) -> str:
        """What a model has to have read to know the row before it is asked: the question and a right answer."""
        return self.prompt(row) + self.BEFORE_ANSWER + self.target(row)

    def kept(self, row: Row) -> dict[str, Any]:
        """What a record of evals.jsonl says of the row beside the answer and the scores."""
        return {"target": self.target(row)}


@dataclasses.dataclass(frozen=True)
class Choice(Task):
    """Several continuations, of which the model should find one likeliest.

    The metrics are lm-evaluation-harness's acc and acc_norm: `accuracy` by the sum of log-probabilities, `accuracy_norm` by the sum per
    character of the choice.
    """

    FIELDS: ClassVar[Fields] = (("query", "choices", "gold"),)

    def normal(self, row: Row) -> Row:
        """{query, choices, gold}; see `Task.normal`."""
        row = super().normal(row)
        if not isinstance(row["query"], str):
            raise WrongRow(f"has query={row['query']!r:.100}, which is no text")
        if not _texts(row["choices"]):
            raise WrongRow(f"has choices={row['choices']!r:.100}, which is no list of texts")
        if type(row["gold"]) is not int:
            raise WrongRow(f"has gold={row['gold']!r:.100}, which is no whole number")
        if not 0 <= row["gold"] < len(row["choices"]):
            raise WrongRow(f"gold={row['gold']} is none of its {len(row['choices'])} choices")
        return row

    def prompt(self, row: Row) -> str:
        """The query."""
        return row["query"]

    def target(self, row: Row) -> str:
        """The right choice."""
        return row["choices"][row["gold"]]

    def pairs(self, row: Row) -> list[tuple[str, str]]:
        """(prompt, continuation) of every choice; the continuation begins with `BEFORE_ANSWER`. Shots stand before all of the prompts."""
        return [(self.prompt(row), self.BEFORE_ANSWER + choice) for choice in row["choices"]]

    def scored(self, row: Row, log_probs: Sequence[float], sizes: Sequence[int]) -> Scores:
        """The scores of a row.

        Args:
          row: a normal one.
          log_probs: of each choice, nats, summed over its tokens.
          sizes: characters of each choice, without `BEFORE_ANSWER`.
        """
        normed = [total / max(size, 1) for total, size in zip(log_probs, sizes, strict=True)]
        return {name: float(first_best(x) == row["gold"]) for name, x in (("accuracy", log_probs), ("accuracy_norm", normed))}


@dataclasses.dataclass(frozen=True)
class Generation(Task):
    """An answer that the model writes.

    Attributes:
      max_new_tokens: the longest answer.
      stop: texts that end an answer; they are not part of it.
    """

    max_new_tokens: int = 256
    stop: tuple[str, ...] = ("\n\n",)

    METRIC = "exact_match"

    def score(self, row: Row, answer: str) -> Scores:
        """The scores of an answer to a normal row, each from 0 to 1, `METRIC` among them; also a reward of policy optimisation.

        Raises:
          Unscored: it cannot be judged.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Continuation(Task):
    """A text and how it goes on, word for word: `accuracy` when every token of it is the likeliest, and `perplexity` of it.

    A space stands between the two where neither has one.
    """

    FIELDS: ClassVar[Fields] = (("context", "continuation"),)

    def normal(self, row: Row) -> Row:
        """See `Task.normal`."""
        row = super().normal(row)
        for name in ("context", "continuation"):
            if not isinstance(row[name], str):
                raise WrongRow(f"has {name}={row[name]!r:.100}, which is no text")
        if not row["continuation"].strip():
            raise WrongRow("has an empty continuation")
        return row

    def prompt(self, row: Row) -> str:
        """The context."""
        return row["context"]

    def target(self, row: Row) -> str:
        """The continuation, with whatever stands before it as published."""
        return row["continuation"]


@dataclasses.dataclass(frozen=True)
class Text(Task):
    """Whole documents: perplexity, and bits per byte."""

    FIELDS: ClassVar[Fields] = (("text",),)
    METRIC = "bits_per_byte"

    def normal(self, row: Row) -> Row:
        """See `Task.normal`."""
        row = super().normal(row)
        if not isinstance(row["text"], str) or not row["text"]:
            raise WrongRow("has no text")
        return row

    def prompt(self, row: Row) -> str:
        """Nothing."""
        return ""

    def target(self, row: Row) -> str:
        """The document."""
        return row["text"]


def _lacking(row: Row, forms: Fields) -> str:
    """Which field the nearest of the forms wants in vain, and the one that may be meant."""
    wanted = min(forms, key=lambda fields: sum(name not in row for name in fields))
    name = next(name for name in wanted if name not in row)
    near = difflib.get_close_matches(name, [other for other in row if other not in wanted], 1)
    return f"has no {name!r}" + (f" (is it {near[0]!r}?)" if near else "")


def _texts(values: Any) -> bool:
    return isinstance(values, list | tuple) and len(values) > 0 and all(isinstance(value, str) for value in values)


def first_best(values: Sequence[float]) -> int:
    """Where the largest is, the first of several."""
    return max(range(len(values)), key=lambda i: (values[i], -i))
