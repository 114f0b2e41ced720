"""Dialogues of a source as encoded examples: made once, kept on the disk under a fingerprint of all that they depend on."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxllm.data import natural_instructions
from jaxllm.data.chat import encode_batch
from jaxllm.data.conversations import Reading, Tally, check_share, records
from jaxllm.data.dialogues import ASSISTANT, Dialogue, Message, Template, WrongDialogue, each_answer
from jaxllm.data.examples import Example, Examples, ExampleStore, open_examples, write_examples
from jaxllm.data.held_out import Part
from jaxllm.data.making import Say
from jaxllm.data.objects import SUFFIXES
from jaxllm.data.preparation import document_hash, held_out
from jaxllm.data.prepared import default_root
from jaxllm.data.sources import Source, list_files
from jaxllm.data.tokenizer_kinds import Tokenizer
from jaxllm.stages.prepare import locked
from jaxllm.tasks.catalog import open_task

VERSION = 2  # raise it whenever the same files would give other examples
TASK, MADE, TRAIN_SEED = "task:", 20_000, 1  # of tasks that make their rows: how many, and from which seed
TOGETHER = 512  # dialogues encoded at a time
HELD, REFUSED = "held_out.npy", "refused.jsonl"


class Encoding(NamedTuple):
    """What turns a dialogue into an example.

    Attributes:
      template: how turns are written.
      identity: what tells this template from others.
      tokenizer: of the model.
      loss: which turns are trained on.
      each_answer: whether every answer is a row of its own.
    """

    template: Template
    identity: str
    tokenizer: Tokenizer
    loss: str
    each_answer: bool

    def __call__(self, found: Sequence[Dialogue]) -> Iterator[tuple[int, Example | WrongDialogue]]:
        """The rows of dialogues, each with the number of its dialogue; one of which no answer is trained on is a row that is refused."""
        split = [each_answer(dialogue) or [dialogue] if self.each_answer else [dialogue] for dialogue in found]
        rows = [(i, one) for i, own in enumerate(split) for one in own]
        encoded = encode_batch([row for _, row in rows], self.template, self.tokenizer, self.loss)
        return zip([i for i, _ in rows], encoded, strict=True)


class Rules(NamedTuple):
    """What becomes of rows.

    Attributes:
      eval_fraction: share that is held out, by a hash of a dialogue's messages.
      dedup: whether a dialogue that is exactly an earlier one of the source is dropped.
      max_bad_share: share of rows that may be refused.
    """

    eval_fraction: float
    dedup: bool
    max_bad_share: float


class Task(NamedTuple):
    """Examples [start, stop) of a source that belong to one task."""

    name: str
    category: str
    start: int
    stop: int


class SourceExamples(NamedTuple):
    """A source's examples.

    Attributes:
      store: all of them.
      held: int [n], which are held out.
      tasks: those of them that are of named tasks; none where the source knows no tasks.
    """

    store: ExampleStore
    held: np.ndarray
    tasks: tuple[Task, ...]

    def of_tasks(self) -> dict[str, tuple[str, np.ndarray]]:
        """Task -> its category, and which of its examples are not held out; tasks of which none is left do not appear.

        Raises:
          ValueError: records of one task say two categories.
        """
        ranges: dict[str, list[np.ndarray]] = {}
        categories: dict[str, str] = {}
        for task in self.tasks:
            if categories.setdefault(task.name, task.category) != task.category:
                said = f"{categories[task.name]!r} and {task.category!r}"
                raise ValueError(
                    f"Records of task {task.name!r} are of the categories {said}. Give each task a name of its own (field 'task')."
                )
            ranges.setdefault(task.name, []).append(np.arange(task.start, task.stop))
        found = {name: np.setdiff1d(np.concatenate(own), self.held) for name, own in ranges.items()}
        return {name: (categories[name], which) for name, which in found.items() if len(which)}

    def train(self) -> Examples:
        """What is not held out."""
        return Part(self.store, np.setdiff1d(np.arange(self.store.num_examples), self.held)) if len(self.held) else self.store

    def eval(self) -> Examples | None:
        """What is."""
        return Part(self.store, self.held) if len(self.held) else None


def open_source(source: Source, reading: Reading, encoding: Encoding, rules: Rules, say: Say) -> SourceExamples:
    """The examples of a source: opened where they are, made where they are not; what was seen and refused is said either way.

    Raises:
      ValueError: nothing there, or too many rows that cannot be trained on.
    """
    made = fingerprint(source, reading, encoding, rules)
    folder = default_root() / "examples" / made[:24]
    with locked(folder, say):
        if not (folder / HELD).exists():
            _make(source, reading, encoding, rules, folder, made)
    store = open_examples(folder / "examples", fingerprint=made)
    notes = store.index["notes"]
    for line in notes["said"]:
        say(line)
    return SourceExamples(store, np.load(folder / HELD, allow_pickle=False), tuple(Task(*task) for task in notes["tasks"]))


def fingerprint(source: Source, reading: Reading, encoding: Encoding, rules: Rules) -> str:
    """Changes when the examples would."""
    of_files: list[Any] = []
    path = source.path
    if path.startswith(TASK):
        name, _, path = path.removeprefix(TASK).partition("=")
        task, rows = _opened(name, path, 8)
        of_files.append([name, [(task.prompt(row), task.target(row)) for row in rows[:8]]])
    if path:
        files, _ = list_files(dataclasses.replace(source, format=None, path=path), SUFFIXES)
        of_files += [(file.name, file.size, file.stamp, file.format, file.compression) for file in files]
    how = (encoding.identity, encoding.tokenizer.fingerprint, encoding.loss, encoding.each_answer)
    said = json.dumps([VERSION, of_files, dataclasses.astuple(reading), how, rules])
    return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()


class _Kept:
    """What is learnt of a source while its examples go by."""

    def __init__(self, source: Source, rules: Rules):
        self.tally, self.rules = Tally(source.name), rules
        self.wrong: list[WrongDialogue] = []
        self.held: list[int] = []
        self.tasks: list[Task] = []
        self.seen: set[bytes] = set()
        self.repeated = self.count = self.rows = 0

    def examples(self, batches: Iterator[list[tuple[tuple[str, str] | None, Dialogue]]], encoding: Encoding) -> Iterator[Example]:
        for batch in batches:
            fresh = [(task, dialogue) for task, dialogue in batch if self._is_new(dialogue)]
            for i, found in encoding([dialogue for _, dialogue in fresh]):
                self.rows += 1
                if isinstance(found, WrongDialogue):
                    self.wrong.append(found)
                    continue
                self._note(*fresh[i])
                yield found

    def _is_new(self, dialogue: Dialogue) -> bool:
        key = hashlib.blake2b(repr(dialogue[:2]).encode("utf-8", "replace"), digest_size=12).digest()
        if self.rules.dedup and key in self.seen:
            self.repeated += 1
            return False
        self.seen.add(key)
        return True

    def _note(self, task: tuple[str, str] | None, dialogue: Dialogue) -> None:
        asked = "\0".join(message.content + message.input for message in dialogue.messages)
        if self.rules.eval_fraction and held_out(document_hash(asked), self.rules.eval_fraction):
            self.held.append(self.count)
        if task is not None:
            last = self.tasks[-1] if self.tasks else None
            if last is not None and last[:2] == task:
                self.tasks[-1] = last._replace(stop=self.count + 1)
            else:
                self.tasks.append(Task(*task, self.count, self.count + 1))
        self.count += 1

    def lines(self) -> list[str]:
        """For people."""
        said = [str(self.tally)]
        if self.repeated:
            said.append(f"{self.tally.source}: {self.repeated:,} dialogues that were there before are left out.")
        if self.wrong:
            said.append(f"{self.tally.source}: {len(self.wrong):,} of {self.rows:,} rows refused. The first: {self.wrong[0]}")
        return said


def _make(source: Source, reading: Reading, encoding: Encoding, rules: Rules, folder: Path, made: str) -> None:
    """Writes a source's examples, and last of all which are held out."""
    kept, notes = _Kept(source, rules), dict[str, Any]()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with _progress(source.name) as tick:
        batches = _batches(source, reading, kept.tally, tick)
        checked = _checked(kept.examples(batches, encoding), kept, notes)
        write_examples(folder / "examples", checked, vocab_size=encoding.tokenizer.vocab_size, fingerprint=made, notes=notes)
    refused = [{"where": error.where, "problem": error.problem} for error in (*kept.tally.wrong, *kept.wrong)]
    (folder / REFUSED).write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in refused), encoding="utf-8")
    with open(folder / f"{HELD}.partial", "wb") as file:
        np.save(file, np.asarray(kept.held, np.int64), allow_pickle=False)
    (folder / f"{HELD}.partial").rename(folder / HELD)


