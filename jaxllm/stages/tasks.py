"""Tasks: what there is, and a model's answers to them, during training and after."""

import contextlib
import functools
import json
import math
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jaxllm.data.tokenizer_kinds import Tokenizer
from jaxllm.evaluation.suite import ROWS, How, Result, Suite, summary
from jaxllm.interop import folders, huggingface, places, tokenizer_files
from jaxllm.models.model import Model
from jaxllm.parallel import hosts
from jaxllm.parallel.mesh import make_mesh
from jaxllm.stages import contamination, setup, tools, workdir
from jaxllm.stages.config import load, parse_overrides, resolve
from jaxllm.stages.opened import identity, open_model, open_tokenizer
from jaxllm.stages.scores import WIDTH, show
from jaxllm.stages.wanted import Asked, wanted
from jaxllm.tasks.catalog import TASKS, kind
from jaxllm.training.lock import hold
from jaxllm.training.metrics import AFTERWARDS
from jaxllm.training.sinks import JsonLines

OVERLAP = "/overlap"  # what the record of the rows that training text has is called after their task's name


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
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)
    return 0


def evals(config: ConfigDict, model: Model, tokenizer: Tokenizer) -> list[tuple[str, Callable[[Any], dict[str, float]]]]:
    """(task, parameters -> metrics) of every task in `tasks.names`, for training to call."""
    if not config.tasks.names:
        return []
    suite, say = make_suite(config, model, tokenizer), functools.cache(hosts.say)  # what is said at every asking is said once

    def scores(asked: Asked, params: Any) -> dict[str, float]:
        found = [suite.run(params, asked.name, asked.task, asked.rows, how, say=say) for how in asked.hows]
        whole = merged(found)
        return whole.metrics | {"rows": whole.rows, "unscored": whole.unscored}

    def bound(asked: Asked) -> Callable[[Any], dict[str, float]]:
        return lambda params: scores(asked, params)

    return [(asked.name, bound(asked)) for asked in wanted(config, config.tasks.names, hosts.say)]


def make_suite(config: ConfigDict, model: Model, tokenizer: Tokenizer) -> Suite:
    """The suite of a config."""
    section, ways = config.tasks, jax.device_count()
    sizes = {"length": section.length, "slots": -(-section.slots // ways) * ways, "rows": -(-section.rows // ways) * ways}
    if config.rollout.tools and not config.rollout.chat:  # tasks are asked in plain text
        return tools.ToolSuite(config, model, tokenizer, **sizes)
    return Suite(model, tokenizer, **sizes)


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
    asked = wanted(config, names, hosts.say)
    for entry in config.tasks.contamination:
        contamination.open_texts(entry, source)  # what is not there is told before the model is loaded
    mesh = make_mesh()  # rows are independent: every device gets its own
    with jax.set_mesh(mesh), hold(place):
        model, params, tokenizer, step = open_source(source, mesh, args.step, config)
        suite, file = make_suite(config, model, tokenizer), JsonLines(epath.Path(place) / "evals.jsonl")
        asked = [one for one in asked if fits(suite, one)]  # what does not is told before anything is asked
        who, shares = identity(source, step), contamination.shares(asked, config.tasks.contamination, source)
        results = [run_one(suite, params, one, step, file, who, None if shares is None else shares[i]) for i, one in enumerate(asked)]
        file.flush()
    show(results, f"{source}, step {step}")
    hosts.finish()
    return 0


def fits(suite: Suite, asked: Asked) -> bool:
    """Whether every row fits the model.

    Raises:
      ValueError: one does not, and the task was asked for by its name.
    """
    try:
        suite.shown(asked.name, asked.task, asked.rows, asked.hows[0])
    except ValueError as error:
        if asked.by_name:
            raise
        hosts.say(f"Left out: {error}")
        return False
    return True


def settings(args: Namespace, source: str, overrides: Sequence[str]) -> ConfigDict:
    """The config of --config, or of the run that the model comes from, with the command line's overrides."""
    if args.config:
        return load(args.config, overrides)
    return resolve({} if folders.is_one(source) else workdir.read(source)["config"], parse_overrides(overrides))


def open_source(source: str, mesh: Any, step: int | None, config: ConfigDict) -> tuple[Model, Any, Tokenizer, int]:
    """Model, parameters, tokenizer and step of a work directory or a Hugging Face folder."""
    if not folders.is_one(source):
        model, params, at = open_model(source, mesh, step, None)
        return *setup.unrolled(model, params), open_tokenizer(source, config.peft.task), at
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


def run_one(suite: Suite, params: Any, asked: Asked, step: int, file: JsonLines, who: str, shares: np.ndarray | None = None) -> Result:
    """One task, with a progress bar; rows that have a record already are not asked again.

    Args:
      suite: the model.
      params: its parameters.
      asked: the task.
      step: they are of.
      file: takes the records.
      who: whose parameters they are.
      shares: of each row, what training text has of it; None: not looked for.
    """
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
            one = suite.run(params, asked.name, asked.task, asked.rows, how, who=who, known=known, write=write, say=hosts.say, tell=tell)
            found.append(one if shares is None else with_clean(one, asked, how, shares))
    result = merged(found)
    if hosts.is_first():
        record_one(result, step, file, shares)
    return result


def with_clean(result: Result, asked: Asked, how: How, shares: np.ndarray) -> Result:
    """The result with the same metrics over the rows of which training text has nothing, under `clean_<metric>`; and the share of others.

    Rows that are too short to be looked for are of neither kind.
    """
    clean = [record for record, share in zip(result.records, shares, strict=True) if share == 0]
    found = {f"clean_{name}": value for name, value in summary(asked.task, clean, how)[0].items()} if clean else {}
    judged = ~np.isnan(shares)
    share = float((shares[judged] > 0).mean()) if judged.any() else math.nan
    counts = {"contaminated": share, "rows_judged": int(judged.sum()), "rows_clean": len(clean)}
    return result._replace(metrics=result.metrics | found | counts)


def record_one(result: Result, step: int, file: JsonLines, shares: np.ndarray | None) -> None:
    """The line of a task in evals.jsonl and on standard output; and which of its rows training text has, in a line of its own."""
    said = {name: value if math.isfinite(value) else None for name, value in result.metrics.items()}
    counts = {"rows": result.rows, "unscored": result.unscored, "shots": result.shots, "settings": result.settings}
    records = [{"step": step, "name": result.name, **said, **counts, **AFTERWARDS}]
    if shares is not None:
        seen = {str(row): round(float(share), 4) for row, share in enumerate(shares) if share > 0}
        records.append({"step": step, "name": result.name + OVERLAP, "shares": seen, "settings": result.settings, **AFTERWARDS})
    there = file.read()
    for record in records:
        if record not in there:
            file.write(record)
    print(json.dumps(records[0]), flush=True)
