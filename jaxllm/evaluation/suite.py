"""A model on tasks: every row asked and scored, its record kept, and the means with their intervals."""

import dataclasses
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxllm.data.tokenizer_kinds import Tokenizer
from jaxllm.evaluation import prompts
from jaxllm.evaluation.intervals import bootstrap
from jaxllm.evaluation.likelihood import Likelihood, Likelihoods
from jaxllm.evaluation.pass_at_k import pass_at_k, reranked
from jaxllm.models.model import Model
from jaxllm.sampling.logits import Sampling
from jaxllm.sampling.text import Sample, Texts
from jaxllm.tasks.scoring import score_all
from jaxllm.tasks.task import Choice, Continuation, Generation, Row, Task, Text

ROWS = "/rows"  # what the records of single rows are called after their task's name
CHUNK = 256  # rows between two writes of records

Record = dict[str, Any]
Write = Callable[[Record], None]


@dataclasses.dataclass(frozen=True)
class How:
    """How rows are asked.

    Attributes:
      num_samples: answers of each row.
      k: of pass@k, at most `num_samples`.
      temperature, top_p: of the answers; temperature 0 takes the likeliest token.
      max_new_tokens: instead of the task's own.
      seed: of what is drawn.
    """

    num_samples: int = 1
    k: tuple[int, ...] = (1,)
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int | None = None
    seed: int = 0


class Result(NamedTuple):
    """What a model is worth on a task."""

    name: str
    metrics: dict[str, float]  # means; `<metric>_low` and `<metric>_high`: the 95 % bootstrap interval
    rows: int  # that were scored
    unscored: int  # answers that could not be judged, and are in no mean
    shots: int
    settings: str  # a checksum of everything that decides it
    records: tuple[Record, ...] = ()  # of every row, in order


