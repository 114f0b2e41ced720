"""Files by ranges, here or on gs:// and its like: retried, checked for length and checksum, kept in a local block cache."""

import collections
import hashlib
import io
import logging
import os
import random
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
MEMORY_BLOCKS = 64
BLOCK_BYTES = 256 * 1024  # some rows' worth: smaller wastes requests, larger wastes bytes when windows are read at random
ATTEMPTS = 6
FIRST_WAIT = 0.5  # seconds; doubles each time
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError, TypeError)
log = logging.getLogger(__name__)


class Unreliable(OSError):
    """A remote read that kept failing, or gave other bytes than were written."""


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path names a file system of fsspec's (gs://, s3://, ...) rather than this machine's."""
    return "://" in os.fspath(path)


def filesystem(path: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path within it.

    Raises:
      ValueError: its package is missing (with the pip command), or the scheme is unknown.
    """
    import fsspec

    scheme = path.split("://", 1)[0]
    try:
        return fsspec.core.url_to_fs(path)
    except ImportError as error:
        extra = "jaxllm[gcs]" if scheme in ("gs", "gcs") else str(error)
        raise ValueError(f"{scheme}:// needs a package that is not installed. Run: pip install '{extra}'") from None


def retried(action: Callable[[], T], what: str) -> T:
    """Runs an action on a remote file, again after ever longer waits when it fails for a reason that may pass.

    Raises:
      Unreliable: it failed `ATTEMPTS` times; the last reason is named.
    """
    for attempt in range(ATTEMPTS):
        try:
            return action()
        except FINAL:
            raise
        except Exception as error:
            if attempt == ATTEMPTS - 1:
                raise Unreliable(f"{what} failed {ATTEMPTS} times; the last time: {type(error).__name__}: {error}") from error
            wait = FIRST_WAIT * 2**attempt * (0.5 + random.random())
            log.warning("%s: %s: %s. Trying again in %.1f s.", what, type(error).__name__, error, wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def file_size(path: str | os.PathLike) -> int:
    """Bytes of a file here or remote."""
    if not is_remote(path):
        return os.stat(path).st_size
    fs, inner = filesystem(os.fspath(path))
    return int(retried(lambda: fs.info(inner), f"Looking at {path}")["size"])


def read_range(path: str, start: int, stop: int, crc: int | None = None) -> bytes:
    """Bytes [start, stop) of a remote file; a short answer, or another crc32 than this, counts as a failure and is asked for again.

    Raises:
      Unreliable: see `retried`.
    """
    fs, inner = filesystem(path)

    def ask() -> bytes:
        data = fs.cat_file(inner, start=start, end=stop)
        if len(data) != stop - start:
            raise Unreliable(f"{len(data)} bytes came of {stop - start} asked for")
        if crc is not None and zlib.crc32(data) != crc:
            raise Unreliable("the checksum is wrong")
        return data

    return retried(ask, f"Reading {path} [{start}:{stop}]") if stop > start else b""


class RangeStream(io.RawIOBase):
    """A remote file as a seekable stream, read by ranges with retries."""

    def __init__(self, path: str, chunk_bytes: int = 4 * 1024 * 1024):
        self._path, self._size, self._at = path, file_size(path), 0
        self._chunk, self._chunk_bytes, self._chunk_start = b"", chunk_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        if not self._chunk_start <= self._at < self._chunk_start + len(self._chunk):
            self._chunk_start = self._at
            self._chunk = read_range(self._path, self._at, min(self._size, self._at + max(self._chunk_bytes, 1)))
        offset = self._at - self._chunk_start
        data = self._chunk[offset : offset + wanted]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def open_binary(path: str | os.PathLike) -> io.BufferedIOBase:
    """A file here or remote, for reading bytes; seekable."""
    if is_remote(path):
        return io.BufferedReader(RangeStream(os.fspath(path)), buffer_size=1024 * 1024)
    return open(path, "rb")


class BlockCache:
    """Blocks of remote files on the local disk, the least recently written dropped first; shared by the processes of a machine.

    Args:
      folder: where the blocks lie.
      max_bytes: how much of the disk they may take.
    """

    def __init__(self, folder: str | os.PathLike, max_bytes: int = 64 * 1024**3):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._max_bytes = max_bytes
        found = sorted((p.stat().st_mtime_ns, p, p.stat().st_size) for p in self.folder.glob("*/*") if p.suffix != ".part")
        self._blocks: collections.OrderedDict[Path, int] = collections.OrderedDict((path, size) for _, path, size in found)
        self._bytes = sum(self._blocks.values())
        self._lock = threading.Lock()

    def path(self, key: str, block: int) -> Path:
        return self.folder / hashlib.blake2b(key.encode(), digest_size=12).hexdigest() / str(block)

    def get(self, key: str, block: int) -> bytes | None:
        try:
            return self.path(key, block).read_bytes()
        except OSError:
            return None

    def put(self, key: str, block: int, data: bytes) -> None:
        """Keeps a block; a full disk costs the cache, not the run."""
        path = self.path(key, block)
        part = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.part")
        try:
            path.parent.mkdir(exist_ok=True)
            part.write_bytes(data)
            os.replace(part, path)
        except OSError as error:
            log.warning("The block cache in %s cannot be written (%s); reading goes on without it.", self.folder, error)
            part.unlink(missing_ok=True)
            return
        with self._lock:
            self._bytes += len(data) - self._blocks.pop(path, 0)
            self._blocks[path] = len(data)
            while self._bytes > self._max_bytes and len(self._blocks) > 1:
                oldest, size = self._blocks.popitem(last=False)
                oldest.unlink(missing_ok=True)
                self._bytes -= size


class RangeFile:
    """A remote file read at random through the block cache; every block is compared with its checksum.

    Args:
      path: URL.
      size: bytes, as written.
      block_bytes: the size of a block.
      checksums: crc32 of each block.
      cache: where blocks are kept; None: in memory only.
      key: what names this content in the cache (a path alone would outlive its content).
      memory_blocks: how many blocks stay in memory.
    """

    def __init__(
        self, path: str, size: int, block_bytes: int, checksums: Any, cache: BlockCache | None, key: str, memory_blocks: int = MEMORY_BLOCKS
    ):
        self._path, self._size, self._block_bytes = path, size, block_bytes
        self._checksums, self._cache, self._key = checksums, cache, key
        self._memory: collections.OrderedDict[int, bytes] = collections.OrderedDict()
        self._memory_blocks = memory_blocks
        self._lock = threading.Lock()

    def _block(self, block: int) -> bytes:
        with self._lock:
            if block in self._memory:
                self._memory.move_to_end(block)
                return self._memory[block]
        data = self._cache.get(self._key, block) if self._cache else None
        if data is None or zlib.crc32(data) != int(self._checksums[block]):
            start = block * self._block_bytes
            data = read_range(self._path, start, min(start + self._block_bytes, self._size), int(self._checksums[block]))
            if self._cache:
                self._cache.put(self._key, block, data)
        with self._lock:
            self._memory[block] = data
            while len(self._memory) > self._memory_blocks:
                self._memory.popitem(last=False)
        return data

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop)."""
        assert 0 <= start <= stop <= self._size, (start, stop, self._size)
        if start == stop:
            return b""
        first, last = start // self._block_bytes, (stop - 1) // self._block_bytes
        data = b"".join(self._block(block) for block in range(first, last + 1))
        return data[start - first * self._block_bytes : stop - first * self._block_bytes]
