"""Two kinds of data in one batch: dialogues with a share of pretraining text, or text with a share of dialogues."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxllm.data.mixing import MixedReader
from jaxllm.stages.recipe import Data, Soft


class MixedData:
    """What a stage trains on, with some rows of other data among its own; it is scored on its own. See `recipe.Data`.

    Args:
      own: the stage's, by its kind: ("dialogues", data).
      other: what is mixed in, likewise.
      share: of the rows, that are of the other kind.

    Raises:
      ValueError: a share that is none.
    """

    def __init__(self, own: tuple[str, Data], other: tuple[str, Data], share: float):
        if not 0 < share < 1:
            raise ValueError(f"data.{other[0]}_share={share} is no share of rows. Give more than 0 and less than 1.")
        (self.kind, self.own), (self.other_kind, self.other), self.share = own, other, share
        self.tokenizer, self.content = self.own.tokenizer, f"{self.own.content} {self.other.content}"
        self.train_content = f"{self.own.train_content} {self.other.train_content} {share}"

    def check(self, config: ConfigDict, workdir: str, whole: Any = None) -> None:
        self.own.check(config, workdir, whole or self)

    def reader(self, config: ConfigDict, soft: Soft | None = None) -> MixedReader:
        readers: dict[str, Any] = {self.kind: self.own.reader(config, soft), self.other_kind: self.other.reader(config, soft)}
        shares = {self.kind: 1 - self.share, self.other_kind: self.share}
        return MixedReader(readers, shares, batch_size=config.batch_size)

    def eval_names(self) -> Sequence[str]:
        return self.own.eval_names()

    def eval_reader(self, config: ConfigDict, name: str, soft: Soft | None = None) -> Any:
        return self.own.eval_reader(config, name, soft)

    def tasks(self) -> list[str]:
        return self.own.tasks()

    def steps(self, config: ConfigDict, soft: Soft | None = None) -> int | None:
        steps = self.own.steps(config, soft)
        return None if steps is None else math.ceil(steps / (1 - self.share))

    def baselines(self) -> dict[str, float]:
        return self.own.baselines()

    def shown(self, config: ConfigDict, step: int, row: int) -> tuple[Mapping[str, Any], Sequence[Sequence[str]] | None]:
        kind, inner, at = self.reader(config).place(step, row)
        return (self.own if kind == self.kind else self.other).shown(config, inner, at)

    def record(self) -> dict[str, Any]:
        return self.other.record() | self.own.record()

    def lines(self, config: ConfigDict, soft: Soft | None = None) -> list[str]:
        mixed = f"{self.share:.1%} of the rows are {self.other_kind}."
        return [*self.own.lines(config, soft), *self.other.lines(config), mixed]
