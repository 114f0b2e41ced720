"""`jaxllm prepare`: raw text into a tokenizer and token files, in parallel, restartable, with the same result however it was run."""

import contextlib
import fcntl
import json
import os
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from etils import epath

from jaxllm.data import remote
from jaxllm.data.filters import make_filters
from jaxllm.data.formats import describe
from jaxllm.data.ledger import bad_records, check_bad, make_index, table
from jaxllm.data.preparation import Options, Plan, make_plan, sample
from jaxllm.data.prepared import Prepared, default_root, open_prepared
from jaxllm.data.sources import Source, absolute, make_sources
from jaxllm.data.token_files import INDEX_FILE, write_file
from jaxllm.data.tokenizer_training import train_sentencepiece
from jaxllm.data.tokenizers import Tokenizer, check_spec, load_tokenizer, make_tokenizer, needs_training
from jaxllm.data.workers import Submit, pool, reports
from jaxllm.stages.config import load

KEYS = ("train", "eval", "tokenizer", "prepared", "eval_fraction", "dedup", "filters", "max_bad_share", "workers")
READ_KEYS = ("stage_to", "cache", "cache_bytes")  # of open_prepared: they change nothing of what is prepared
LEFT_OUT: tuple[Any, ...] = (None, [], (), {})
BAD_FILE = "bad_records.jsonl"
PLAN_FILE = "plan"
SAMPLE_BYTES = 16 * 1024 * 1024
EVAL_FRACTION = 0.01
MAX_BAD_SHARE = 0.02
LINE_EVERY = 10.0  # seconds between lines of progress where there is no terminal
Say = Callable[[str], None]


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
    prepared = prepare(settings_of(load(args.config, overrides)))
    if args.workdir:
        note(prepared, args.workdir)
    print(prepared.folder)
    return 0


