"""A checkpoint's table of contents: the size and checksum of every file, written last, so that what is not whole is seen."""

import dataclasses
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

FORMAT = 1  # raise it when an older program could not read what is written; `read` then says what it can still read
NAME = "manifest.json"
CHUNK = 16 << 20  # bytes read at a time

FileFacts = tuple[int, int]  # (bytes, crc32)


class BrokenCheckpoint(Exception):
    """A checkpoint that must not be loaded; the message says what is wrong with it and reads on after 'Checkpoint 30 '."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a whole checkpoint says of itself.

    Attributes:
      step: optimizer updates done.
      saved_at: when, in UTC, as ISO 8601.
      metrics: the metrics of that step, for keeping the best.
      metadata: what the stage wants to find again (fingerprints, layout, sources).
      arrays: name of every saved array, "state/params/embed" say -> (shape, dtype name).
      feed: what `feed.state()` returned, with {"array": name} in the place of each array.
      files: path inside the checkpoint -> (bytes, crc32).
    """

    step: int
    saved_at: str
    metrics: Mapping[str, float]
    metadata: Mapping[str, Any]
    arrays: Mapping[str, tuple[list[int], str]]
    feed: Any
    files: Mapping[str, FileFacts]

    @property
    def num_bytes(self) -> int:
        return sum(size for size, _ in self.files.values())


def file_names(folder: epath.Path) -> list[str]:
    """Every file below the folder but the manifest, sorted, with '/' between the parts."""
    found: list[str] = []
    stack = [folder]
    while stack:
        for path in stack.pop().iterdir():
            if path.is_dir():
                stack.append(path)
            elif path.name != NAME:
                found.append(path.relative_to(folder).as_posix())
    return sorted(found)


def _facts(path: epath.Path, durable: bool) -> FileFacts:
    size, checksum = 0, 0
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
        if durable and is_local(path):
            os.fsync(file.fileno())
    return size, checksum


def is_local(path: epath.Path) -> bool:
    """True for a path on a mounted disk, False for gs:// and the like."""
    return "://" not in os.fspath(path)


def describe(folder: epath.Path, names: Iterable[str], durable: bool = False) -> dict[str, FileFacts]:
    """Reads the files and returns (bytes, crc32) of each; with `durable` each is also flushed to the disk."""
    names = list(names)
    with ThreadPoolExecutor(min(8, max(1, len(names)))) as pool:  # crc32 lets go of the interpreter lock
        return dict(zip(names, pool.map(lambda name: _facts(folder / name, durable), names), strict=True))


def _seal(body: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())


def write(folder: epath.Path, manifest: Manifest) -> None:
    """Writes the manifest in one rename: from here on the checkpoint counts as whole."""
    body = json.loads(json.dumps({"format": FORMAT, **dataclasses.asdict(manifest)}))
    text = json.dumps(body | {"seal": _seal(body)}, indent=1, sort_keys=True)
    if not is_local(folder):
        (folder / NAME).write_text(text)  # an object appears whole or not at all
        return
    partial = os.fspath(folder / (NAME + ".partial"))
    with open(partial, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, os.fspath(folder / NAME))


def read(folder: epath.Path) -> Manifest:
    """Reads and checks the manifest itself, not the files it names.

    Raises:
      BrokenCheckpoint: there is none, or it was altered.
      ValueError: another format version.
    """
    try:
        body = json.loads((folder / NAME).read_text())
    except FileNotFoundError:
        raise BrokenCheckpoint("has no manifest: it is half-written") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise BrokenCheckpoint("has a manifest that cannot be read") from None
    if not isinstance(body, dict) or body.pop("seal", None) != _seal(body):
        raise BrokenCheckpoint("has a manifest that was altered")
    if (version := body.pop("format")) != FORMAT:
        raise ValueError(
            f"Checkpoint {folder} has format {version}, and this jaxllm reads {FORMAT}. Use the jaxllm that wrote it,"
            " or start again in another --workdir."
        )
    body["files"] = {name: (size, checksum) for name, (size, checksum) in body["files"].items()}
    return Manifest(**body)


def trouble(folder: epath.Path, files: Mapping[str, FileFacts], contents: bool = True) -> str | None:
    """Compares the files (or without `contents` only their sizes) with the manifest; None when all is as written, else what is wrong."""
    try:
        for name, (size, _) in files.items():
            if (length := (folder / name).stat().length) != size:
                return f"has {length} bytes in {name} where {size} were written"
        found = describe(folder, files) if contents else files
    except FileNotFoundError as error:  # never there, or deleted by the run while this looks
        missing = next((name for name in files if not (folder / name).exists()), error)
        return f"lacks its file {missing}"
    altered = [name for name, facts in files.items() if found[name] != facts]
    return f"was altered in {altered[0]}: its checksum differs" if altered else None
