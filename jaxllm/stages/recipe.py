"""What tells one training stage from another: its objective, its rows, and how it is scored."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from ml_collections import ConfigDict

from jaxllm.data.pipeline import RowReader
from jaxllm.data.tokenizer_kinds import Tokenizer
from jaxllm.evaluation.perplexity import SCORES


class Objective(NamedTuple):
    """What a stage trains for.

    Attributes:
      loss: (params, frozen, microbatch, rng) -> terms, report.
      totals: batch -> what each term is divided by.
      before: (params, frozen, batch) -> the batch with what only the whole of it, before it is split, can tell; None: nothing.
    """

    loss: Callable
    totals: Callable
    before: Callable | None = None


class Program(NamedTuple):
    """What a stage compiles.

    Attributes:
      function: of (state, frozen, ...).
      arguments: abstract ones.
      tokens: that go through the model in one call.
    """

    function: Callable
    arguments: tuple
    tokens: int


class Beside(NamedTuple):
    """What a stage needs beside the model itself.

    Attributes:
      head: trained with it, see `models.heads.Head`.
      reference: whether the weights that the run starts from stay, frozen (under adapters the base is these).
      still: regexes of parameters that are not trained, where all others are.
    """

    head: Any = None
    reference: bool = False
    still: tuple[str, ...] = ()


class Soft(NamedTuple):
    """Soft tokens that stand in front of examples.

    Attributes:
      length: how many of a task.
      first: the id of the first, which is the size of the model's vocabulary.
      num_tasks: how many tasks have their own; 1: all share them.
    """

    length: int
    first: int
    num_tasks: int

    def ids(self, task: int) -> np.ndarray:
        """Int32 [length], those of a task."""
        number = 0 if self.num_tasks == 1 else task
        return np.arange(self.length, dtype=np.int32) + self.first + number * self.length


class EvalRows(Protocol):
    """The rows of a validation set, each once."""

    num_batches: int

    def rows(self, step: int, row_indices: Any = None) -> Mapping[str, Any]: ...


class TrainRows(RowReader, Protocol):
    """The rows of training, without end."""

    def epochs(self, step: int) -> dict[str, float]: ...


class Data(Protocol):
    """What a stage trains on and is scored on.

    Attributes:
      tokenizer: the one whose ids the rows hold.
      content: says what all of it holds, `train_content` what there is to train on.
    """

    tokenizer: Tokenizer
    content: str
    train_content: str

    def check(self, config: ConfigDict, workdir: str, whole: Any = None) -> None:
        """Refuses to go on in a work directory whose run began with other data (ValueError); `whole`: those that these are a part of."""
        ...

    def reader(self, config: ConfigDict, soft: Soft | None = None) -> TrainRows: ...

    def eval_names(self) -> Sequence[str]: ...

    def eval_reader(self, config: ConfigDict, name: str, soft: Soft | None = None) -> EvalRows: ...

    def tasks(self) -> list[str]:
        """What has soft tokens of its own, where there are any."""
        ...

    def steps(self, config: ConfigDict, soft: Soft | None = None) -> int | None:
        """How many updates `epochs` are; None: it is not given."""
        ...

    def baselines(self) -> dict[str, float]:
        """What a trivial model would score."""
        ...

    def shown(self, config: ConfigDict, step: int, row: int) -> tuple[Mapping[str, Any], Sequence[Sequence[str]] | None]:
        """A row of a batch, as a batch of one, with `turns` where it has messages; and the roles of the messages of each segment."""
        ...

    def record(self) -> dict[str, Any]:
        """What the work directory remembers of it."""
        ...

    def lines(self, config: ConfigDict, soft: Soft | None = None) -> list[str]:
        """What to say of it at the start."""
        ...


Scorer = Callable[[Any, Any, Iterable[Mapping[str, Any]]], dict[str, float]]  # (params, frozen, batches) -> metrics


class Recipe(NamedTuple):
    """One training stage.

    Attributes:
      name: of the stage.
      objective: (config, model) -> Objective.
      open_data: config -> Data; made where it is not there yet.
      scorer: (config, model, tokenizer) -> a function (params, frozen, batches) -> metrics of a validation set.
      scores: the names of those metrics.
      beside: (config, model) -> what there is beside the model.
      fields: config -> the fields of a batch beside `pipeline.FIELDS`: name -> shape, dtype.
      forwards: (config, tuned, mesh, (state, frozen)) -> what runs beside the update: name -> Program.
      feed: (run, work directory) -> where batches come from, where they are made with the state's weights; None: from the data's reader.
    """

    name: str
    objective: Callable[[ConfigDict, Any], Objective]
    open_data: Callable[[ConfigDict], Data]
    scorer: Callable[[ConfigDict, Any, Tokenizer], Scorer]
    scores: Sequence[str] = SCORES
    beside: Callable[[ConfigDict, Any], Beside] = lambda config, model: Beside()
    fields: Callable[[ConfigDict], Mapping[str, tuple[tuple[int, ...], Any]]] = lambda config: {}
    forwards: Callable[[ConfigDict, Any, Any, tuple], Mapping[str, Program]] = lambda config, tuned, mesh, held: {}
    feed: Callable[[Any, str], Any] | None = None
