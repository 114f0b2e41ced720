"""What people said of answers, as encoded groups: made once of a source, kept under a fingerprint of all that they depend on."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxllm.data.comparisons import Judged, Reading, Tally, records
from jaxllm.data.conversations import check_share
from jaxllm.data.dialogues import ASSISTANT, Dialogue, Message, WrongDialogue
from jaxllm.data.examples import Example
from jaxllm.data.groups import Chosen, Group, Groups, GroupStore, is_whole, open_groups, write_groups
from jaxllm.data.making import Say
from jaxllm.data.objects import SUFFIXES
from jaxllm.data.preparation import document_hash, held_out
from jaxllm.data.prepared import default_root
from jaxllm.data.sources import Source, list_files
from jaxllm.stages.instructions import MADE, TASK, TRAIN_SEED, Encoding, Rules
from jaxllm.stages.prepare import locked
from jaxllm.tasks.catalog import open_task
from jaxllm.tasks.task import Generation

VERSION = 2  # raise it whenever the same files would give other groups
TOGETHER = 256  # records encoded at a time
TRIED = 16  # answers of later rows that a task is asked about


class SourceGroups(NamedTuple):
    """A source's groups, and which of them are held out, int [n]; all comparisons of a prompt are on one side."""

    store: GroupStore
    held: np.ndarray

    def train(self) -> Groups:
        """What is not held out."""
        count = len(self.store.said.ends)
        return Chosen(self.store, np.setdiff1d(np.arange(count), self.held)) if len(self.held) else self.store

    def eval(self) -> Groups | None:
        """What is."""
        return Chosen(self.store, self.held) if len(self.held) else None


def open_source(source: Source, reading: Reading, encoding: Encoding, rules: Rules, say: Say) -> SourceGroups:
    """The groups of a source: opened where they are, made where they are not; what was seen and refused is said either way.

    Raises:
      ValueError: nothing there, or too many records that cannot be trained on.
    """
    made = fingerprint(source, reading, encoding, rules)
    folder = default_root() / "comparisons" / made[:24]
    with locked(folder, say):
        if not is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
            kept, notes = _Kept(source, reading, rules), dict[str, Any]()
            with _progress(source.name) as tick:
                groups = kept.checked(encoding, tick, notes)
                write_groups(folder, groups, vocab_size=encoding.tokenizer.vocab_size, fingerprint=made, notes=notes)
            _refused(folder, [*kept.tally.wrong, *kept.wrong])
    store, notes = open_groups(folder, fingerprint=made)  # type: ignore[assignment]
    for line in notes["said"]:
        say(line)
    return SourceGroups(store, np.asarray(notes["held"], np.int64))


def fingerprint(source: Source, reading: Reading, encoding: Encoding, rules: Rules) -> str:
    """Changes when the groups would."""
    of_files: list[Any] = [source.path]
    if not source.path.startswith(TASK) or "=" in source.path:
        files, _ = list_files(dataclasses.replace(source, format=None, path=source.path.rpartition("=")[2]), SUFFIXES)
        of_files = [(file.name, file.size, file.stamp, file.format, file.compression) for file in files]
    how = (encoding.identity, encoding.tokenizer.fingerprint)
    said = json.dumps(["comparisons", VERSION, of_files, dataclasses.astuple(reading), how, rules])
    return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()


def of_task(source: Source, tally: Tally) -> Iterator[Judged]:
    """Comparisons whose truth is known: of each row of `task:NAME` or `task:NAME=FILE` a right answer and that of a later row, which the
    task scores lower.

    Raises:
      ValueError: an unknown task, one without answers of its own words, or wrong rows.
    """
    name, _, path = source.path.removeprefix(TASK).partition("=")
    task, found = open_task(name, [path] if path else [], count=MADE, seed=TRAIN_SEED, part="train")
    if not isinstance(task, Generation):
        raise ValueError(f"{source.path}: a task of choices has no answers to compare. Give one whose answers are written.")
    rows = list(found)
    for number, row in enumerate(rows):
        tally.records += 1
        tally.formats[("task", (name,))] += 1
        right, later = task.target(row).strip(), (rows[(number + k) % len(rows)] for k in range(1, min(TRIED, len(rows))))
        worse = next((text for other in later if _scores_less(task, row, text := task.target(other).strip(), right)), None)
        where = f"{source.path}:{number + 1}"
        if worse is None:
            tally.wrong.append(WrongDialogue(Dialogue((), where=where), "has no worse answer among those of later rows"))
            continue
        asked = Message("user", task.prompt(row), weight=0.0)
        yield Judged(tuple(Dialogue((asked, Message(ASSISTANT, text)), where=where) for text in (right, worse)), (0.0, 1.0), where=where)


