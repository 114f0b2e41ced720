"""A prepared folder: shards of token ids with their document boundaries, an index, and the tokenizer they were made with.

index.json                        written last: what is here, made from what
tokenizer/                        see `tokenizers.load_tokenizer`
train/<source>/00000.tokens       ids, little-endian uint16, or uint32 for vocabularies over 65,536
train/<source>/00000.ends         uint64: where each document ends, in tokens from the beginning of the shard
train/<source>/00000.sizes        uint64: each document's bytes of text
train/<source>/00000.crc          uint32: crc32 of each block of 256 KiB of the three, one after the other
eval/<source>/...                 the same
"""

import bisect
import dataclasses
import hashlib
import itertools
import json
import os
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.data import remote

FORMAT = 3  # raise it whenever the same text and options would give other files
READABLE = (2, FORMAT)  # 2: eval sources had a say in the number of shards
INDEX_FILE = "index.json"
SPLITS = ("train", "eval")
PARTS = ("tokens", "ends", "sizes")
ENDS_DTYPE = np.dtype("<u8")


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of the two widths that holds every id."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def checksums(path: str | os.PathLike, block_bytes: int) -> np.ndarray:
    """crc32 of each block of a file, uint32."""
    with open(path, "rb") as file:
        blocks = iter(lambda: file.read(block_bytes), b"")
        return np.asarray([zlib.crc32(block) for block in blocks], "<u4")


def write_shard(stem: Path, documents: Sequence[np.ndarray], sizes: Sequence[int], dtype: np.dtype) -> dict[str, Any]:
    """Writes one shard, to the disk, and gives its line for the index.

    Args:
      stem: the path without suffix.
      documents: token ids of each document, special tokens included.
      sizes: bytes of text of each.
      dtype: see `token_dtype`.
    """
    tokens = np.concatenate(documents).astype(dtype) if documents else np.zeros(0, dtype)
    arrays = {"tokens": tokens, "ends": np.cumsum([len(d) for d in documents], dtype=ENDS_DTYPE), "sizes": np.asarray(sizes, ENDS_DTYPE)}
    stem.parent.mkdir(parents=True, exist_ok=True)
    for part, array in arrays.items():
        write_file(stem.with_suffix(f".{part}"), array.tobytes())
    checks = np.concatenate([checksums(stem.with_suffix(f".{part}"), remote.BLOCK_BYTES) for part in PARTS])
    write_file(stem.with_suffix(".crc"), checks.tobytes())
    return {
        "file": f"{stem.parent.name}/{stem.name}",
        "tokens": len(tokens),
        "documents": len(documents),
        "bytes": int(sum(sizes)),
        "crc": zlib.crc32(checks.tobytes()),
    }


def write_file(path: Path, data: bytes) -> None:
    """Writes a file under a temporary name, to the disk, then renames it: it is there whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


class RemoteArray:
    """A flat array in a remote file: a length, an element, a slice."""

    def __init__(self, file: remote.RangeFile, length: int, dtype: np.dtype):
        self._file, self._length, self._dtype = file, length, dtype

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, where: Any) -> Any:
        if isinstance(where, slice):
            start, stop, _ = where.indices(self._length)
            return np.frombuffer(self._file.read(start * self._dtype.itemsize, max(start, stop) * self._dtype.itemsize), self._dtype)
        return self[where : where + 1][0]


@dataclasses.dataclass(frozen=True)
class Shard:
    """One shard's arrays; each is mapped from the disk or read by ranges."""

    tokens: Any
    ends: Any
    sizes: Any


class TokenStream:
    """All shards of one source and split as one long stream of tokens, in the order of the index.

    Args:
      name: the source.
      shards: their lines of the index.
      open_shard: gives the arrays of shard i; called once for each, at its first use.
    """

    def __init__(self, name: str, shards: Sequence[Mapping[str, Any]], open_shard: Any):
        self.name = name
        self._offsets = [0, *itertools.accumulate(shard["tokens"] for shard in shards)]
        self.num_tokens: int = self._offsets[-1]
        self.num_documents: int = sum(shard["documents"] for shard in shards)
        self.num_bytes: int = sum(shard["bytes"] for shard in shards)
        self._open_shard = open_shard
        self._opened: dict[int, Shard] = {}
        self._lock = threading.Lock()

    def _shard(self, index: int) -> Shard:
        shard = self._opened.get(index)
        if shard is None:
            with self._lock:
                shard = self._opened.get(index) or self._open_shard(index)
                self._opened[index] = shard
        return shard

    def _overlaps(self, start: int, stop: int) -> Iterator[tuple[Shard, int, int, int]]:
        """(shard, its first token's place in the stream, local start, local stop) for each shard that [start, stop) touches."""
        index = bisect.bisect_right(self._offsets, start) - 1
        while start < stop:
            offset, end = self._offsets[index], self._offsets[index + 1]
            if end > start:
                yield self._shard(index), offset, start - offset, min(stop, end) - offset
                start = min(stop, end)
            index += 1

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of the stream, int32."""
        assert 0 <= start <= stop <= self.num_tokens, (start, stop, self.num_tokens)
        parts = [np.asarray(shard.tokens[low:high]).astype(np.int32) for shard, _, low, high in self._overlaps(start, stop)]
        return np.concatenate(parts) if parts else np.zeros(0, np.int32)

    def ends(self, start: int, stop: int) -> np.ndarray:
        """The places p in (start, stop] where a document ends and the next begins at p, int64, ascending."""
        found = []
        for shard, offset, low, high in self._overlaps(start, stop):
            first, last = bisect.bisect_right(shard.ends, low), bisect.bisect_right(shard.ends, high)
            found.append(np.asarray(shard.ends[first:last]).astype(np.int64) + offset)
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def spans(self) -> Iterator[tuple[int, int]]:
        """Where every document begins and ends in the stream, in order."""
        for index, offset in enumerate(self._offsets[:-1]):
            start = 0
            for end in self._shard(index).ends[:]:
                yield offset + start, offset + int(end)
                start = int(end)

    def documents(self) -> Iterator[np.ndarray]:
        """Every document's tokens, in order."""
        for index in range(len(self._offsets) - 1):
            shard = self._shard(index)
            start = 0
            for end in shard.ends[:]:
                yield np.asarray(shard.tokens[start : int(end)]).astype(np.int32)
                start = int(end)


def content_hash(index: Mapping[str, Any], splits: Sequence[str] = SPLITS) -> str:
    """A hash of the tokens and boundaries an index lists (in these splits), whatever they were made from and wherever they lie."""
    lines = [
        (split, name, shard["file"], shard["tokens"], shard["documents"], shard["crc"])
        for split, sources in sorted(index["splits"].items())
        if split in splits
        for name, said in sorted(sources.items())
        for shard in said["shards"]
    ]
    return hashlib.blake2b(json.dumps([index["tokenizer"]["fingerprint"], lines]).encode(), digest_size=16).hexdigest()
