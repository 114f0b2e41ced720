"""Where documents come from: the files that an entry of the config means, here, remote, on the hub or built in."""

import dataclasses
import hashlib
import math
import numbers
import os
import sysconfig
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from jaxllm.data import remote
from jaxllm.data.formats import READERS, File, detect

MAX_DOCUMENT_BYTES = 1 << 30  # a whole file that is one document must fit in a worker's memory
SOURCE_KEYS = ("path", "weight", "format", "field", "name")
SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "dist-packages", "node_modules"})


@dataclasses.dataclass(frozen=True)
class Source:
    """One entry of `data.train` or `data.eval`.

    Attributes:
      name: what it is called in tables and metrics.
      path: a file, a folder, a glob, a URL, `hub:owner/name[/pattern][@revision]` or `builtin:stdlib`.
      format: one of `READERS`, or None: told from each file's name.
      field: the field of a record that holds the text; of several names, "text,body" say, the first that a record has; None: "text".
      weight: its share of the training rows, relative to the others'; None: in proportion to its tokens.
    """

    name: str
    path: str
    format: str | None = None
    field: str | None = None
    weight: float | None = None


def make_sources(
    entries: Sequence[Mapping[str, Any] | str], key: str, taken: Sequence[str] = (), formats: Collection[str] = READERS.keys()
) -> list[Source]:
    """The sources of a config list, each with a name of its own.

    Args:
      entries: the list.
      key: where it stands in the config.
      taken: names that others have.
      formats: what `format` may say.

    Raises:
      ValueError: an unknown key or format, no path, a weight that is not positive, or weights for some entries only.
    """
    sources: list[Source] = []
    for index, entry in enumerate(entries):
        said: dict[str, Any] = (
            {"path": entry} if isinstance(entry, str) else {k: v for k, v in dict(entry).items() if v is not None and v != ""}
        )
        where = f"{key}[{index}]"
        if unknown := sorted(set(said) - set(SOURCE_KEYS)):
            raise ValueError(f"Unknown key {unknown[0]!r} in {where}. Choose from: {', '.join(SOURCE_KEYS)}.")
        if not isinstance(said.get("path"), str | os.PathLike) or not str(said["path"]):
            raise ValueError(f"{where} has no path. Give a file, a folder, a glob, gs://..., hub:owner/name or builtin:stdlib.")
        if said.get("format") not in (None, *formats):
            raise ValueError(f"Unknown format {said['format']!r} in {where}. Choose from: {', '.join(formats)}.")
        if not isinstance(weight := said.get("weight", 1), numbers.Real) or isinstance(weight, bool) or not 0 < float(weight) < math.inf:
            raise ValueError(f"{where}.weight={weight!r} must be more than 0, as a number. Leave the entry out instead.")
        name = _unique(str(said.get("name") or default_name(str(said["path"]))), [*taken, *(source.name for source in sources)])
        sources.append(Source(name, str(said["path"]), said.get("format"), said.get("field"), said.get("weight")))
    if len({source.weight is None for source in sources}) > 1:
        bare = next(source.name for source in sources if source.weight is None)
        raise ValueError(f"Some entries of {key} have a weight and {bare!r} has none. Give a weight to all, or to none (by size).")
    return sources


def absolute(path: str) -> str:
    """A path on this machine so that it holds in every folder; what has a scheme (gs://..., hub:..., builtin:...) as it is."""
    return path if ":" in path.split("/")[0] else os.path.abspath(os.path.expanduser(path))


def default_name(path: str) -> str:
    """A short name for a path: its last part without suffixes."""
    parts = path.replace("builtin:", "").replace("hub:", "").replace("task:", "").split("/")
    last = next((part.split("@")[0] for part in reversed(parts) if part and not any(sign in part for sign in "*?[")), "")
    cleaned = "".join(c if c.isalnum() or c in "_-" else "_" for c in last.split(".")[0])
    return cleaned.strip("_") or "source"


def _unique(name: str, taken: Sequence[str]) -> str:
    if "/" in name or name.startswith("."):
        raise ValueError(f"{name!r} cannot be the name of a source: it becomes a folder. Use letters, digits, - and _.")
    candidates = [name, *(f"{name}_{count}" for count in range(2, len(taken) + 3))]
    return next(candidate for candidate in candidates if candidate not in taken)


