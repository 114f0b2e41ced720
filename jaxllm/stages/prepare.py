"""`jaxllm prepare`: raw text into a tokenizer and token files, in parallel, restartable, with the same result however it was run."""

import contextlib
import fcntl
import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from etils import epath

from jaxllm.data import remote
from jaxllm.data.filters import make_filters
from jaxllm.data.ledger import table
from jaxllm.data.making import BAD_FILE, Say, make_folder
from jaxllm.data.preparation import Options, Plan, make_plan
from jaxllm.data.prepared import Prepared, default_root, open_prepared
from jaxllm.data.sources import Source, absolute, make_sources
from jaxllm.data.token_files import INDEX_FILE
from jaxllm.data.tokenizers import check_spec, make_tokenizer, needs_training
from jaxllm.stages.config import load

KEYS = ("train", "eval", "tokenizer", "prepared", "eval_fraction", "dedup", "filters", "max_bad_share", "workers")
READ_KEYS = ("stage_to", "cache", "cache_bytes")  # of open_prepared: they change nothing of what is prepared
LEFT_OUT: tuple[Any, ...] = (None, [], (), {})
EVAL_FRACTION = 0.01


def say_on_stderr(line: str) -> None:
    """Prints a line for people."""
    print(line, file=sys.stderr, flush=True)


def note(prepared: Prepared, workdir: str | os.PathLike) -> None:
    """Writes where the token files are, and their counts, into `workdir/prepare.json`."""
    place = epath.Path(workdir)
    place.mkdir(parents=True, exist_ok=True)
    said = {"folder": prepared.folder, "fingerprint": prepared.fingerprint, "content": prepared.content, "counts": prepared.index["counts"]}
    (place / "prepare.json").write_text(json.dumps(said, indent=1) + "\n")


def settings_of(config: Any) -> dict[str, Any]:
    """The part of a config that `prepare` reads, without what was left empty."""
    section = config.data.to_dict()
    wanted = {key: section[key] for key in (*KEYS, "stage_to", "cache") if section[key] not in LEFT_OUT}
    if wanted.get("prepared") and not wanted.get("train"):  # made elsewhere: its own record says how
        return {key: wanted[key] for key in ("prepared", "tokenizer", "stage_to", "cache") if key in wanted}
    return wanted


def main(args: Namespace, overrides: Sequence[str]) -> int:
    """`jaxllm prepare --config F [--workdir D]`: the token files of a config, where `pretrain` will look for them."""
    config = load(args.config, overrides)
    if config.init_from:
        from jaxllm.stages import origin  # brings JAX, which workers do without

        config = origin.complete(config)
    prepared = prepare(settings_of(config))
    if args.workdir:
        note(prepared, args.workdir)
    print(prepared.folder)
    return 0


def prepare(
    data: Mapping[str, Any],
    *,
    trains: bool = True,
    root: str | os.PathLike | None = None,
    say: Say = say_on_stderr,
    chunk_bytes: int = 0,
    bucket_bytes: int = 0,
) -> Prepared:
    """The prepared folder of a config's `data` section: opened where it is there, made where it is not.

    Args:
      data: `train`, `eval`: lists of {path, weight, format, field, name}; `tokenizer` (bytes): see `tokenizers.check_spec`; `prepared`: the
        folder, here or remote (left out: a folder under `root`, named by a fingerprint of all of this); `eval_fraction` (0.01, or 0 with
        `eval`); `dedup` (True); `filters` (none, see `filters.make_filters`); `max_bad_share` (0.02); `workers` (the machine's cores); for
        remote folders `stage_to`, `cache`, `cache_bytes` (see `prepared.open_prepared`).
      trains: whether there must be text to train on; otherwise text to score is enough.
      root: for folders without a name; None: see `prepared.default_root`.
      say: takes the lines for people.
      chunk_bytes, bucket_bytes: see `preparation.Options`.

    Raises:
      ValueError: an unknown key, nothing to read, a folder made otherwise or with another tokenizer, or too many bad records.
    """
    if unknown := sorted(set(data) - {*KEYS, *READ_KEYS}):
        raise ValueError(f"Unknown key data.{unknown[0]}. Choose from: {', '.join((*KEYS, *READ_KEYS))}.")
    reading = {key: data[key] for key in READ_KEYS if data.get(key)}
    folder = os.path.expanduser(str(data.get("prepared") or "")).rstrip("/")
    if folder and _exists(folder):
        prepared = open_prepared(folder, **reading)
        check_same(prepared, data)
        say(f"Token files: {folder} (there already, {prepared.content[:12]}).")
        return prepared
    if not data.get("train") and (trains or not data.get("eval")):
        missing = f"There is no prepared folder at data.prepared={folder!r} and " if folder else ""
        raise ValueError(f"{missing}data.train is empty. Name text to train on: a path, gs://..., hub:owner/name or builtin:stdlib.")
    plan, spec = _plan(data, chunk_bytes, bucket_bytes)
    named = folder and not remote.is_remote(folder)
    local = Path(folder) if named else Path(root or default_root(), "tokens", plan.fingerprint[:24])
    with locked(local, say):
        there = (local / INDEX_FILE).is_file()
        if not there:
            how = {key: data.get(key) for key in ("workers", "max_bad_share")}
            make_folder(plan, spec, local, _settings(data), say, **how)
        prepared = open_prepared(local)
    if remote.is_remote(folder):
        _upload(local, folder, prepared, say)
        prepared = open_prepared(folder, **reading)
    say(table(prepared.index))
    say(f"Token files: {prepared.folder} ({'there already, ' * there}{prepared.content[:12]}).")
    return prepared


