"""Where records go: JSON lines, TensorBoard events, Weights & Biases; each can drop what was written past a step."""

import json
import math
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from etils import epath

from jaxllm.parallel import hosts

REMOTE_SECONDS = 30.0  # an object store has no append: the file is written anew at most so often


class Sink(Protocol):
    """Takes records of training."""

    def write(self, record: Mapping[str, Any]) -> None:
        """One record; it has a "step", and maybe a "name" (an eval's)."""

    def rewind(self, to: int) -> None:
        """Drops every record with a step past `to`."""

    def flush(self) -> None: ...

    def close(self) -> None: ...


class Tail:
    """Appends to a local file; what a full disk refuses waits in memory for the next write, and no torn end is ever built upon.

    Args:
      path: the file; its folder is made when something is written.
    """

    def __init__(self, path: os.PathLike | str):
        self.path = os.fspath(path)
        self._waiting = b""
        self._whole: int | None = None  # since a write failed: the bytes of the file that are whole

    def write(self, content: bytes) -> None:
        """Appends this, after what is waiting."""
        self._waiting += content
        if not self._waiting:
            return
        whole = self._whole
        try:
            os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
            if whole is None:
                whole = os.path.getsize(self.path) if os.path.exists(self.path) else 0
            with open(self.path, "ab", buffering=0) as file:
                file.truncate(whole)
                left = memoryview(self._waiting)
                while left:
                    left = left[file.write(left) :]
        except OSError as error:
            if self._whole is None:
                _say_cannot_write(self.path, error)
            self._whole = whole or 0
        else:
            self._waiting, self._whole = b"", None

    def read(self) -> bytes:
        """All of it: what is in the file, and what is waiting."""
        content = Path(self.path).read_bytes() if os.path.exists(self.path) else b""
        return content[: self._whole] + self._waiting

    def replace(self, content: bytes) -> None:
        """The whole new content or the whole old one, whatever happens."""
        _replace(self.path, content)
        self._waiting, self._whole = b"", None


class JsonLines:
    """A file with one JSON object a line, whole lines only; numbers that are not finite become null.

    What cannot be written (a full disk) is said once, kept in memory and tried again at the next write.

    Args:
      path: local, or anything etils.epath opens.
    """

    def __init__(self, path: os.PathLike | str):
        self.path = epath.Path(path)
        self._remote = "://" in os.fspath(self.path)
        self._lines: list[str] | None = None  # a remote file's, once read
        self._written = 0.0
        self._failing = False
        self._tail = Tail(self.path)
        if not self._remote:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _cut_torn_line(self.path)

    def write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps({key: _plain(value) for key, value in record.items()}, ensure_ascii=False, allow_nan=False) + "\n"
        if self._remote:
            self._remembered().append(line)
            if time.monotonic() - self._written > REMOTE_SECONDS:
                self.flush()
        else:
            self._tail.write(line.encode())

    def read(self) -> list[dict[str, Any]]:
        """All records, oldest first."""
        if self._remote:
            lines = self._remembered()
        else:
            lines = _lines(self._tail.read())
        return [json.loads(line) for line in lines if line.strip()]

    def rewind(self, to: int) -> None:
        records = self.read()
        kept = [record for record in records if record.get("step", 0) <= to]
        if len(kept) == len(records):
            return
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in kept]
        if self._remote:
            self._lines = lines
            self.flush()
        else:
            self._tail.replace("".join(lines).encode())

    def flush(self) -> None:
        if not self._remote:
            self._tail.write(b"")
        elif self._lines is not None:
            self._written = time.monotonic()
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.write_bytes("".join(self._lines).encode())
                self._failing = False
            except Exception as error:  # object stores raise of all kinds; all lines are here, and written anew the next time
                if not self._failing:
                    _say_cannot_write(self.path, error)
                self._failing = True

    def close(self) -> None:
        self.flush()

    def _remembered(self) -> list[str]:
        if self._lines is None:
            self._lines = _lines(self.path.read_bytes()) if self.path.exists() else []
        return self._lines


