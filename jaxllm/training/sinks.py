"""Where records go: JSON lines, TensorBoard events, Weights & Biases; each can drop what was written past a step."""

import json
import math
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from etils import epath

REMOTE_SECONDS = 30.0  # an object store has no append: the file is written anew at most so often


class Sink(Protocol):
    """Takes records of training."""

    def write(self, record: Mapping[str, Any]) -> None:
        """One record; it has a "step", and maybe a "name" (an eval's)."""

    def rewind(self, to: int) -> None:
        """Drops every record with a step past `to`."""

    def flush(self) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """A file with one JSON object a line, whole lines only; numbers that are not finite become null.

    Args:
      path: local, or anything etils.epath opens.
    """

    def __init__(self, path: os.PathLike | str):
        self.path = epath.Path(path)
        self._remote = "://" in os.fspath(self.path)
        self._lines: list[str] | None = None  # a remote file's, once read
        self._written = 0.0
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
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line)

    def read(self) -> list[dict[str, Any]]:
        """All records, oldest first."""
        if self._remote:
            lines = self._remembered()
        else:
            lines = _lines(self.path.read_bytes()) if self.path.exists() else []
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
            _replace(self.path, "".join(lines).encode())

    def flush(self) -> None:
        if self._remote and self._lines is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes("".join(self._lines).encode())
            self._written = time.monotonic()

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
        self._events: Any = None

    def write(self, record: Mapping[str, Any]) -> None:
        if self._events is None:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(self.folder))
        for tag, value in _scalars(record).items():
            self._events.add_scalar(tag, value, record["step"])

    def rewind(self, to: int) -> None:
        """Rewrites the event files without the later events: TensorBoard's own purging only hides them from some of its readers."""
        self.close()
        for path in sorted(self.folder.glob("*tfevents*")):
            before = path.read_bytes()
            after = b"".join(frame for frame, step in _frames(before) if step <= to)
            if after != before:
                _replace(path, after)

    def flush(self) -> None:
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None


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


def _lines(content: bytes) -> list[str]:
    """Lines with their ends; only a newline ends one: JSON strings may hold what `splitlines` splits at (U+2028, U+0085)."""
    return [line + "\n" for line in content.decode().split("\n") if line]


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(record: Mapping[str, Any]) -> dict[str, float]:
    prefix = f"{record['name']}/" if "name" in record else ""
    return {prefix + k: v for k, v in record.items() if k not in ("step", "time", "name") and isinstance(v, int | float)}


def _replace(path: os.PathLike, content: bytes) -> None:
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


def _frames(content: bytes) -> Iterator[tuple[bytes, int]]:
    """The whole records of an event file with their steps: length u64, its crc u32, an Event, its crc u32; a torn last one is left out."""
    from tensorboardX.proto.event_pb2 import Event

    at = 0
    while at + 12 <= len(content):
        size = struct.unpack_from("<Q", content, at)[0]
        end = at + 16 + size
        if end > len(content):
            return
        yield content[at:end], Event.FromString(content[at + 12 : end - 4]).step
        at = end