def _checked(examples: Iterator[Example], kept: _Kept, notes: dict[str, Any]) -> Iterator[Example]:
    """The examples; at their end, whether too many rows were refused, and what the store shall remember of them."""
    yield from examples
    wrong = [*kept.tally.wrong, *kept.wrong]
    check_share(kept.tally.source, wrong, kept.rows + len(kept.tally.wrong), kept.rules.max_bad_share)
    notes |= {"said": kept.lines(), "tasks": [list(task) for task in kept.tasks]}


def _batches(source: Source, reading: Reading, tally: Tally, tick: Any) -> Iterator[list[tuple[tuple[str, str] | None, Dialogue]]]:
    """(task, dialogue) of a source in their order, some hundreds at a time."""
    of_source = of_task(source, tally) if source.path.startswith(TASK) else records(source, reading, tally)
    found = ((task_of(record, dialogues), one) for record, dialogues in of_source for one in dialogues)
    while batch := list(itertools.islice(found, TOGETHER)):
        tick(len(batch))
        yield batch


def of_task(source: Source, tally: Tally) -> Iterator[tuple[Mapping[str, Any], list[Dialogue]]]:
    """The rows of `task:NAME`, which makes them, or `task:NAME=FILE`: each as its prompt and a right answer.

    Raises:
      ValueError: an unknown task, or wrong rows.
    """
    name, _, path = source.path.removeprefix(TASK).partition("=")
    task, rows = _opened(name, path, MADE)
    for number, row in enumerate(rows, 1):
        tally.records += 1
        tally.dialogues += 1
        tally.formats[("task", (name,))] += 1
        messages = Message("user", task.prompt(row)), Message(ASSISTANT, task.target(row).strip())
        yield {}, [Dialogue(messages, where=f"{source.path}:{number}")]


def _opened(name: str, path: str, count: int) -> tuple[Any, list[Any]]:
    return open_task(name, [path] if path else [], count=count, seed=TRAIN_SEED, part="train")


def task_of(record: Mapping[str, Any], found: Sequence[Dialogue]) -> tuple[str, str] | None:
    """(task, category) of a record of Natural Instructions; None: another record."""
    record = natural_instructions.lowered(record)
    if not found or any(part not in record for part in natural_instructions.PARTS):
        return None
    categories = record.get("categories") or ["none"]
    name = record.get("task") or record.get("title") or Path(found[0].where.partition(":")[0]).stem
    return str(name), str(categories if isinstance(categories, str) else categories[0])


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Any]:
    """Counts dialogues on a terminal."""
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("encoding {task.description}: {task.completed:,} dialogues"), TimeElapsedColumn()
    bar = Progress(*columns, disable=not sys.stderr.isatty(), transient=True)
    bar.console.stderr = True
    with bar:
        line = bar.add_task(name)
        yield lambda count: bar.advance(line, count)
