"""Sums, differences and products that are made here: a task that needs no file, and that a small model can learn."""

import dataclasses
import re
import zlib
from collections.abc import Iterator

import numpy as np

from jaxllm.tasks.task import Generation, Row, Scores, WrongRow

PARTS = ("train", "test")
SIGNS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


@dataclasses.dataclass(frozen=True)
class Arithmetic(Generation):
    """ "12 + 7 =" and its answer; right if the answer begins with the number and no digit follows.

    Attributes:
      digits: of the operands at most.
      signs: of `SIGNS`, each as often.
    """

    digits: int = 2
    signs: str = "+-"
    max_new_tokens: int = 16
    stop: tuple[str, ...] = ("\n",)

    FIELDS = (("question", "answer"),)
    BETWEEN = "\n"

    def made(self, count: int, seed: int = 0, part: str = "test") -> Iterator[Row]:
        """Rows: a pure function of (seed, number of the row, part).

        Args:
          count: how many.
          seed: of the draws.
          part: "test", a fifth of all questions, or "train", the others: no question is in both, whatever the seeds.
        """
        assert part in PARTS, part
        for number in range(count):
            stream = np.random.default_rng((seed, number))
            question, answer = self._drawn(stream)
            while (zlib.crc32(question.encode()) % 5 == 0) != (part == "test"):
                question, answer = self._drawn(stream)
            yield {"question": question, "answer": answer}

    def _drawn(self, stream: np.random.Generator) -> tuple[str, str]:
        a, b = (int(stream.integers(10 ** int(stream.integers(1, self.digits + 1)))) for _ in range(2))
        sign = self.signs[int(stream.integers(len(self.signs)))]
        return f"{a} {sign} {b} =", str(SIGNS[sign](a, b))

    def normal(self, row: Row) -> Row:
        """See `Task.normal`."""
        row = super().normal(row)
        if not re.fullmatch(r"-?\d+", str(row["answer"])) or not isinstance(row["question"], str):
            raise WrongRow("has an answer that is no whole number, or a question that is no text")
        return {"question": row["question"], "answer": str(row["answer"])}

    def prompt(self, row: Row) -> str:
        """The question."""
        return row["question"]

    def target(self, row: Row) -> str:
        """The number."""
        return row["answer"]

    def score(self, row: Row, answer: str) -> Scores:
        """See `Generation.score`."""
        found = re.match(r"\s*(-?\d+)(?![\d.,]*\d)", answer)
        return {"exact_match": float(found is not None and int(found[1]) == int(row["answer"]))}
