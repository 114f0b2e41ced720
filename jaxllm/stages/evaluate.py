"""Evaluation: a trained model -> held-out loss, perplexity and bits per byte, by source."""

import json
from argparse import Namespace
from collections.abc import Sequence

import jax

from jaxllm.evaluation.perplexity import SCORES
from jaxllm.parallel import hosts
from jaxllm.stages import inputs, setup, tasks, tuning, workdir
from jaxllm.stages.config import parse_overrides, resolve
from jaxllm.stages.keys import TRAINS
from jaxllm.stages.opened import open_model
from jaxllm.stages.recipes import recipe_of


def main(args: Namespace, overrides: Sequence[str]) -> int:
    """`jaxllm evaluate --workdir D [--step N]`; prints a table, and a JSON line per set on standard output."""
    if args.tasks is not None or args.init_from or args.config:
        return tasks.evaluate(args, overrides)
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
    score, soft = recipe.scorer(config, model, data.tokenizer), tuning.make(config, model).soft()
    scores = {}
    with jax.set_mesh(mesh):
        for name in data.eval_names():
            scores[name] = score(params, inputs.eval_batches(config, mesh, data.eval_reader(config, name, soft)))
            if hosts.is_first():
                print(json.dumps({"step": step, "name": name, **scores[name]}), flush=True)
    show(scores, f"{args.workdir}, step {step}")
    hosts.finish()
    return 0


def show(scores: dict[str, dict[str, float]], title: str) -> None:
    """A table of scores on standard error."""
    if not hosts.is_first():
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None)
    table.add_column("set")
    for column in SCORES:
        table.add_column(column, justify="right")
    for name, row in scores.items():
        cells = [f"{row[c]:,.0f}" if c == "tokens" else f"{row[c]:.4f}" if c in row else "-" for c in SCORES]
        table.add_row(name, *cells)
    Console(stderr=True).print(table)
