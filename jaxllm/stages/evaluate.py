"""Evaluation: a trained model -> held-out loss, perplexity and bits per byte, by source."""

import contextlib
import json
import signal
import threading
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from jaxllm.models.adapted import Adapted
from jaxllm.parallel import hosts
from jaxllm.stages import compare, inputs, opened, setup, tasks, tuning, workdir
from jaxllm.stages.config import parse_overrides, resolve
from jaxllm.stages.keys import TRAINS
from jaxllm.stages.opened import open_model
from jaxllm.stages.recipes import recipe_of
from jaxllm.training.lock import hold
from jaxllm.training.metrics import AFTERWARDS
from jaxllm.training.sinks import JsonLines


def main(args: Namespace, overrides: Sequence[str]) -> int:
    """`jaxllm evaluate --workdir D [--step N]`; prints a table, and a JSON line per set on standard output."""
    door = held_out
    if args.compare or args.labels:
        door = compare.main
    elif args.tasks is not None or args.init_from or args.config:
        door = tasks.evaluate
    try:
        with terminated_as_interrupted():
            return door(args, overrides)
    except KeyboardInterrupt:
        kept = " What was asked so far is kept in evals.jsonl." * (door is not held_out)
        hosts.say(f"Interrupted.{kept} Run the same command again to go on.")
        return 75


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM is taken for Ctrl-C here, but where another thread, or JAX with its several processes, is to hear of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def held_out(args: Namespace, overrides: Sequence[str]) -> int:
    """Scores the text that a run held out, or that of `data.eval`."""
    for flag in ("judge", "rubric"):
        if getattr(args, flag):
            raise ValueError(f"--{flag} judges answers. Give them: --compare A.jsonl B.jsonl, or --labels FILE.")
    if args.workdir is None:
        raise ValueError("Which model? Give --workdir DIR, or --init-from FOLDER with --tasks.")
    record, given = workdir.read(args.workdir), parse_overrides(overrides)
    given.setdefault("eval.batches", "0")  # all of it, whatever was scored during training
    config = resolve(record["config"], given)
    setup.backend_flags(config, trains=False)
    hosts.start(config.parallel.coordinator, config.parallel.num_processes, config.parallel.process_id)
    setup.keep_compiled_programs()
    mesh = setup.reading_mesh(config)
    recipe = recipe_of(config, record["stage"] if record["stage"] in TRAINS else "pretrain")
    anew = any(key.startswith("data.") for key in given)
    data = inputs.data_of_run(config, args.workdir, anew) if recipe.name == "pretrain" else recipe.open_data(config)
    if not data.eval_names():
        raise ValueError(
            f"{args.workdir} holds no document out. Name text to score: --config.data.eval=FILE, or train with data.eval_fraction."
        )
    model, params, step = open_model(args.workdir, mesh, args.step, config)
    score = recipe.scorer(config, model, data.tokenizer)
    tuned = tuning.make(config, model, beside=recipe.beside(config, model))
    soft = tuned.soft()
    frozen = {"base": params.base} if isinstance(params, Adapted) else opened.frozen(config, mesh, tuned, data.tokenizer.fingerprint)
    scores = {}
    with jax.set_mesh(mesh):
        for name in data.eval_names():
            scores[name] = score(params, frozen, inputs.eval_batches(config, mesh, data.eval_reader(config, name, soft)))
            if hosts.is_first():
                print(json.dumps({"step": step, "name": name, **scores[name]}), flush=True)
    show(scores, f"{args.workdir}, step {step}", recipe.scores)
    text = f"{data.content}, {config.eval.batches or 'all'} batches"
    keep([{"step": step, "name": name, **found, "text": text} for name, found in scores.items()], args.workdir)
    hosts.finish()
    return 0


def keep(records: Sequence[Mapping[str, Any]], place: str) -> None:
    """Adds records to the evals.jsonl of a work directory, if nobody else is writing there and they are not there yet."""
    try:
        with hold(place):
            if hosts.is_first():
                file = JsonLines(epath.Path(place) / "evals.jsonl")
                there = file.read()
                for record in records:
                    if {**record, **AFTERWARDS} not in there:
                        file.write({**record, **AFTERWARDS})
                file.close()
    except (ValueError, OSError) as error:
        hosts.say(f"Not recorded in evals.jsonl: {error}")


def show(scores: dict[str, dict[str, float]], title: str, columns: Sequence[str]) -> None:
    """A table of scores on standard error."""
    if not hosts.is_first():
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None)
    table.add_column("set")
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in scores.items():
        cells = [f"{row[c]:,.0f}" if c == "tokens" else f"{row[c]:.4f}" if c in row else "-" for c in columns]
        table.add_row(name, *cells)
    Console(stderr=True).print(table)
