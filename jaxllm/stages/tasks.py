"""Tasks: what there is, and a model's answers to them, during training and after."""

import contextlib
import dataclasses
import json
import math
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from jaxllm.data.tokenizer_kinds import Tokenizer
from jaxllm.evaluation.prompts import Split, split
from jaxllm.evaluation.suite import ROWS, How, Result, Suite
from jaxllm.interop import folders, huggingface, places, tokenizer_files
from jaxllm.models.model import Model
from jaxllm.parallel import hosts
from jaxllm.parallel.mesh import make_mesh
from jaxllm.stages import setup, workdir
from jaxllm.stages.config import load, parse_overrides, resolve
from jaxllm.stages.opened import open_model
from jaxllm.tasks.catalog import TASKS, entry, find_files, kind, open_task
from jaxllm.tasks.task import Generation, Task, Text
from jaxllm.training import manifest
from jaxllm.training.lock import hold
from jaxllm.training.sinks import JsonLines


def main(args: Namespace, overrides: Sequence[str]) -> int:
    """`jaxllm tasks`: the catalogue as a table."""
    from rich.console import Console
    from rich.table import Table

    if overrides:
        raise ValueError(f"jaxllm tasks takes no {overrides[0]!r}.")
    table = Table(box=None)
    for column in ("task", "kind", "compared by", "files", "about"):
        table.add_column(column, overflow="fold")
    for name, found in TASKS.items():
        table.add_row(name, kind(found.task), found.task.METRIC, " ".join(found.files) or "made here", found.about)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return 0


@dataclasses.dataclass(frozen=True)
class Asked:
    """One task of a config or a command line, with its rows."""

    name: str
    task: Task
    rows: Split
    hows: tuple[How, ...]  # one for each temperature


def wanted(config: ConfigDict, names: Sequence[str]) -> list[Asked]:
    """The tasks by name, or by name=FILE, each with its rows read and checked.

    Raises:
      ValueError: an unknown task, no files, wrong rows, or options that do not go together.
    """
    section, found = config.tasks, list[Asked]()
    if not names:
        raise ValueError("No task to ask. Name some, as in --tasks arithmetic; `jaxllm tasks` lists them.")
    if section.limit is not None and section.limit < 1:
        raise ValueError(f"tasks.limit={section.limit} asks nothing. Give at least 1, or leave it out.")
    for word in names:
        name, _, path = str(word).partition("=")
        if name in [other.name for other in found]:
            raise ValueError(f"Task {name!r} is named twice, and its records would mix. Ask one after the other.")
        known = entry(name)
        paths = [path] if path else find_files(name, section.path) if section.path and known.files else []
        shots = (section.shots or 0) if section.limit else 0
        task, rows = open_task(name, paths, seed=config.seed, count=section.limit and section.limit + shots)
        if section.shots is not None and not isinstance(task, Text):
            if section.shots < 0:
                raise ValueError(f"tasks.shots={section.shots} is below 0. Give how many solved examples to show.")
            task = dataclasses.replace(task, **{task.SHOTS: section.shots})
        parts = split(task, rows)
        ways = hows(config) if isinstance(task, Generation) else (How(),)
        found.append(Asked(name, task, Split(parts.shown, parts.asked[: section.limit]), ways))
    return found


