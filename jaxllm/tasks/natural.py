"""Natural Instructions: tasks told by a definition and examples, some good and some bad (Wang et al. 2022, arXiv 2204.07705)."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from jaxllm.data import natural_instructions
from jaxllm.tasks.rouge import rouge_l
from jaxllm.tasks.task import Generation, Row, Scores, WrongRow


@dataclasses.dataclass(frozen=True)
class NaturalInstructions(Generation):
    """One instance of a task: its definition, examples of it, the input. Make rows of published task files with `rows_of`.

    The prompt is laid out as Tk-Instruct's. `rougeL` and `exact_match` are the best over the references. The published rougeL stems words,
    ours does not (see `rouge.words`).

    Attributes:
      positives: how many of the good examples are shown; fewer where a task has fewer.
      negatives: how many of the bad ones.
      explanations: whether the reason given for each is shown.
    """

    max_new_tokens: int = 128
    positives: int = 2
    negatives: int = 0
    explanations: bool = False

    FIELDS = (("definition", "input", "output"),)
    METRIC = "rougeL"
    SHOTS = "positives"

    def normal(self, row: Row) -> Row:
        """The row with a list of outputs; see `Task.normal`."""
        row = super().normal(row)
        outputs = [row["output"]] if isinstance(row["output"], str) else list(row["output"])
        if not outputs:
            raise WrongRow("has no output")
        return {"positive_examples": [], "negative_examples": [], **row, "output": outputs}

    def prompt(self, row: Row) -> str:
        """The definition, the examples and the input."""
        return natural_instructions.prompt(row, self.positives, self.negatives, self.explanations)

    def target(self, row: Row) -> str:
        """The first output."""
        return row["output"][0].strip()

    def kept(self, row: Row) -> dict[str, Any]:
        """All outputs, and the task's name where it is known."""
        return {"target": row["output"]} | ({"task": row["task"]} if "task" in row else {})

    def score(self, row: Row, answer: str) -> Scores:
        """`rougeL` and `exact_match`; see `Generation.score`."""
        return {
            "rougeL": max(rouge_l(answer, output) for output in row["output"]),
            "exact_match": float(any(plain(answer) == plain(output) for output in row["output"])),
        }


def rows_of(task: Mapping[str, Any]) -> list[Row]:
    """The instances of a published task file, each with the definition and the examples.

    Args:
      task: see `natural_instructions.instances`.

    Raises:
      WrongRow: it is neither form.
    """
    try:
        return [*natural_instructions.instances(task)]
    except ValueError as error:
        raise WrongRow(str(error)) from None


def plain(text: str) -> str:
    """A text in small letters, without punctuation, with single spaces; one of punctuation alone as it is."""
    return " ".join(re.sub(r"[^\w\s]", "", text.lower()).split()) or text.strip()
