"""Answers that are compared word for word: BIG-bench Hard with a chain of thought, LAMBADA's last word, and continuations."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from jaxllm.tasks.task import Continuation, Generation, Row, Scores, Task


@dataclasses.dataclass(frozen=True)
class BBH(Generation):
    """BIG-bench Hard (Suzgun et al. 2022): the answer is what follows "the answer is", without its full stop.

    Attributes:
      prompts: task name -> its published prompt of three solved questions, which stands before a question; none: the question alone.
      chain_of_thought: the answer begins with "Let's think step by step."
    """

    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    chain_of_thought: bool = True
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ("\nQ:", "\n\n")

    FIELDS = (("input", "target"),)
    BEFORE_ANSWER = ""

    def prompt(self, row: Row) -> str:
        """The task's own prompt, and the question."""
        known = self.prompts.get(row.get("task") or row.get("name") or "", "").partition("\n-----\n")
        before = (known[2] or known[0]).strip()
        thought = " Let's think step by step.\n" if self.chain_of_thought else ""
        return (f"{before}\n\n" if before else "") + f"Q: {row['input']}\nA:{thought}"

    def target(self, row: Row) -> str:
        """The answer in the words of the published prompts."""
        return f"So the answer is {row['target']}." if self.chain_of_thought else " " + row["target"]

    def material(self, row: Row) -> str:
        """The question and its answer, without the published prompt that all rows share."""
        return f"{row['input']} {row['target']}"

    def score(self, row: Row, answer: str) -> Scores:
        """See `Generation.score`."""
        found = re.findall(r"(?<=the answer is )(.*?)(?=\.?(?:\n|$))", answer.strip())
        said = found[-1] if found else answer.strip().partition("\n")[0].removesuffix(".")
        return {"exact_match": float(said.strip() == row["target"].strip())}


@dataclasses.dataclass(frozen=True)
class LAMBADA(Continuation):
    """LAMBADA (Paperno et al. 2016): the last word of a passage; rows {context, continuation}, or {text}, which ends with it."""

    FIELDS = (("context", "continuation"), ("text",))

    def normal(self, row: Row) -> Row:
        """{context, continuation}; see `Task.normal`."""
        Task.normal(self, row)
        if "text" not in row:
            return super().normal(row)
        context, _, word = row["text"].rstrip().rpartition(" ")
        return {"context": context, "continuation": word}


def read_prompts(rows: Any) -> dict[str, str]:
    """Task name -> prompt, of rows {task, prompt}."""
    return {row["task"]: row["prompt"] for row in rows}
