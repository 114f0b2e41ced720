"""Every task by name, and the files that its rows are published in."""

import dataclasses
import difflib
import fnmatch
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxllm.tasks import choice, exact, natural
from jaxllm.tasks.arithmetic import Arithmetic, WorkedArithmetic
from jaxllm.tasks.code import MBPP, HumanEval
from jaxllm.tasks.instructions import Instructions
from jaxllm.tasks.math import GSM8K, MATH, SVAMP
from jaxllm.tasks.rows import SUFFIXES, normal_rows, read_rows
from jaxllm.tasks.task import Choice, Continuation, Generation, Row, Task, Text

MADE = 1000  # rows of a task that makes its own, unless another number is asked for


class Entry(NamedTuple):
    """One task of the catalogue."""

    task: Task
    about: str
    files: tuple[str, ...] = ()  # patterns of its files' names, without what comes after the first dot; the first that is there is read
    columns: tuple[str, ...] = ()  # of csv files without a line of names
    expand: Callable[[Row], Sequence[Row]] | None = None  # a record of the file -> rows
    prompts: str = ""  # the pattern of a file of prompts beside the rows
    parts: bool = False  # the task is published in many files, all of which are read
    taught: bool = False  # its rows are there to be learnt from: asking for all tasks does not ask it


class NoFile(ValueError):
    """There is no file of a task where it was looked for."""


BIG_BENCH = ("bigbench_[!dor]*", "task")
TASKS: dict[str, Entry] = {
    "arithmetic": Entry(Arithmetic(), "sums and differences, made here"),
    "arithmetic_calls": Entry(WorkedArithmetic(), "the same, worked out by a call: what rollout.tools starts from", taught=True),
    "addition": Entry(Arithmetic(signs="+"), "sums alone, made here: what the demo learns"),
    "text": Entry(Text(), "perplexity and bits per byte of documents {text}", ("*",)),
    "lambada": Entry(exact.LAMBADA(), "the last word of a passage", ("lambada*",)),
    "continuation": Entry(Continuation(), "rows {context, continuation}: how a text goes on, word for word", ("*",)),
    "choice": Entry(choice.Query(), "rows {query, choices, gold}: any multiple choice", ("*",)),
    "arc_easy": Entry(choice.ARC(), "AI2 Reasoning Challenge, easy", ("arc_easy*", "ARC-Easy-Test*")),
    "arc_challenge": Entry(choice.ARC(), "AI2 Reasoning Challenge", ("arc_challenge*", "ARC-Challenge-Test*")),
    "hellaswag": Entry(choice.HellaSwag(), "which ending follows", ("hellaswag*",)),
    "piqa": Entry(choice.PIQA(), "physical common sense", ("piqa*",)),
    "siqa": Entry(choice.SIQA(), "social common sense", ("siqa*", "socialiqa*")),
    "openbookqa": Entry(choice.OpenBookQA(), "elementary science", ("openbook*",)),
    "commonsense_qa": Entry(choice.CommonsenseQA(), "common sense, by letter", ("commonsense*",)),
    "copa": Entry(choice.COPA(), "cause or effect", ("copa*",)),
    "boolq": Entry(choice.BoolQ(), "yes or no, from a passage", ("boolq*",)),
    "winogrande": Entry(choice.WinoGrande(), "whom a pronoun means", ("winogrande*",)),
    "winograd": Entry(choice.WinoGrande(), "whom a pronoun means, the first such set", ("winograd_wsc*",)),
    "truthfulqa_mc1": Entry(choice.TruthfulQA(), "one true answer among false ones", ("truthfulqa*", "mc_task*")),
    "truthfulqa_mc2": Entry(choice.TruthfulQA(targets="mc2_targets"), "how likely true answers are", ("truthfulqa*", "mc_task*")),
    "mmlu": Entry(choice.MMLU(), "57 subjects, by letter", ("mmlu*", "*_test"), columns=("question", *"ABCD", "answer"), parts=True),
    "bigbench": Entry(choice.Query(), "BIG-bench tasks with choices", BIG_BENCH, expand=choice.from_bigbench, parts=True),
    "bigbench_exact": Entry(Continuation(), "BIG-bench tasks with one exact answer", ("bigbench_[dor]*",), parts=True),
    "bbh": Entry(exact.BBH(), "BIG-bench Hard with a chain of thought", ("bbh",), prompts="bbh_cot_prompts*"),
    "gsm8k": Entry(GSM8K(), "grade-school word problems, with their reasoning", ("gsm8k_test*", "gsm8k*", "test")),
    "math": Entry(MATH(), "competition mathematics, answers in a box", ("math*",)),
    "svamp": Entry(SVAMP(), "word problems with a twist", ("svamp*", "SVAMP*")),
    "humaneval": Entry(HumanEval(), "functions from their docstrings; programs are run", ("humaneval*", "HumanEval*")),
    "mbpp": Entry(MBPP(), "small programs from a sentence; programs are run", ("mbpp_test*", "mbpp*", "sanitized-mbpp*")),
    "ifeval": Entry(Instructions(), "instructions that a program can check", ("ifeval*", "input_data")),
    "natural_instructions": Entry(
        natural.NaturalInstructions(), "tasks told in words", ("natural_instructions*", "task[0-9]*"), expand=natural.rows_of
    ),
    "model_written": Entry(choice.ModelWritten(), "how often a behaviour is shown", ("*",)),
}