def hows(config: ConfigDict) -> tuple[How, ...]:
    """How answers are drawn: one temperature for all k of pass@k, or one for each.

    Raises:
      ValueError: k that are more than the samples, or another number of temperatures.
    """
    section = config.tasks
    if section.max_new_tokens is not None and section.max_new_tokens < 1:
        raise ValueError(f"tasks.max_new_tokens={section.max_new_tokens} writes nothing. Give at least 1, or leave it out.")
    ks, heat = [int(k) for k in section.k], [float(t) for t in section.temperature]
    if section.num_samples < 1 or not ks or min(ks) < 1 or max(ks) > section.num_samples:
        raise ValueError(f"tasks.k={ks} of tasks.num_samples={section.num_samples}: give k from 1 to the number of samples.")
    if len(heat) not in (1, len(ks)):
        raise ValueError(f"tasks.temperature={heat} for tasks.k={ks}: give one temperature, or one for each k.")
    groups = {
        t: tuple(k for k, own in zip(ks, heat if len(heat) > 1 else heat * len(ks), strict=True) if own == t) for t in dict.fromkeys(heat)
    }
    if section.num_samples > 1 and 0.0 in groups:
        raise ValueError(
            f"tasks.num_samples={section.num_samples} equal answers: tasks.temperature=0 always takes the likeliest. Give 0.2, say."
        )
    shared = {"num_samples": section.num_samples, "top_p": section.top_p, "max_new_tokens": section.max_new_tokens, "seed": config.seed}
    return tuple(How(k=own, temperature=t, **shared) for t, own in groups.items())


def evals(config: ConfigDict, model: Model, tokenizer: Tokenizer) -> list[tuple[str, Callable[[Any], dict[str, float]]]]:
    """(task, parameters -> metrics) of every task in `tasks.names`, for training to call."""
    if not config.tasks.names:
        return []
    suite = make_suite(config, model, tokenizer)

    def scores(asked: Asked, params: Any) -> dict[str, float]:
        found = [suite.run(params, asked.name, asked.task, asked.rows, how) for how in asked.hows]
        return merged(found).metrics

    def bound(asked: Asked) -> Callable[[Any], dict[str, float]]:
        return lambda params: scores(asked, params)

    return [(asked.name, bound(asked)) for asked in wanted(config, config.tasks.names)]


