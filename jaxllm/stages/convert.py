"""Conversion: a Hugging Face folder -> a work directory that every stage reads, and back."""

import contextlib
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from jaxllm.interop import folders, huggingface, names, peft_writing, places, settings, tokenizer_files
from jaxllm.models.adapted import Adapted
from jaxllm.models.config import ModelConfig
from jaxllm.models.model import Model
from jaxllm.parallel.mesh import make_mesh
from jaxllm.stages import opened, origin, setup, tuning, workdir
from jaxllm.stages.config import resolve
from jaxllm.stages.opened import open_model
from jaxllm.training.checkpoints import write_once

STAGE = "convert"
LONGEST = 1024  # tokens per row that a converted model is scored with unless told otherwise


def main(args: Namespace, overrides: Sequence[str]) -> int:
    """`jaxllm convert --from FOLDER --to WORKDIR`, or `--from WORKDIR --to FOLDER`; what the source is decides."""
    if overrides:
        raise ValueError(
            f"jaxllm convert does not know {overrides[0]!r}. Choose from: --from, --to, --dtype, --step, --family, --adapters."
        )
    setup.give_memory_back()
    jax.config.update("jax_platforms", "cpu")  # nothing is computed, and a model that fits no device may still fit the host
    is_theirs = folders.is_one(args.source)
    if not (epath.Path(args.source) / workdir.NAME).exists():
        raise ValueError(f"--from {args.source}: there is no {workdir.NAME}. Give a Hugging Face folder or a work directory.")
    for name in ("step", "family", "adapters") if is_theirs else ():
        if getattr(args, name) not in (None, False):
            raise ValueError(f"--{name} is for work directories, and {args.source} is a Hugging Face folder. Leave it out.")
    with whole(args.to) as target:
        if is_theirs:
            bring_in(args.source, target, args.dtype)
        else:
            take_out(args.source, target, args.dtype, args.step, args.family, args.adapters)
    say(f"Written: {args.to}")
    return 0


def say(line: str) -> None:
    """One line to the user."""
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def whole(target: str) -> Iterator[Path]:
    """A folder that appears under its name only when all of it is there; while it is made it is called .<name>.partial.

    Raises:
      ValueError: there is something under that name already, or it is not on a disk.
    """
    path = Path(os.path.abspath(target))
    if "://" in target:
        raise ValueError(f"--to {target}: a conversion is written to a disk. Name a folder of this machine, and copy it from there.")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"--to {target} is there already and not empty. Name a new folder, or delete it.")
    partial = path.parent / f".{path.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a conversion that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextlib.contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, a line at the end elsewhere; yields what is told how many bytes were done."""
    if not sys.stderr.isatty():
        yield lambda done: None
        say(f"{what}: {total:,} bytes")
        return
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, advance=done)


def bring_in(source: str, target: Path, dtype: str | None) -> None:
    """Makes a work directory of a Hugging Face folder: its weights as checkpoint 0, its tokenizer, its generation settings and template."""
    folder = folders.open_folder(source)
    family, config = places.read_config(folder)
    places.places(folder, family, config)  # a mistake in the folder is told before any weight is read
    tokenizer = tokenizer_files.load(folder.path, config.vocab_size, say)
    model = Model(config, param_dtype=dtype or places.stored_dtype(folder, family, config))
    mesh = make_mesh(devices=jax.devices()[:1])
    with bar(f"Reading {family} weights", model.num_params() * jax.numpy.dtype(model.param_dtype).itemsize) as tell:
        params = huggingface.load(folder, family, model, mesh, tell, say)
    write_once(target / "checkpoints", 0, {"params": params}, {"tokenizer": tokenizer.fingerprint, "scan_layers": True})
    tokenizer_files.keep(folder.path, target / workdir.ORIGIN)
    workdir.keep_tokenizer(tokenizer, target)
    known = {"tokenizer": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size, "converted_from": os.path.abspath(source)}
    length = min(config.max_positions, LONGEST)
    said = {"model": {**origin.fields(config), "param_dtype": model.param_dtype}, "sequence_length": length}
    workdir.record(STAGE, resolve(said), target, known)


def take_out(source: str, target: Path, dtype: str | None, step: int | None, family: str | None, adapters: bool = False) -> None:
    """Writes the model of a work directory (its moving average, if it kept one) as a Hugging Face folder.

    Adapters beside a frozen base are merged into it; or, with `adapters`, written alone, as PEFT lays them out.

    Raises:
      ValueError: adapters are asked for and there are none, or they are of a kind that can be neither.
    """
    tokenizer, kept = workdir.own_tokenizer(source), epath.Path(source) / workdir.ORIGIN
    model, params, step = open_model(source, make_mesh(devices=jax.devices()[:1]), step)
    family = family_to_write(model.config, kept) if family is None else names.known(family)
    given, dtype = dtype, dtype or model.param_dtype
    record = workdir.read(source)
    tuned = tuning.make(resolve(record["config"]), model)
    if adapters:
        if not isinstance(params, Adapted):
            raise ValueError(f"--adapters: {source} trained all of its weights. Leave it out to write them.")
        base = record["config"]["init_from"]
        known = opened.identity(base) if base else None
        peft_writing.save(target, family, tuned.method, params.adapters, given or "float32", base=base, fingerprint=known)
        return
    if isinstance(params, Adapted):
        params = jax.jit(tuned.method.merge)(*params)
    ids = tokenizer_files.save(tokenizer, kept, target)
    with bar(f"Writing {family} weights of step {step}", model.num_params() * jax.numpy.dtype(dtype).itemsize) as tell:
        huggingface.save(target, family, model.config, params, dtype, ids, tell=tell)


def family_to_write(config: ModelConfig, kept: epath.Path) -> str:
    """The family that the model came from, if it still is of it; else the first that can say what it is.

    Raises:
      ValueError: there is none.
    """
    if (kept / folders.CONFIG).exists():
        given = folders.read_json(kept / folders.CONFIG)
        came_from = settings.read(given, str(kept / folders.CONFIG))[0]
        with contextlib.suppress(ValueError):
            settings.write(came_from, config)
            return came_from
    return settings.family_of(config)