def list_files(source: Source, also: Mapping[str, str] = MappingProxyType({})) -> tuple[list[File], Counter]:
    """The files of a source in a fixed order, and how many files of which suffix were left out as not text.

    Args:
      source: where.
      also: further suffixes, and the formats they tell.

    Raises:
      ValueError: nothing there, a single file whose format its name does not tell, or a missing package.
    """
    found = _locate(source.path)
    if not found:
        raise ValueError(f"There is nothing at {source.path!r} (source {source.name!r}). Check the path, or its spelling as a glob.")
    files, left_out = [], Counter[str]()
    for name, path, size, stamp in sorted(found):
        detected, compression = detect(path, also)
        kind = source.format or detected
        if kind is None and len(found) == 1:
            raise ValueError(f"The name of {path!r} does not tell its format. Set format to one of: {', '.join(READERS)}.")
        if kind is None:
            left_out[os.path.splitext(path)[1] or "(no suffix)"] += 1
        elif kind == "text" and size > MAX_DOCUMENT_BYTES:
            raise ValueError(f"{path!r} would be one document of {size / 2**30:.1f} GiB. Cut it up, or give it as .jsonl.")
        else:
            files.append(File(path, name, size, stamp, kind, compression))
    if not files:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in left_out.most_common(5))
        raise ValueError(f"No file of source {source.name!r} at {source.path!r} is of a known format (there are: {kinds}). Set format.")
    return files, left_out


def _locate(path: str) -> list[tuple[str, str, int, str]]:
    """(name within the source, path, bytes, stamp) of every file that a path means."""
    if path.startswith("builtin:"):
        if path != "builtin:stdlib":
            raise ValueError(f"Unknown source {path!r}. The one built in is builtin:stdlib.")
        return [hit for hit in _walk(sysconfig.get_path("stdlib")) if hit[0].endswith(".py")]
    if path.startswith("hub:"):
        return _walk(_from_hub(path.removeprefix("hub:")))
    if remote.is_remote(path):
        return _locate_remote(path)
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        return _walk(path)
    if os.path.isfile(path):
        return [(os.path.basename(path), path, os.path.getsize(path), _stamp(path))]
    import glob

    base = path.split("*")[0].split("?")[0].split("[")[0].rpartition("/")[0] or "."
    hits = [hit for hit in glob.glob(path, recursive=True) if os.path.isfile(hit)]
    return [(os.path.relpath(hit, base), hit, os.path.getsize(hit), _stamp(hit)) for hit in hits]


def _walk(folder: str) -> list[tuple[str, str, int, str]]:
    found = []
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if f not in SKIPPED_FOLDERS and not f.startswith("."))
        for name in sorted(names):
            path = os.path.join(where, name)
            if not name.startswith(".") and os.path.isfile(path):
                stamp = _stamp(path) if detect(path)[0] else ""
                found.append((os.path.relpath(path, folder), path, os.path.getsize(path), stamp))
    return found


def _stamp(path: str, whole: int = 1 << 20) -> str:
    """Changes when the file does: the hash of a small file; of a large one its two ends, size and time."""
    digest = hashlib.blake2b(digest_size=12)
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        digest.update(file.read(whole))
        if size > whole:
            file.seek(-(1 << 16), os.SEEK_END)
            digest.update(file.read() + f"{size} {os.stat(path).st_mtime_ns}".encode())
    return digest.hexdigest()


def _locate_remote(path: str) -> list[tuple[str, str, int, str]]:
    fs, inner = remote.filesystem(path)
    scheme = path.split("://", 1)[0]

    def look() -> dict[str, Any]:
        fs.invalidate_cache()
        if any(sign in inner for sign in "*?["):
            return fs.glob(inner, detail=True)
        return fs.find(inner, detail=True)

    base = inner.split("*")[0].split("?")[0].split("[")[0].rstrip("/") if any(sign in inner for sign in "*?[") else inner.rstrip("/")
    found = []
    for hit, info in remote.retried(look, f"Listing {path}").items():
        if info.get("type") == "file":
            stamp = str(info.get("etag") or info.get("md5Hash") or info.get("crc32c") or info.get("updated") or info.get("mtime") or "")
            name = hit[len(base) :].lstrip("/") if hit != base else hit.rsplit("/", 1)[-1]
            found.append((name, f"{scheme}://{hit.removeprefix('/') if scheme != 'file' else hit}", int(info["size"]), stamp))
    return found


def _from_hub(spec: str) -> str:
    """Downloads `owner/name[/pattern][@revision]`, a data set of the Hugging Face hub, and gives the folder."""
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError("hub: needs huggingface_hub. Run: pip install 'jaxllm[hub]'") from None
    spec, _, revision = spec.partition("@")
    parts = spec.split("/", 2)
    if len(parts) < 2 or not all(parts[:2]):
        raise ValueError(f"hub:{spec} is not owner/name[/pattern][@revision].")
    pattern = parts[2] if len(parts) == 3 else None
    return huggingface_hub.snapshot_download("/".join(parts[:2]), repo_type="dataset", revision=revision or None, allow_patterns=pattern)
