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


@dataclasses.dataclass(frozen=True)
class WorkedArithmetic(Arithmetic):
    """The same, with answers that call a calculator: "[12 + 7]{19} 19". What a model learns the form of calls from, before it is let loose
    on tools (`rollout.tools`); the result, which is the tool's to write, stands among what is learnt.

    Attributes:
      call: the texts around a call and around its result.
    """

    call: tuple[str, str, str, str] = ("[", "]", "{", "}")

    def target(self, row: Row) -> str:
        """The call, its result, the number."""
        opens, closes, before, after = self.call
        return f"{opens}{row['question'].removesuffix(' =')}{closes}{before}{row['answer']}{after} {row['answer']}"

    def score(self, row: Row, answer: str) -> Scores:
        """Of what follows the last result; see `Generation.score`."""
        return super().score(row, answer.rpartition(self.call[-1])[2])
