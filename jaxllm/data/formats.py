"""Records out of files: the formats by name, and the documents of any part of a file, good or bad."""

import dataclasses
import gzip
import io
import json
import os
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from jaxllm.data import remote

_TEXT = """txt md rst text log tex bib html htm xml css scss yaml yml toml ini cfg sql proto cmake fasta
 py pyi pyx c h cc cpp cxx hh hpp cu cuh java kt scala groovy js jsx mjs ts tsx go rs rb php swift cs fs m mm r jl lua pl pm
 sh bash zsh fish ps1 el lisp clj hs ml mli ex exs erl dart zig nim asm s v sv vhd"""
TEXT_SUFFIXES = frozenset(f".{name}" for name in _TEXT.split())
RECORD_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".array_record": "arrayrecord",
    ".arrayrecord": "arrayrecord",
}
EVERY = "*"  # as the field of a JSON record: all its texts
COMPRESSIONS = {".gz": "gz", ".zst": "zst"}


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """A file of a source: where it is, its name within the source, its bytes, a stamp that changes with its content, its format."""

    path: str
    name: str
    size: int
    stamp: str
    format: str
    compression: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """A part of a file: bytes of a .jsonl, row groups of a .parquet, records of an ArrayRecord; stop None: to the end."""

    source: int
    file: File
    size: int  # its share of the file's bytes
    start: int = 0
    stop: int | None = None


@dataclasses.dataclass(frozen=True)
class Record:
    """A document, or why there is none. `line` counts from 1 within the piece (row of a .parquet, record of an ArrayRecord)."""

    line: int
    text: str | None
    problem: str | None = None


def detect(path: str, also: Mapping[str, str] = MappingProxyType({})) -> tuple[str | None, str | None]:
    """Format and compression by the name of a file, `also` by suffixes of the caller's; format None: not a name we know."""
    stem, suffix = os.path.splitext(path.lower())
    compression = COMPRESSIONS.get(suffix)
    if compression:
        suffix = os.path.splitext(stem)[1]
    if suffix in also:
        return also[suffix], compression
    if suffix in RECORD_SUFFIXES:
        return RECORD_SUFFIXES[suffix], compression
    return ("text" if suffix in TEXT_SUFFIXES else None), compression


