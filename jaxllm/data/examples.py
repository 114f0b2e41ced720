"""A store of encoded examples: shards of tokens, loss weights and turns with an index, mapped from the disk.

index.json                        written last: what is here, made from what
00000.tokens                      ids, little-endian uint16, or uint32 for vocabularies over 65,536
00000.weights                     float32: the loss weight of each token as a target
00000.turns                       int16: which message of its example a token belongs to; -1: none
00000.ends                        uint64: where each example ends, in tokens from the beginning of the shard
00000.trained                     uint32: how many targets of each example have a weight
00000.roles                       uint32: each example's line in the index's table of roles
00000.crc                         uint32: crc32 of each block of 256 KiB of the six, one after the other
"""

import bisect
import hashlib
import itertools
import json
import os
import shutil
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxllm.data import remote
from jaxllm.data.sources import absolute
from jaxllm.data.token_files import INDEX_FILE, checksums, token_dtype, write_file

FORMAT = "examples-1"  # raise it whenever the same examples would give other files
SHARD_TOKENS = 8 * 1024 * 1024
PARTS = ("tokens", "weights", "turns", "ends", "trained", "roles")
PER_TOKEN = ("tokens", "weights", "turns")
IN_MEMORY = (np.int32, np.float32, np.int16)  # their dtypes once read
DTYPES = {"weights": "<f4", "turns": "<i2", "ends": "<u8", "trained": "<u4", "roles": "<u4"}


class Example(NamedTuple):
    """One encoded example of n tokens.

    Attributes:
      tokens: int32 [n].
      weights: float32 [n], of each token as a target: of predicting tokens[i] from tokens[:i]; the first is 0.
      turns: int16 [n], the message each token belongs to; -1: none.
      roles: of the messages.
    """

    tokens: np.ndarray
    weights: np.ndarray
    turns: np.ndarray
    roles: tuple[str, ...]


class Examples(Protocol):
    """What a reader needs of a store.

    Attributes:
      num_examples: n.
      lengths: int32 [n], tokens of each.
      trained: int32 [n], targets of each whose weight is not 0.
    """

    @property
    def num_examples(self) -> int: ...
    @property
    def lengths(self) -> np.ndarray: ...
    @property
    def trained(self) -> np.ndarray: ...
    def example(self, index: int) -> Example: ...


def write_examples(
    folder: str | os.PathLike,
    examples: Iterable[Any],
    *,
    vocab_size: int,
    fingerprint: str,
    notes: Mapping[str, Any] | None = None,
) -> "ExampleStore":
    """Writes a store under a temporary name and gives it its own when it is whole.

    Args:
      folder: where to, on this machine; it must not exist, or be empty.
      examples: each with the fields of `Example`; read once, a shard of them held at a time.
      vocab_size: ids of the tokenizer.
      fingerprint: of what they were made from: text, template, tokenizer, loss rule.
      notes: anything else the index should keep for people.

    Raises:
      ValueError: the folder is remote or taken, there is no example, or one is malformed or would train on nothing.
    """
    path = Path(_local(folder))
    if path.exists() and any(path.iterdir()):
        raise ValueError(f"{path} is there and not empty. Name another folder for the examples, or move it away.")
    work = path.with_name(f".{path.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    dtype, table = token_dtype(vocab_size), dict[tuple[str, ...], int]()
    shards = [_write_shard(work / f"{i:05d}", shard, dtype, table) for i, shard in enumerate(_shards(_checked(examples, vocab_size)))]
    if not shards:
        raise ValueError(f"There is no example to write to {path}. Check the data, and what was refused of it.")
    index = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "vocab_size": vocab_size,
        "dtype": dtype.str,
        "block_bytes": remote.BLOCK_BYTES,
        "counts": {name: sum(shard[name] for shard in shards) for name in ("examples", "tokens", "trained")},
        "roles": [list(roles) for roles in table],
        "shards": shards,
        "notes": dict(notes or {}),
    }
    write_file(work / INDEX_FILE, (json.dumps(index | {"content": _content(index)}, indent=1) + "\n").encode())
    if path.exists():
        path.rmdir()
    os.replace(work, path)
    return open_examples(path)