def make_suite(config: ConfigDict, model: Model, tokenizer: Tokenizer) -> Suite:
    """The suite of a config."""
    section, ways = config.tasks, jax.device_count()
    return Suite(model, tokenizer, length=section.length, slots=-(-section.slots // ways) * ways, rows=-(-section.rows // ways) * ways)


def merged(results: Sequence[Result]) -> Result:
    """The results of several temperatures as one; of a metric that all have, the first's."""
    metrics: dict[str, float] = {}
    for result in reversed(results):
        metrics |= result.metrics
    return results[0]._replace(metrics=metrics, unscored=sum(result.unscored for result in results))


def evaluate(args: Namespace, overrides: Sequence[str]) -> int:
    """`jaxllm evaluate --tasks a,b=FILE`: a table, records in evals.jsonl, and a JSON line per task on standard output."""
    source, place = args.init_from or args.workdir, args.workdir or args.init_from
    if source is None:
        raise ValueError("Which model? Give --workdir DIR, or --init-from FOLDER with --tasks.")
    if folders.is_one(place):
        raise ValueError(f"--init-from {place} is a Hugging Face folder. Say where the records go: --workdir DIR.")
    config = settings(args, source, overrides)
    setup.backend_flags(config, trains=False)
    hosts.start(config.parallel.coordinator, config.parallel.num_processes, config.parallel.process_id)
    setup.keep_compiled_programs()
    names = list(config.tasks.names) if args.tasks is None else [name for name in args.tasks.split(",") if name]
    asked = wanted(config, names)
    mesh = make_mesh()  # rows are independent: every device gets its own
    with jax.set_mesh(mesh), hold(place):
        model, params, tokenizer, step = open_source(source, mesh, args.step, config)
        suite, file = make_suite(config, model, tokenizer), JsonLines(epath.Path(place) / "evals.jsonl")
        for one in asked:  # what does not fit is told before anything is asked
            suite.shown(one.name, one.task, one.rows, one.hows[0])
        who = identity(source, step)
        results = [run_one(suite, params, one, step, file, who) for one in asked]
        file.flush()
    show(results, f"{source}, step {step}")
    hosts.finish()
    return 0


def settings(args: Namespace, source: str, overrides: Sequence[str]) -> ConfigDict:
    """The config of --config, or of the run that the model comes from, with the command line's overrides."""
    if args.config:
        return load(args.config, overrides)
    return resolve({} if folders.is_one(source) else workdir.read(source)["config"], parse_overrides(overrides))


def open_source(source: str, mesh: Any, step: int | None, config: ConfigDict) -> tuple[Model, Any, Tokenizer, int]:
    """Model, parameters, tokenizer and step of a work directory or a Hugging Face folder."""
    if not folders.is_one(source):
        model, params, at = open_model(source, mesh, step, None)
        return *setup.unrolled(model, params), workdir.own_tokenizer(source), at
    folder = folders.open_folder(source)
    family, shape = places.read_config(folder)
    dtype = places.stored_dtype(folder, family, shape)
    model = Model(
        shape,
        dtype=setup.compute_dtype(config),
        param_dtype=dtype if dtype != "float16" else "float32",
        scan_layers=jax.default_backend() != "cpu",
    )
    tokenizer = tokenizer_files.load(folder.path, shape.vocab_size, hosts.say)
    return model, huggingface.load(folder, family, model, mesh, say=hosts.say), tokenizer, 0


def identity(source: str, step: int) -> str:
    """What tells the weights of a source from those of another: the checksums of a checkpoint's files, or sizes and times of a folder's."""
    if folders.is_one(source):
        files: dict[str, Any] = {
            path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(Path(source).glob("*.safetensors"))
        }
    else:
        files = dict(manifest.read(epath.Path(source) / "checkpoints" / str(step)).files)
    return json.dumps(files, sort_keys=True, default=str)


def run_one(suite: Suite, params: Any, asked: Asked, step: int, file: JsonLines, who: str) -> Result:
    """One task, with a progress bar; rows that have a record already are not asked again."""
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    if hasattr(asked.task, "describe"):
        hosts.say(asked.task.describe())  # what programs are kept in, and what it does not keep out
    known = [r for r in file.read() if r.get("name") == asked.name + ROWS and r.get("step") == step] if hosts.is_first() else []
    known = hosts.tell(hosts.fresh(f"known {asked.name}"), known)
    write: Callable[[Mapping[str, Any]], None] = lambda record: None  # noqa: E731
    if hosts.is_first():
        write = lambda record: file.write({"step": step, "name": asked.name + ROWS, **record})  # noqa: E731
    bar = Progress(
        *Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn(), disable=not sys.stderr.isatty(), transient=True
    )
    bar.console.stderr = True
    found = []
    with bar if hosts.is_first() else contextlib.nullcontext():
        for how in asked.hows:
            line = bar.add_task(asked.name, total=len(asked.rows.asked))
            tell = lambda done, line=line: bar.update(line, completed=done)  # noqa: E731
            found.append(
                suite.run(params, asked.name, asked.task, asked.rows, how, who=who, known=known, write=write, say=hosts.say, tell=tell)
            )
    result = merged(found)
    if hosts.is_first():
        said = {name: value if math.isfinite(value) else None for name, value in result.metrics.items()}
        counts = {"rows": result.rows, "unscored": result.unscored, "shots": result.shots, "settings": result.settings}
        record = {"step": step, "name": asked.name, **said, **counts}
        if record not in file.read():
            file.write(record)
        print(json.dumps(record), flush=True)
    return result


def show(results: Sequence[Result], title: str) -> None:
    """A table of scores on standard error."""
    if not hosts.is_first():
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None)
    for column in ("task", "metric", "score", "95 % interval", "rows", "unscored", "shots"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for result in results:
        for name, value in result.metrics.items():
            if name.endswith(("_low", "_high")):
                continue
            ends = [result.metrics.get(f"{name}_{end}") for end in ("low", "high")]
            between = "" if None in ends else f"{ends[0]:.4f} to {ends[1]:.4f}"
            table.add_row(result.name, name, f"{value:.4f}", between, f"{result.rows:,}", str(result.unscored), str(result.shots))
    Console(stderr=True, width=None if sys.stderr.isatty() else int(os.environ.get("COLUMNS", 120))).print(table)