class _ZstdStream(io.RawIOBase):
    """The text of all frames of a .zst, one after the other; unlike the library's own reader it notices that the last one breaks off."""

    def __init__(self, raw: Any, new_frame: Callable[[], Any]):
        self._raw, self._new_frame = raw, new_frame
        self._frame: Any = None
        self._packed, self._text = b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._text:
            self._packed = self._packed or self._raw.read(256 * 1024)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("the file ends within a frame")
                return 0
            self._frame = self._frame or self._new_frame()
            try:
                self._text, self._packed = self._frame.decompress(self._packed), b""
            except Exception as error:  # ZstdError, of a package that may not be there
                raise EOFError(str(error)) from None
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        data, self._text = self._text[: len(buffer)], self._text[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


def open_file(file: File) -> Any:
    """The bytes of a file, decompressed."""
    raw: Any = remote.open_binary(file.path)
    if file.compression == "gz":
        return gzip.GzipFile(fileobj=raw)
    if file.compression == "zst":
        try:
            import zstandard
        except ImportError:
            raise ValueError(f"{file.path} needs zstandard. Run: pip install 'jaxllm[data]'") from None
        return io.BufferedReader(_ZstdStream(raw, zstandard.ZstdDecompressor().decompressobj))
    return raw


def _document(line: int, text: Any, field: str | None = None) -> Record:
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            return Record(line, None, f"invalid UTF-8: {error.reason} at byte {error.start}")
    if not isinstance(text, str):
        return Record(line, None, f"missing field: {field!r} is {type(text).__name__}, not text")
    if not text.strip():
        return Record(line, None, "empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return Record(line, None, "invalid UTF-8: half of a surrogate pair")
    return Record(line, text)


def _from_json(line: int, data: bytes, field: str) -> Record:
    try:
        said = json.loads(data)
    except UnicodeDecodeError as error:
        return Record(line, None, f"invalid UTF-8: {error.reason} at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return Record(line, None, f"broken JSON: {error}")
    if field == EVERY:
        return _document(line, "\n".join(_texts(said)), field)
    name = next((name for name in field.split(",") if isinstance(said, dict) and name in said), None)
    if name is None:
        there = ", ".join(sorted(said)[:8]) if isinstance(said, dict) else type(said).__name__
        return Record(line, None, f"missing field: {field!r} (there: {there})")
    return _document(line, said[name], name)


def _texts(said: Any) -> Iterator[str]:
    """Every text in a JSON value, in order; the names of fields are none."""
    if isinstance(said, str):
        yield said
    for inner in said.values() if isinstance(said, dict) else said if isinstance(said, list) else ():
        yield from _texts(inner)


def _read_text(piece: Piece, field: str | None) -> Iterator[Record]:
    with open_file(piece.file) as file:
        yield _document(1, file.read())


def _read_jsonl(piece: Piece, field: str | None) -> Iterator[Record]:
    for line, data in lines(piece):
        yield _from_json(line, data, field or "text") if data.strip() else Record(line, None, "empty")


def lines(piece: Piece) -> Iterator[tuple[int, bytes]]:
    """The lines that begin in a part of a file, numbered from 1."""
    with open_file(piece.file) as file:
        at = piece.start
        if at:  # the line that byte `start - 1` is in belongs to the piece before
            file.seek(at - 1)
            at += len(file.readline()) - 1
        line = 0
        while piece.stop is None or at < piece.stop:
            data = file.readline()
            if not data:
                return
            at += len(data)
            line += 1
            yield line, data


def _read_parquet(piece: Piece, field: str | None) -> Iterator[Record]:
    parquet = parquet_file(piece.file)
    columns = parquet.schema_arrow.names
    name = next((name for name in (field or "text").split(",") if name in columns), None)
    if name is None:
        raise ValueError(f"{piece.file.path} has no column {field or 'text'!r}. Set field to one of: {', '.join(columns[:8])}.")
    stop = parquet.num_row_groups if piece.stop is None else piece.stop
    line = 0
    for batch in parquet.iter_batches(batch_size=1024, row_groups=list(range(piece.start, stop)), columns=[name]):
        for text in batch.column(0).to_pylist():
            line += 1
            yield _document(line, text, name)


def parquet_file(file: File) -> Any:
    """An open .parquet."""
    return _pyarrow(file.path).ParquetFile(remote.open_binary(file.path))


def _pyarrow(path: str) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{path} needs pyarrow. Run: pip install 'jaxllm[data]'") from None
    return pyarrow.parquet


def _read_arrayrecord(piece: Piece, field: str | None) -> Iterator[Record]:
    for line, data in array_records(piece):
        yield _from_json(line, data, field) if field else _document(line, data)


def array_records(piece: Piece) -> Iterator[tuple[int, bytes]]:
    """The records of a part of an ArrayRecord, numbered from 1."""
    with _ArrayRecord(piece.file.path) as reader:
        stop = reader.num_records() if piece.stop is None else piece.stop
        for start in range(piece.start, stop, 256):
            yield from enumerate(reader.read(list(range(start, min(start + 256, stop)))), start - piece.start + 1)


class _ArrayRecord:
    """An open ArrayRecord file; a remote one is copied here first (the library reads local files only)."""

    def __init__(self, path: str):
        try:
            from array_record.python.array_record_module import ArrayRecordReader
        except ImportError:
            raise ValueError(f"{path} needs array_record. Run: pip install array_record, or give .jsonl or .parquet.") from None
        self._copy = None
        if remote.is_remote(path):
            self._copy = tempfile.NamedTemporaryFile(suffix=".array_record")  # noqa: SIM115  (closed in __exit__)
            with remote.open_binary(path) as source:
                shutil.copyfileobj(source, self._copy)
            self._copy.flush()
        self._reader = ArrayRecordReader(self._copy.name if self._copy else path)

    def __enter__(self) -> Any:
        return self._reader

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        if self._copy:
            self._copy.close()


READERS: dict[str, Callable[[Piece, str | None], Iterator[Record]]] = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "arrayrecord": _read_arrayrecord,
}


def read_piece(piece: Piece, field: str | None) -> Iterator[Record]:
    """The records of a part of a file, in order.

    A file that breaks off in its compression gives the records before the break and one bad record.
    """
    line = 0
    try:
        for record in READERS[piece.file.format](piece, field):
            line = record.line
            yield record
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield Record(line + 1, None, f"broken compression: {error}")


def cut(source: int, file: File, piece_bytes: int) -> list[Piece]:
    """A file in parts of about `piece_bytes` that can be read apart from each other; the parts depend on the file alone."""
    if file.format == "jsonl" and file.compression is None:
        starts = range(0, max(file.size, 1), piece_bytes)
        stops = (min(start + piece_bytes, file.size) for start in starts)
        return [Piece(source, file, stop - start, start, stop) for start, stop in zip(starts, stops, strict=True)]
    if file.format == "parquet" or (file.format == "arrayrecord" and not remote.is_remote(file.path)):
        total = _count_parts(file)
        step = max(1, total * piece_bytes // max(file.size, 1))
        share = file.size * step // max(total, 1)
        return [Piece(source, file, share, start, min(start + step, total)) for start in range(0, total, step)]
    return [Piece(source, file, file.size)]


def _count_parts(file: File) -> int:
    if file.format == "parquet":
        with remote.open_binary(file.path) as opened:
            return _pyarrow(file.path).ParquetFile(opened).num_row_groups
    with _ArrayRecord(file.path) as reader:
        return reader.num_records()


def describe(files: Sequence[File]) -> str:
    """The formats found, in words: `12 text, 3 jsonl.gz`."""
    kinds = Counter(f"{file.format}{'.' + file.compression if file.compression else ''}" for file in files)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