class TensorBoard:
    """Scalars as TensorBoard events; the numbers of an eval are tagged name/metric.

    Args:
      folder: a local folder for event files.
    """

    def __init__(self, folder: os.PathLike | str):
        self.folder = Path(folder)
        self._file: Tail | None = None

    def write(self, record: Mapping[str, Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        if self._file is None:
            name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
            self._file = Tail(self.folder / name)
            self._file.write(_frame(Event(wall_time=time.time(), file_version="brain.Event:2")))
        values = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in _scalars(record).items()]
        self._file.write(_frame(Event(wall_time=time.time(), step=record["step"], summary=Summary(value=values))))

    def rewind(self, to: int) -> None:
        """Rewrites the event files without the later events: TensorBoard's own purging only hides them from some of its readers."""
        self.close()
        for path in sorted(self.folder.glob("*tfevents*")):
            before = path.read_bytes()
            after = b"".join(frame for frame, step in _frames(before) if step <= to)
            if after != before:
                _replace(path, after)

    def flush(self) -> None:
        if self._file is not None:
            self._file.write(b"")

    def close(self) -> None:
        self.flush()
        self._file = None


class Wandb:
    """A Weights & Biases run that goes on after a restart; its id is kept in the work directory.

    Args:
      project: its project.
      workdir: where the id is kept, in wandb.json.
      config: what the run is labelled with.

    Raises:
      ValueError: the extra is not installed.
    """

    def __init__(self, project: str, workdir: os.PathLike | str, config: Mapping[str, Any] | None = None):
        try:
            import wandb
        except ImportError:
            raise ValueError("log.wandb needs Weights & Biases. Run: pip install 'jaxllm[wandb]'") from None
        self._start: Callable[..., Any] = wandb.init
        self._options = {"project": project, "config": dict(config or {}), "name": epath.Path(workdir).name}
        self._file = epath.Path(workdir) / "wandb.json"
        self._run: Any = None
        self._to: int | None = None

    def write(self, record: Mapping[str, Any]) -> None:
        self._open().log(_scalars(record), step=record["step"])

    def rewind(self, to: int) -> None:
        """A run that exists already is taken up at `to`: wandb drops what came later."""
        self.close()
        self._to = to

    def flush(self) -> None:
        pass

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None

    def _open(self) -> Any:
        if self._run is None:
            known = json.loads(self._file.read_text())["id"] if self._file.exists() else None
            if known is None:
                again = {}
            elif self._to:
                again = {"resume_from": f"{known}?_step={self._to}"}
            else:
                again = {"id": known, "resume": "allow"}
            self._run = self._start(**self._options, **again)
            self._file.write_text(json.dumps({"id": self._run.id}))
        return self._run


def _say_cannot_write(path: os.PathLike | str, error: Exception) -> None:
    what = str(getattr(error, "strerror", None) or error).partition("\n")[0]
    told = "Training goes on; what belongs there is kept in memory and tried again at every write."
    hosts.say(f"CANNOT WRITE {os.fspath(path)}: {what}. {told}")


def _lines(content: bytes) -> list[str]:
    """Lines with their ends; only a newline ends one: JSON strings may hold what `splitlines` splits at (U+2028, U+0085)."""
    return [line + "\n" for line in content.decode().split("\n") if line]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(record: Mapping[str, Any]) -> dict[str, float]:
    prefix = f"{record['name']}/" if "name" in record else ""
    return {prefix + k: v for k, v in record.items() if k not in ("step", "time", "name") and isinstance(v, int | float)}


def _replace(path: os.PathLike | str, content: bytes) -> None:
    """The whole new file or the whole old one, whatever happens."""
    temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
    with open(temporary, "wb") as file:
        file.write(content)
    os.replace(temporary, path)


def _cut_torn_line(path: os.PathLike) -> None:
    """Cuts what a killed process left after the last whole line."""
    if not os.path.exists(path):
        return
    with open(path, "rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            file.truncate(whole)


def _frame(event: Any) -> bytes:
    """A record of an event file: length u64, its crc u32, the Event, its crc u32."""
    from tensorboardX.record_writer import masked_crc32c

    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))


def _frames(content: bytes) -> Iterator[tuple[bytes, int]]:
    """The whole records of an event file with their steps; a torn last one is left out."""
    from tensorboardX.proto.event_pb2 import Event

    at = 0
    while at + 12 <= len(content):
        size = struct.unpack_from("<Q", content, at)[0]
        end = at + 16 + size
        if end > len(content):
            return
        yield content[at:end], Event.FromString(content[at + 12 : end - 4]).step
        at = end
