"""Records as they are, with all their fields: the objects of .jsonl, .json, .parquet and ArrayRecord files, good or bad."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from jaxllm.data import formats
from jaxllm.data.formats import File, Piece

SUFFIXES = {".json": "json"}  # beside those of `formats`: one JSON value, an object or a list of them


class Object(NamedTuple):
    """A record, or why there is none; `line` counts from 1 (rows of a .parquet, entries of a .json)."""

    line: int
    fields: dict[str, Any] | None
    problem: str | None = None


def _parsed(line: int, data: bytes) -> Object:
    try:
        said = json.loads(data)
    except UnicodeDecodeError as error:
        return Object(line, None, f"is invalid UTF-8: {error.reason} at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return Object(line, None, f"is broken JSON: {error}")
    return _checked(line, said)


def _checked(line: int, said: Any) -> Object:
    return Object(line, said) if isinstance(said, dict) else Object(line, None, f"is a {type(said).__name__}, not an object")


def _jsonl(file: File) -> Iterator[Object]:
    for line, data in formats.lines(Piece(0, file, file.size)):
        if data.strip():
            yield _parsed(line, data)


def _json(file: File) -> Iterator[Object]:
    with formats.open_file(file) as opened:
        whole = opened.read()
    try:
        said = json.loads(whole)
    except (ValueError, RecursionError):
        yield _parsed(1, whole)
        return
    for line, one in enumerate(said if isinstance(said, list) else [said], 1):
        yield _checked(line, one)


def _parquet(file: File) -> Iterator[Object]:
    line = 0
    for batch in formats.parquet_file(file).iter_batches(batch_size=1024):
        for row in batch.to_pylist():
            line += 1
            yield Object(line, {name: value for name, value in row.items() if value is not None})


def _arrayrecord(file: File) -> Iterator[Object]:
    for line, data in formats.array_records(Piece(0, file, file.size)):
        yield _parsed(line, data)


READERS: dict[str, Callable[[File], Iterator[Object]]] = {
    "jsonl": _jsonl,
    "json": _json,
    "parquet": _parquet,
    "arrayrecord": _arrayrecord,
}


def read_objects(file: File) -> Iterator[Object]:
    """The records of a file, in order; empty lines are none.

    Raises:
      ValueError: a file of plain text.
    """
    if file.format not in READERS:
        raise ValueError(f"{file.path} is {file.format}, which has no records. Give one of: .jsonl, .json, .parquet, .array_record.")
    line = 0
    try:
        for found in READERS[file.format](file):
            line = found.line
            yield found
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield Object(line + 1, None, f"is in a broken compression: {error}")