def _checked(examples: Iterable[Any], vocab_size: int) -> Iterator[Example]:
    """The examples, each looked at; a mistake of the encoder is named by the example's number."""
    for number, given in enumerate(examples):
        tokens, weights, turns = (np.asarray(getattr(given, part), dtype) for part, dtype in zip(PER_TOKEN, IN_MEMORY, strict=True))
        roles = tuple(given.roles)
        wrong = None
        if tokens.ndim != 1 or not tokens.shape == weights.shape == turns.shape:
            wrong = f"has tokens {tokens.shape}, weights {weights.shape} and turns {turns.shape}, which must be of one length"
        elif not len(tokens) or tokens.min() < 0 or tokens.max() >= vocab_size:
            wrong = f"must have tokens, each an id in 0..{vocab_size - 1}"
        elif weights[0] != 0 or not np.isfinite(weights).all() or weights.min() < 0:
            wrong = "must have finite weights of 0 or more, the first of them 0: nothing comes before it to predict it from"
        elif not weights.any():
            wrong = "would train on nothing: all its weights are 0"
        elif turns.min() < -1 or turns.max() >= len(roles):
            wrong = f"has turns {turns.min()}..{turns.max()} and {len(roles)} roles"
        if wrong:
            raise ValueError(f"Example {number} {wrong}. Leave it out, or encode it again.")
        yield Example(tokens, weights, turns, roles)


def _shards(examples: Iterator[Example]) -> Iterator[list[Example]]:
    """Examples in their order, in groups of about SHARD_TOKENS tokens."""
    held: list[Example] = []
    size = 0
    for example in examples:
        held.append(example)
        size += len(example.tokens)
        if size >= SHARD_TOKENS:
            yield held
            held, size = [], 0
    if held:
        yield held


def _write_shard(stem: Path, examples: Sequence[Example], dtype: np.dtype, table: dict[tuple[str, ...], int]) -> dict[str, Any]:
    """Writes one shard to the disk and gives its line of the index; new tuples of roles go into the table."""
    trained = np.asarray([np.count_nonzero(example.weights) for example in examples])
    arrays = {
        "tokens": np.concatenate([example.tokens for example in examples]),
        "weights": np.concatenate([example.weights for example in examples]),
        "turns": np.concatenate([example.turns for example in examples]),
        "ends": np.cumsum([len(example.tokens) for example in examples]),
        "trained": trained,
        "roles": np.asarray([table.setdefault(example.roles, len(table)) for example in examples]),
    }
    for part, array in arrays.items():
        write_file(stem.with_suffix(f".{part}"), array.astype(DTYPES.get(part, dtype)).tobytes())
    checks = _checks(stem, remote.BLOCK_BYTES)
    write_file(stem.with_suffix(".crc"), checks.tobytes())
    return {
        "file": stem.name,
        "examples": len(examples),
        "tokens": len(arrays["tokens"]),
        "trained": int(trained.sum()),
        "crc": zlib.crc32(checks.tobytes()),
    }


def _checks(stem: Path, block_bytes: int) -> np.ndarray:
    return np.concatenate([checksums(stem.with_suffix(f".{part}"), block_bytes) for part in PARTS])


def _content(index: Mapping[str, Any]) -> str:
    """A hash of what a store holds, whatever it was made from and wherever it lies."""
    lines = [index["dtype"], index["roles"], [(s["file"], s["examples"], s["tokens"], s["crc"]) for s in index["shards"]]]
    return hashlib.blake2b(json.dumps(lines).encode(), digest_size=16).hexdigest()


def _local(folder: str | os.PathLike) -> str:
    path = absolute(os.fspath(folder)).rstrip("/")
    if remote.is_remote(path):
        raise ValueError(f"{path!r}: encoded examples on remote storage are not supported yet. Name a local folder.")
    return path