def entry(name: str) -> Entry:
    """The entry of this name.

    Raises:
      ValueError: there is none; names the nearest.
    """
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, 1)
    raise ValueError(f"Unknown task {name!r}. Choose from: {', '.join(TASKS)}." + (f" Did you mean {near[0]!r}?" if near else ""))


def kind(task: Task) -> str:
    """What the model does in it."""
    kinds = {Choice: "choice", Generation: "generation", Continuation: "continuation", Text: "text"}
    return next(name for base, name in kinds.items() if isinstance(task, base))


def find_files(name: str, folder: str) -> list[str]:
    """The files under a folder whose names are this task's, of the first pattern that has any.

    Raises:
      NoFile: none.
      ValueError: several of a task that is one file.
    """
    found = entry(name)
    names = sorted(os.path.join(place, file) for place, _, files in os.walk(folder) for file in files if _suffix(file) in SUFFIXES)
    for pattern in found.files:
        matching = [path for path in names if fnmatch.fnmatchcase(_stem(path), pattern)] if pattern != "*" else []
        if found.columns:
            matching = [path for path in matching if _suffix(path) == ".csv"]
        if len(matching) > 1 and not found.parts:
            raise ValueError(f"Several files of task {name!r}: {', '.join(matching)}. Name the one to ask: {name}=FILE.")
        if matching:
            return matching
    raise NoFile(f"No file of task {name!r} under {folder!r} (looked for {' or '.join(found.files)}). Give it: {name}=FILE.")


def _stem(path: str) -> str:
    return Path(path).name.partition(".")[0]


def _suffix(name: str) -> str:
    return Path(name.removesuffix(".gz")).suffix


def open_task(name: str, paths: Sequence[str], *, count: int | None = None, seed: int = 0, part: str = "test") -> tuple[Task, list[Row]]:
    """A task and its rows in its own form.

    Args:
      name: of `TASKS`.
      paths: its files; a task that makes its rows needs none.
      count: of rows that are made.
      seed: of rows that are made.
      part: of rows that are made: "test", or "train", which has none of those.

    Raises:
      ValueError: an unknown task, no files, a wrong row, or no row at all.
    """
    found = entry(name)
    if isinstance(found.task, Arithmetic) and not paths:
        return found.task, normal_rows(found.task, found.task.made(count or MADE, seed, part), name)
    if not paths:
        raise ValueError(f"Task {name!r} needs a file of rows. Give {name}=FILE, or a folder to look in with tasks.path.")
    task, rows = found.task, list[Row]()
    for path in paths:
        rows += normal_rows(task, _expanded(found, path), path)
    if not rows:
        raise ValueError(f"Task {name!r} has no row in {', '.join(paths)}.")
    if found.prompts and isinstance(task, exact.BBH):
        task = dataclasses.replace(task, prompts=_prompts(found, paths[0]))
    return task, rows


def _expanded(found: Entry, path: str) -> Iterator[Row]:
    for row in read_rows(path, found.columns if path.removesuffix(".gz").endswith(".csv") else ()):
        yield from (row,) if found.expand is None else found.expand(row)


def _prompts(found: Entry, path: str) -> dict[str, str]:
    beside = sorted(file for file in Path(path).parent.iterdir() if fnmatch.fnmatchcase(file.name, found.prompts))
    return exact.read_prompts(read_rows(str(beside[0]))) if beside else {}