class Suite:
    """A model that is asked; its compiled programs serve every task."""

    def __init__(self, model: Model, tokenizer: Tokenizer, *, length: int | None = None, slots: int = 8, rows: int = 32):
        """Compiles nothing yet.

        Args:
          model: a decoder.
          tokenizer: its own.
          length: the most tokens it reads; None: its context.
          slots: answers that are written together.
          rows: continuations that are scored together.
        """
        self.model, self.tokenizer, self.slots = model, tokenizer, slots
        self.length = min(length or model.config.max_positions, model.config.max_positions)
        self.likelihoods = Likelihoods(model, length=self.length, rows=rows)

    def run(
        self,
        params: Any,
        name: str,
        task: Task,
        rows: prompts.Split,
        how: How = How(),
        *,
        who: str = "",
        known: Sequence[Mapping[str, Any]] = (),
        write: Write = lambda record: None,
        say: Callable[[str], None] = lambda line: None,
        tell: Callable[[int], None] = lambda done: None,
    ) -> Result:
        """Asks every row that has no record yet.

        Args:
          params: the model's.
          name: of the task, in records and results.
          task: what is asked.
          rows: the examples and those that are asked.
          how: sampling.
          who: whose parameters these are; records of another model are not looked at.
          known: records of an earlier run that was interrupted; those with other settings are not looked at.
          write: takes the record of every row as it is done.
          say: takes a sentence for people.
          tell: is told how many rows are done.

        Raises:
          ValueError: a row that does not fit the model, or an option that cannot be used.
        """
        shots, shown = self.shown(name, task, rows, how)
        if shots < task.shots:
            say(f"{name}: {shots} of {task.shots} examples: with more, the longest row exceeds the model's {self.length} tokens.")
        settings = fingerprint(who, self.length, self.model.dtype, name, task, shown, rows.asked, how)
        done = {record["row"]: dict(record) for record in known if record.get("settings") == settings}
        tell(len(done))
        left = [i for i in range(len(rows.asked)) if i not in done]
        if isinstance(task, Generation):
            asked = self._answers(
                params, task, rows.asked, left, shown, how, lambda row, why: say(f"{name}: row {row + 1} is not scored: {why}.")
            )
        else:
            asked = self._likely(params, task, rows.asked, set(left), shown)
        for row, found in asked:
            record = {"row": row, "settings": settings, **task.kept(rows.asked[row]), **found}
            write(record)
            done[row] = record
            tell(len(done))
        ordered = [done[row] for row in range(len(rows.asked))]
        scored, unscored = summary(task, ordered, how)
        return Result(name, scored, len(ordered), unscored, shots, settings, tuple(ordered))

    def shown(self, name: str, task: Task, rows: prompts.Split, how: How) -> tuple[int, str]:
        """How many examples fit beside every row, and the text of them.

        Raises:
          ValueError: a row that does not fit without any.
        """
        if isinstance(task, Text):
            return 0, ""
        room = self.length + 1 if not isinstance(task, Generation) else self.length - (how.max_new_tokens or task.max_new_tokens)

        def longest(shown: str, asked: Sequence[Row]) -> tuple[int, int]:
            return max((self._size(task, row, shown), i) for i, row in enumerate(asked))

        return prompts.fitting(name, task, rows, longest, room)

    def _size(self, task: Task, row: Row, shown: str) -> int:
        if isinstance(task, Generation):
            return len(prompts.prompt_ids(self.tokenizer, shown + task.prompt(row)))
        return max(len(before) + len(after) for before, after in prompts.pairs_of(task, self.tokenizer, row, shown)[0])

    def _likely(self, params: Any, task: Task, rows: Sequence[Row], wanted: set[int], shown: str) -> Iterator[tuple[int, Record]]:
        """Scores by likelihood, some rows at a time; those beside a row that is left are scored again, as last bits depend on the batch."""
        for start in range(0, len(rows), CHUNK):
            chunk, pairs, owners = range(start, min(start + CHUNK, len(rows))), list[prompts.Pair](), list[tuple[int, int]]()
            if wanted.isdisjoint(chunk):
                continue
            sizes: dict[int, list[int]] = {}
            for row in chunk:
                if isinstance(task, Text):
                    own = prompts.windows(self.tokenizer, task.target(rows[row]), self.length)
                    sizes[row] = [len(task.target(rows[row]).encode())]
                else:
                    own, sizes[row] = prompts.pairs_of(task, self.tokenizer, rows[row], shown)
                owners.append((row, len(own)))
                pairs += own
            found = iter(self.likelihoods(params, pairs))
            for row, count in owners:
                likes = [next(found) for _ in range(count)]
                if row in wanted:
                    yield row, _judged(task, rows[row], likes, sizes[row])

    def texts(self, task: Generation, how: How) -> Texts:
        """What writes the answers to a task."""
        return Texts(self.model, self.tokenizer, **self.written(task, how))

    def written(self, task: Generation, how: How) -> dict[str, Any]:
        """The options of `Texts` for a task."""
        sizes = {"max_new_tokens": how.max_new_tokens or task.max_new_tokens, "length": self.length, "slots": self.slots}
        return {**sizes, "sampling": Sampling(temperature=how.temperature, top_p=how.top_p), "stop": task.stop}

    def _answers(
        self,
        params: Any,
        task: Generation,
        rows: Sequence[Row],
        left: Sequence[int],
        shown: str,
        how: How,
        missing: Callable[[int, str], None],
    ) -> Iterator[tuple[int, Record]]:
        """Has the answers of some rows written, then scores them together; `missing` is told which rows have none, and why."""
        texts = self.texts(task, how)
        for start in range(0, len(left), CHUNK):
            chunk = left[start : start + CHUNK]
            asked = [shown + task.prompt(rows[row]) for row in chunk]
            samples, interrupted = _until_interrupted(
                texts.samples(params, asked, seed=how.seed, num_samples=how.num_samples, numbers=chunk)
            )
            whole = chunk[: len(samples) // how.num_samples]
            answers = [[s.text for s in samples[i * how.num_samples :][: how.num_samples]] for i in range(len(whole))]
            each = [row for row in whole for _ in range(how.num_samples)]
            told = lambda i, why, each=each: missing(each[i], why)  # noqa: E731
            scores = iter(score_all(task, [rows[row] for row in each], [a for own in answers for a in own], told))
            for i, row in enumerate(whole):
                judged = [next(scores) for _ in answers[i]]
                means = [s.mean_log_prob for s in samples[i * how.num_samples : (i + 1) * how.num_samples]]
                yield row, {"answers": answers[i], "scores": judged, "mean_log_probs": means}
            if interrupted:
                raise interrupted


def _until_interrupted(samples: Iterator[Sample]) -> tuple[list[Sample], KeyboardInterrupt | None]:
    """What was written until somebody pressed Ctrl-C, so that it can be kept before that is passed on."""
    found: list[Sample] = []
    try:
        for sample in samples:
            found.append(sample)
    except KeyboardInterrupt as interrupted:
        return found, interrupted
    return found, None


def _judged(task: Task, row: Row, likes: Sequence[Likelihood], sizes: Sequence[int]) -> Record:
    """The record of a row that was scored by likelihood."""
    log_probs = [like.log_prob for like in likes]
    if isinstance(task, Choice):
        return {"log_probs": log_probs, "scores": task.scored(row, log_probs, sizes)}
    return {"log_prob": sum(log_probs), "bytes": sizes[0], "scores": {"accuracy": float(all(like.greedy for like in likes))}}


def fingerprint(who: str, length: int, dtype: str, name: str, task: Task, shown: str, rows: Sequence[Row], how: How) -> str:
    """A checksum of everything that decides a record: the model, the task, its rows and examples, and how it is asked."""
    said = [
        who,
        length,
        dtype,
        name,
        type(task).__name__,
        dataclasses.asdict(task),
        shown,
        [dict(row) for row in rows],
        dataclasses.asdict(how),
    ]
    return f"{zlib.crc32(json.dumps(said, sort_keys=True, default=str).encode()):08x}"


def summary(task: Task, records: Sequence[Record], how: How) -> tuple[dict[str, float], int]:
    """The means of all metrics with their intervals, and how many answers could not be judged."""
    if isinstance(task, Generation):
        return _summary_of_answers(task, records, how)
    if isinstance(task, Text):
        return _summary_of_text(records), 0
    found = _means([record["scores"] for record in records])
    if isinstance(task, Continuation):
        found["perplexity"] = math.exp(min(-float(np.mean([record["log_prob"] for record in records])), 700.0))
    return found, 0


def _summary_of_text(records: Sequence[Record]) -> dict[str, float]:
    nats, size = -sum(record["log_prob"] for record in records), sum(record["bytes"] for record in records)
    words = sum(len(re.split(r"\s+", record["target"])) for record in records)  # as lm-eval counts them
    return {
        "bits_per_byte": nats / math.log(2) / max(size, 1),
        "byte_perplexity": math.exp(min(nats / max(size, 1), 700.0)),
        "word_perplexity": math.exp(min(nats / max(words, 1), 700.0)),
    }


def _summary_of_answers(task: Generation, records: Sequence[Record], how: How) -> tuple[dict[str, float], int]:
    every = [record["scores"] for record in records]
    unscored = sum(one is None for own in every for one in own)
    names = sorted({name for own in every for one in own if one is not None for name in one})
    rows = [{name: _mean([one[name] for one in own if one is not None]) for name in names} for own in every]
    found = _means(rows) or {task.METRIC: math.nan}  # not one could be judged
    if task.METRIC == "pass@1" and how.num_samples > 1:
        correct = np.array([[math.nan if one is None else one["pass@1"] for one in own] for own in every])
        ranked = reranked(correct, np.array([record["mean_log_probs"] for record in records]), how.k)
        each = pass_at_k(correct, how.k) | {name: values for name, values in ranked.items() if name.startswith("ranked@")}
        found |= _means([{name: float(values[row]) for name, values in each.items()} for row in range(len(records))])
        if 1 not in how.k:  # its own temperature speaks for it
            found = {name: value for name, value in found.items() if name not in ("pass@1", "pass@1_low", "pass@1_high")}
    return found, unscored


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every metric over the rows that have it, with its interval."""
    found: dict[str, float] = {}
    for name in sorted({name for row in rows for name in row}):
        interval = bootstrap([row.get(name, math.nan) for row in rows])
        found |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return found