class ExampleStore:
    """A store, opened: `num_examples`, `lengths`, `trained`, `example(i)`.

    `fingerprint` says what it was made from, `content` what it holds, `index["counts"]` how much.
    """

    def __init__(self, folder: str, index: Mapping[str, Any]):
        self.folder, self.index = folder, index
        self.fingerprint: str = index["fingerprint"]
        self.content: str = index["content"]
        self.num_examples: int = index["counts"]["examples"]
        self._roles = [tuple(roles) for roles in index["roles"]]
        self._firsts = [0, *itertools.accumulate(shard["examples"] for shard in index["shards"])]
        self._opened: dict[int, dict[str, np.ndarray]] = {}
        self._lock = threading.Lock()

    @cached_property
    def lengths(self) -> np.ndarray:
        """int32 [num_examples], tokens of each."""
        ends = [self._shard(i)["ends"].astype(np.int64) for i in range(len(self.index["shards"]))]
        return np.concatenate([np.diff(end, prepend=0) for end in ends]).astype(np.int32)

    @cached_property
    def trained(self) -> np.ndarray:
        """int32 [num_examples], targets of each that have a weight."""
        return np.concatenate([self._shard(i)["trained"] for i in range(len(self.index["shards"]))]).astype(np.int32)

    def example(self, index: int) -> Example:
        """Example `index` of 0..num_examples-1."""
        assert 0 <= index < self.num_examples, (index, self.num_examples)
        number = bisect.bisect_right(self._firsts, index) - 1
        shard, at = self._shard(number), index - self._firsts[number]
        start, stop = int(shard["ends"][at - 1]) if at else 0, int(shard["ends"][at])
        tokens, weights, turns = (shard[part][start:stop] for part in PER_TOKEN)
        return Example(tokens.astype(np.int32), weights, turns, self._roles[shard["roles"][at]])

    def _shard(self, number: int) -> dict[str, np.ndarray]:
        shard = self._opened.get(number)
        if shard is None:
            with self._lock:
                line = self.index["shards"][number]
                stem = Path(self.folder, line["file"])
                mapped = {part: np.memmap(stem.with_suffix(f".{part}"), dtype, "r") for part, dtype in self._dtypes().items()}
                shard = self._opened[number] = {part: np.asarray(array) for part, array in mapped.items()}
        return shard

    def _dtypes(self) -> dict[str, np.dtype]:
        return {part: np.dtype(DTYPES.get(part, self.index["dtype"])) for part in PARTS}

    def files(self) -> Iterator[tuple[str, int]]:
        """(name, bytes) of every file of the shards."""
        for shard in self.index["shards"]:
            counts = {part: shard["tokens"] if part in PER_TOKEN else shard["examples"] for part in PARTS}
            sizes = {part: counts[part] * dtype.itemsize for part, dtype in self._dtypes().items()}
            yield from ((f"{shard['file']}.{part}", size) for part, size in sizes.items())
            yield f"{shard['file']}.crc", 4 * sum(-(-size // self.index["block_bytes"]) for size in sizes.values())

    def check_sizes(self) -> None:
        """Compares the size of every file with the index.

        Raises:
          ValueError: a file is missing or of another size.
        """
        for name, size in self.files():
            path = Path(self.folder, name)
            there = path.stat().st_size if path.is_file() else None
            if there != size:
                state = "is missing" if there is None else f"has {there:,} bytes, not {size:,}"
                raise ValueError(f"{path} {state}. Bring the file back, or delete the folder and encode the examples again.")

    def verify(self) -> None:
        """Reads every shard and compares it with its checksums.

        Raises:
          ValueError: names the first shard that is not what was written.
        """
        self.check_sizes()
        for shard in self.index["shards"]:
            stem = Path(self.folder, shard["file"])
            if zlib.crc32(_checks(stem, self.index["block_bytes"]).tobytes()) != shard["crc"]:
                raise ValueError(f"{stem}.* is not what was written. Bring the files back, or delete the folder and encode again.")


def open_examples(folder: str | os.PathLike, *, fingerprint: str | None = None) -> ExampleStore:
    """Opens a store that `write_examples` wrote.

    Args:
      folder: where it lies, on this machine.
      fingerprint: when given, what it must have been made from.

    Raises:
      ValueError: no store there, one of another version, files missing or of another size, or made from something else.
    """
    path = _local(folder)
    try:
        index = json.loads(Path(path, INDEX_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path!r} holds no encoded examples ({INDEX_FILE} is missing). Encode them, or check the path.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}/{INDEX_FILE} is broken ({error}). Delete the folder and encode the examples again.") from None
    if index.get("format") != FORMAT:
        raise ValueError(f"{path!r} has format {index.get('format')!r}; encoded examples have {FORMAT!r}. Encode them again.")
    if _content(index) != index["content"]:
        raise ValueError(f"{path}/{INDEX_FILE} was changed since it was written. Delete the folder and encode the examples again.")
    if fingerprint is not None and fingerprint != index["fingerprint"]:
        raise ValueError(
            f"The examples in {path!r} were made from something else ({index['fingerprint'][:12]}, not {fingerprint[:12]}: other text,"
            " template, tokenizer or loss rule). Name another folder, or delete this one."
        )
    store = ExampleStore(path, index)
    store.check_sizes()
    return store