def _scores_less(task: Generation, row: Any, text: str, right: str) -> bool:
    """Whether the task thinks less of a text than of a right answer, by its first score."""
    return next(iter(task.score(row, text).values())) < next(iter(task.score(row, right).values()))


def prompt_of(dialogue: Dialogue) -> str:
    """What is asked in a dialogue: everything before the answer."""
    return "\0".join(f"{m.role}:{m.content}{m.input}" for m in dialogue.messages if m.weight == 0)


class _Kept:
    """What is learnt of a source while its groups go by."""

    def __init__(self, source: Source, reading: Reading, rules: Rules):
        self.source, self.reading, self.rules, self.tally = source, reading, rules, Tally(source.name)
        self.wrong: list[WrongDialogue] = []
        self.held: list[int] = []
        self.seen: set[bytes] = set()
        self.repeated = self.count = 0

    def checked(self, encoding: Encoding, tick: Any, notes: dict[str, Any]) -> Iterator[Group]:
        """The groups; at their end, whether too many records were refused, and what the store shall remember of them."""
        made = self.source.path.startswith(TASK)
        found = of_task(self.source, self.tally) if made else records(self.source, self.reading, self.tally)
        while batch := list(itertools.islice(found, TOGETHER)):
            yield from self._groups([one for one in batch if self._is_new(one)], encoding)
            tick(len(batch))
        check_share(self.source.name, [*self.tally.wrong, *self.wrong], self.tally.records, self.rules.max_bad_share)
        notes |= {"said": self.lines(), "held": self.held}

    def _is_new(self, judged: Judged) -> bool:
        key = hashlib.blake2b(repr(judged[:-1]).encode("utf-8", "replace"), digest_size=12).digest() if self.rules.dedup else b""
        if self.rules.dedup and key in self.seen:
            self.repeated += 1
            return False
        self.seen.add(key)
        return True

    def _groups(self, batch: list[Judged], encoding: Encoding) -> Iterator[Group]:
        bare = [dialogue._replace(where="") for judged in batch for dialogue in judged.dialogues]
        encoded = iter([found for _, found in encoding(bare)])
        for judged in batch:
            answers = [next(encoded) for _ in judged.dialogues]
            problem = next((one.problem for one in answers if isinstance(one, WrongDialogue)), None) or _same(judged, answers)
            if problem:
                self.wrong.append(WrongDialogue(Dialogue((), where=judged.where), problem))
                continue
            hashed = document_hash(prompt_of(judged.dialogues[0]))
            if self.rules.eval_fraction and held_out(hashed, self.rules.eval_fraction):
                self.held.append(self.count)
            self.count += 1
            yield Group(tuple(answers), judged.ranks, judged.value, judged.margin, int(hashed[:16], 16))

    def lines(self) -> list[str]:
        """For people."""
        said = [str(self.tally)]
        if self.repeated:
            said.append(f"{self.source.name}: {self.repeated:,} records that were there before are left out.")
        if wrong := [*self.tally.wrong, *self.wrong]:
            said.append(f"{self.source.name}: {len(wrong):,} of {self.tally.records:,} records refused. The first: {wrong[0]}")
        return said


def _same(judged: Judged, answers: list[Any]) -> str | None:
    """What is wrong with answers that are the same to the model."""
    tokens = [one.tokens.tobytes() for one in answers if isinstance(one, Example)]
    ranks = judged.ranks
    same = any(tokens[i] == tokens[j] and ranks[i] != ranks[j] for i in range(len(tokens)) for j in range(i))
    return "has answers that are the same in tokens, and judged differently" if same else None


def _refused(folder: Path, wrong: list[WrongDialogue]) -> None:
    lines = [json.dumps({"where": one.where, "problem": one.problem}, ensure_ascii=False) + "\n" for one in wrong]
    (folder / "refused.jsonl").write_text("".join(lines), encoding="utf-8")


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Any]:
    """Counts records on a terminal."""
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("encoding {task.description}: {task.completed:,} comparisons"), TimeElapsedColumn()
    bar = Progress(*columns, disable=not sys.stderr.isatty(), transient=True)
    bar.console.stderr = True
    with bar:
        line = bar.add_task(name)
        yield lambda count: bar.advance(line, count)