def _exists(folder: str) -> bool:
    if not remote.is_remote(folder):
        return Path(folder, INDEX_FILE).is_file()
    fs, inner = remote.filesystem(f"{folder}/{INDEX_FILE}")
    return bool(remote.retried(lambda: fs.exists(inner), f"Looking at {folder}"))


def _sources(data: Mapping[str, Any]) -> tuple[list, list]:
    train = make_sources(data.get("train") or (), "data.train")
    return train, make_sources(data.get("eval") or (), "data.eval", [source.name for source in train])


def _settings(data: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the config that decides what is in the folder, with defaults, as plain values; `tokenizer` only where it is said."""
    train, evals = _sources(data)
    fraction = data.get("eval_fraction")
    fraction = (0.0 if evals else EVAL_FRACTION) if fraction is None else float(fraction)
    if not 0 <= fraction < 1:
        raise ValueError(f"data.eval_fraction={fraction} must be at least 0 and less than 1.")
    settings = {
        "train": [[source.name, source.format, source.field] for source in train],
        "eval": [[source.name, source.format, source.field] for source in evals],
        "eval_fraction": fraction,
        "dedup": bool(data["dedup"]) if data.get("dedup") is not None else True,
        "filters": make_filters(data.get("filters")),
    }
    return settings | ({"tokenizer": check_spec(data["tokenizer"])} if data.get("tokenizer") else {})


def _plan(data: Mapping[str, Any], chunk_bytes: int, bucket_bytes: int) -> tuple[Plan, dict[str, Any]]:
    """The plan and the tokenizer's spec."""
    settings = _settings(data)
    spec = settings.get("tokenizer", {"kind": "bytes"})
    identity = spec if needs_training(spec) else {"fingerprint": make_tokenizer(spec).fingerprint}
    options = Options(settings["eval_fraction"], settings["dedup"], settings["filters"], chunk_bytes, bucket_bytes)
    return make_plan(*_sources(data), identity, options), spec


def check_same(prepared: Prepared, data: Mapping[str, Any]) -> None:
    """Refuses a prepared folder that was made otherwise than the config says; what the config leaves out is not compared.

    Raises:
      ValueError: names the first difference.
    """
    said, made = _settings(data), prepared.index["made_from"]
    spec = said.get("tokenizer")
    if spec and not needs_training(spec):
        prepared.check_tokenizer(make_tokenizer(spec))
    elif spec and json.loads(json.dumps(spec)) != made["tokenizer"]:  # a tuple is a list there
        raise ValueError(
            f"data.tokenizer asks for {spec}, but the token files in {prepared.folder!r} were made with {made['tokenizer']}."
            " Leave data.tokenizer out (or none) to use theirs, or name another data.prepared."
        )
    for key in ("train", "eval", "eval_fraction", "dedup", "filters"):
        if data.get(key) not in LEFT_OUT and said[key] != made[key]:
            raise ValueError(
                f"data.{key} says {said[key]}, but the token files in {prepared.folder!r} were made with {made[key]}."
                f" Leave data.{key} out to use them as they are, or name another data.prepared."
            )
    paths, num_train = made.get("paths"), len(made["train"])
    for key, sources, before in zip(("train", "eval"), _sources(data), (slice(num_train), slice(num_train, None)), strict=True):
        for source, path in zip(sources, paths[before] if paths else (), strict=False):
            if absolute(source.path) != absolute(path):
                if _same_files(prepared, data):
                    return
                raise ValueError(
                    f"data.{key} names {source.path!r}, but the token files in {prepared.folder!r} were made from {path!r}."
                    f" Leave data.{key} out to use them as they are, or name another data.prepared."
                )


def _same_files(prepared: Prepared, data: Mapping[str, Any]) -> bool:
    """Whether the sources, wherever they lie now, are the files that the folder was made from."""
    made, said = prepared.index["made_from"], _sources(data)
    paths = iter(made["paths"])
    before = [[Source(name, next(paths), kind, field) for name, kind, field in made[key]] for key in ("train", "eval")]
    spec = made["tokenizer"]
    identity = spec if needs_training(spec) else {"fingerprint": prepared.index["tokenizer"]["fingerprint"]}
    options = Options(made["eval_fraction"], made["dedup"], made["filters"])
    train, evals = (now or then for now, then in zip(said, before, strict=True))
    return make_plan(train, evals, identity, options).fingerprint == prepared.fingerprint


@contextlib.contextmanager
def locked(folder: Path, say: Say) -> Iterator[None]:
    """One process at a time prepares a folder; the others wait and find it done."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f".{folder.name}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f"Another process is preparing {folder}; waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _upload(local: Path, folder: str, prepared: Prepared, say: Say) -> None:
    """Copies a finished folder to a remote one, the index last."""
    fs, inner = remote.filesystem(folder)
    names = [name for name, _ in prepared.files()] + [f"tokenizer/{name}" for name in prepared.index["tokenizer"]["files"]]
    names += [BAD_FILE] * (local / BAD_FILE).is_file()
    say(f"Copying {len(names) + 1} files to {folder}.")
    for name in (*names, INDEX_FILE):
        remote.retried(partial(fs.put_file, str(local / name), f"{inner}/{name}"), f"Writing {folder}/{name}")