def prepare(
    data: Mapping[str, Any],
    *,
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
      root: for folders without a name; None: $JAXLLM_CACHE or ~/.cache/jaxllm.
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
    if not data.get("train"):
        missing = f"There is no prepared folder at data.prepared={folder!r} and " if folder else ""
        raise ValueError(f"{missing}data.train is empty. Name text to train on: a path, gs://..., hub:owner/name or builtin:stdlib.")
    plan, spec = _plan(data, chunk_bytes, bucket_bytes)
    named = folder and not remote.is_remote(folder)
    local = Path(folder) if named else Path(root or default_root(), "tokens", plan.fingerprint[:24])
    with _locked(local, say):
        there = (local / INDEX_FILE).is_file()
        if not there:
            _make(plan, spec, local, data, say)
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
def _locked(folder: Path, say: Say) -> Iterator[None]:
    """One process at a time prepares a folder; the others wait and find it done."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f".{folder.name}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f"Another process is preparing {folder}; waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(plan: Plan, spec: Mapping[str, Any], folder: Path, data: Mapping[str, Any], say: Say) -> None:
    """Makes the folder under a temporary name beside it, going on from where an earlier attempt at the same plan was stopped."""
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is there and is not a prepared folder. Name another data.prepared, or move it away.")
    _say_sources(plan, say)
    work = folder.with_name(f".{folder.name}.partial")
    _begin(work, plan, say)
    if not (work / INDEX_FILE).is_file():
        _fill(plan, spec, work, folder, data, say)
    _give_name(work, folder)


def _fill(plan: Plan, spec: Mapping[str, Any], work: Path, folder: Path, data: Mapping[str, Any], say: Say) -> None:
    """Does the tasks that are still to do, and writes the index."""
    tokenizer = _make_tokenizer(plan, spec, work, say)
    workers = int(data.get("workers") or os.cpu_count() or 1)
    max_bad = MAX_BAD_SHARE if data.get("max_bad_share") is None else float(data["max_bad_share"])
    with pool(plan, work, min(workers, len(plan.chunks))) as processes:
        scattered = _all(
            "scatter", "Tokenizing", len(plan.chunks), work, processes, say, lambda seen: check_bad(plan, seen, max_bad, unfinished=True)
        )
        check_bad(plan, scattered, max_bad)
        runs = [scattered[chunk]["runs"] for chunk in range(len(plan.chunks))]
        gathered = _all("gather", "Shuffling", plan.num_buckets, work, processes, say, None, runs)
    index = make_index(plan, spec, tokenizer, scattered, gathered, _settings(data))
    if bad := bad_records(plan, scattered):
        write_file(work / BAD_FILE, "".join(json.dumps(record) + "\n" for record in bad).encode())
        first = f"{bad[0]['file']}:{bad[0]['line']}: {bad[0]['problem']}"
        total = sum(n for seen in index["counts"].values() for reason, n in seen.items() if reason.startswith("bad: "))
        say(f"{total:,} bad records ({len(bad):,} of them in {folder / BAD_FILE}); the first: {first}.")
    index["tokenizer"]["files"] = sorted(path.name for path in (work / "tokenizer").iterdir())
    write_file(work / INDEX_FILE, (json.dumps(index, indent=1) + "\n").encode())


def _give_name(work: Path, folder: Path) -> None:
    """Clears the scaffolding away from a finished folder and puts it where it belongs."""
    for name in ("scatter", "gather"):
        shutil.rmtree(work / name, ignore_errors=True)
    (work / PLAN_FILE).unlink(missing_ok=True)
    if folder.exists():
        folder.rmdir()
    os.replace(work, folder)


def _say_sources(plan: Plan, say: Say) -> None:
    for source, files in zip(plan.sources, plan.files, strict=True):
        say(f"Source {source.name}: {source.path}: {describe(files)}, {sum(file.size for file in files) / 1e6:,.1f} MB.")
    if plan.left_out:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(plan.left_out.items(), key=lambda item: -item[1])[:6])
        say(f"Left out {sum(plan.left_out.values())} files whose names are not those of text: {kinds}.")


def _begin(work: Path, plan: Plan, say: Say) -> None:
    """Makes the unfinished folder, or takes over the one that is there if it is of this plan."""
    mark = work / PLAN_FILE
    if work.exists():
        finished = json.loads((work / INDEX_FILE).read_text())["fingerprint"] if (work / INDEX_FILE).is_file() else None
        same = plan.fingerprint in (finished, mark.read_text() if mark.is_file() else None)
        say("Going on with a preparation that was stopped." if same else "Starting over: an unfinished preparation here had another plan.")
        if not same:
            shutil.rmtree(work)
    for name in ("scatter", "gather"):
        (work / name).mkdir(parents=True, exist_ok=True)
    write_file(mark, plan.fingerprint.encode())


def _make_tokenizer(plan: Plan, spec: Mapping[str, Any], work: Path, say: Say) -> Tokenizer:
    place, unfinished = work / "tokenizer", work / "tokenizer.part"
    if place.is_dir():
        return load_tokenizer(place)
    tokenizer = _train(plan, spec, say) if needs_training(spec) else make_tokenizer(spec)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    tokenizer.save(unfinished)
    os.replace(unfinished, place)
    return tokenizer


def _train(plan: Plan, spec: Mapping[str, Any], say: Say) -> Tokenizer:
    texts = sample(plan, int(spec.get("sample_bytes", SAMPLE_BYTES)))
    size = sum(map(len, texts))
    say(f"Training a tokenizer of {spec['vocab_size']} ids on a sample of {len(texts):,} documents, {size / 1e6:,.1f} million characters.")
    names = ("vocab_size", "model_type", "user_symbols", "character_coverage")
    return train_sentencepiece(texts, **{name: spec[name] for name in names if name in spec})


def _all(
    kind: str, title: str, count: int, work: Path, processes: tuple[Submit, int], say: Say, judge: Callable | None, *arguments: Any
) -> dict[int, dict[str, Any]]:
    """The reports of all tasks of a kind, with progress shown; `judge` sees them every ten seconds and may stop it."""
    done: dict[int, dict[str, Any]] = {}
    judged = time.monotonic()
    with _progress(title, count, say) as advance:
        for index, report in reports(kind, count, work, processes, *arguments):
            done[index] = report
            advance(len(done))
            if judge is not None and time.monotonic() - judged > LINE_EVERY:
                judge(done)
                judged = time.monotonic()
    return done


@contextlib.contextmanager
def _progress(title: str, count: int, say: Say) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; elsewhere a line now and then."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=count)
            yield lambda done: bar.update(task, completed=done)
        return
    began = last = time.monotonic()

    def line(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_EVERY:
            last = now
            say(f"{title}: {done}/{count} parts, {now - began:.0f} s, about {(now - began) / done * (count - done):.0f} s left.")

    yield line


def _upload(local: Path, folder: str, prepared: Prepared, say: Say) -> None:
    """Copies a finished folder to a remote one, the index last."""
    fs, inner = remote.filesystem(folder)
    names = [name for name, _ in prepared.files()] + [f"tokenizer/{name}" for name in prepared.index["tokenizer"]["files"]]
    names += [BAD_FILE] * (local / BAD_FILE).is_file()
    say(f"Copying {len(names) + 1} files to {folder}.")
    for name in (*names, INDEX_FILE):
        remote.retried(partial(fs.put_file, str(local / name), f"{inner}/{name}"), f"Writing {folder}/{name}")
