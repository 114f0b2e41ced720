"""Files that survive a kill and can be taken back: JSON lines, TensorBoard events, wandb's run."""

import errno
import io
import json
import math
import struct
import sys
import types

import pytest
from etils import epath

from jaxllm.training import metrics, sinks
from jaxllm.training.sinks import JsonLines, TensorBoard, Wandb


def events(folder):
    """(step, tag, value) of every event, file after file, and whether every checksum is right; read by hand."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    found = []
    for path in sorted(folder.glob("*tfevents*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            size, check = struct.unpack_from("<QI", content, at)
            data = content[at + 12 : at + 12 + size]
            assert check == masked_crc32c(content[at : at + 8])
            assert struct.unpack_from("<I", content, at + 12 + size)[0] == masked_crc32c(data)
            event = Event.FromString(data)
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            at += 16 + size
    return found


def test_tensorboard_rewind_removes_the_events(tmp_path):
    board = TensorBoard(tmp_path)
    for step in range(1, 6):
        board.write({"step": step, "loss": float(step), "time": 0.0})
    board.write({"step": 5, "name": "heldout", "loss": 0.5})
    board.close()
    path = next(tmp_path.glob("*tfevents*"))
    path.write_bytes(path.read_bytes() + b"\x55\0\0\0\0\0\0\0torn")
    board.rewind(3)
    assert events(tmp_path) == [(step, "loss", float(step)) for step in (1, 2, 3)]
    board.write({"step": 4, "loss": 40.0})
    board.write({"step": 4, "name": "heldout", "loss": 0.25})
    board.close()
    assert sorted(events(tmp_path))[-2:] == [(4, "heldout/loss", 0.25), (4, "loss", 40.0)]


def test_a_torn_last_line_is_cut_before_anything_is_added(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step"')
    file = JsonLines(path)
    file.write({"step": 2})
    assert file.read() == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("remote", [False, True])
def test_only_a_newline_ends_a_line(tmp_path, remote):
    def opened():
        file = JsonLines(tmp_path / "m.jsonl")
        file._remote = remote
        return file

    file, records = opened(), [{"step": step, "text": "a\u2028b\u2029c\u0085d\x1ce\rf\ng"} for step in (1, 2)]
    for record in records:
        file.write(record)
    file.close()
    again = opened()
    assert again.read() == records
    again.rewind(1)
    again.write({"step": 2})
    again.close()
    assert opened().read() == [records[0], {"step": 2}]


def test_rewind_leaves_an_untouched_file_untouched(tmp_path):
    file = JsonLines(tmp_path / "m.jsonl")
    file.write({"step": 1, "text": "é"})
    before = (tmp_path / "m.jsonl").stat()
    file.rewind(1)
    assert (tmp_path / "m.jsonl").stat().st_mtime_ns == before.st_mtime_ns and list(tmp_path.iterdir()) == [tmp_path / "m.jsonl"]
    file.rewind(0)
    assert file.read() == []


class FullFile(io.FileIO):
    """Takes three more bytes and no more."""

    room = 3

    def write(self, content):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        count, self.room = super().write(bytes(content[: self.room])), 0
        return count


@pytest.fixture
def disk(monkeypatch):
    """A disk that is full while .full is true, and cannot even make a file while .closed is."""
    disk = types.SimpleNamespace(full=False, closed=False)

    def opened(path, mode="r", **options):
        if disk.closed:
            raise OSError(errno.ENOSPC, "No space left on device")
        return FullFile(path, mode) if disk.full and "a" in mode else open(path, mode, **options)

    monkeypatch.setattr(sinks, "open", opened, raising=False)
    return disk


def test_a_full_disk_is_said_once_and_nothing_is_lost(tmp_path, disk, capsys):
    file, board = JsonLines(tmp_path / "m.jsonl"), TensorBoard(tmp_path / "board")
    for step in range(1, 8):
        disk.full, disk.closed = step in (3, 4), step in (1, 5)
        for sink in (file, board):
            sink.write({"step": step, "loss": float(step)})
            sink.flush()
        assert [record["step"] for record in file.read()] == list(range(1, step + 1))
        if step == 4:
            assert (tmp_path / "m.jsonl").read_bytes().endswith(b'}\n{"s')
    board.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "m.jsonl").read_text().splitlines()] == list(range(1, 8))
    assert [event for event in events(tmp_path / "board") if event[1] == "loss"] == [(step, "loss", float(step)) for step in range(1, 8)]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4 and all(line.startswith("CANNOT WRITE") and "No space left on device" in line for line in said)


def test_a_full_disk_does_not_stop_the_writer(tmp_path, disk):
    writer = metrics.Writer(tmp_path)
    for step in range(1, 6):
        disk.full = step in (2, 3)
        writer.write(step, {"loss": 0.5})
        writer.record_eval(step, "held", {"loss": 0.25})
        writer.flush()
        assert writer.has_eval(step, "held")
    writer.close()
    for name in ("metrics", "evals"):
        assert [record["step"] for record in JsonLines(tmp_path / f"{name}.jsonl").read()] == [1, 2, 3, 4, 5]


def test_a_store_that_is_away_is_said_once_and_nothing_is_lost(tmp_path, monkeypatch, capsys):
    file = JsonLines(tmp_path / "m.jsonl")
    file._remote = True
    with monkeypatch.context() as patch:
        patch.setattr(type(file.path), "write_bytes", lambda path, content: (_ for _ in ()).throw(Exception("Error 503\nand pages")))
        for step in (1, 2):
            file.write({"step": step})
            file.flush()
    file.close()
    assert (tmp_path / "m.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    assert capsys.readouterr().err.count("CANNOT WRITE") == 1


def test_a_remote_file_is_written_anew_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "REMOTE_SECONDS", 1e9)
    file = JsonLines(tmp_path / "m.jsonl")
    file._remote = True  # as for gs://, where there is no append
    file._written = __import__("time").monotonic()
    file.write({"step": 1})
    file.write({"step": 2})
    assert not (tmp_path / "m.jsonl").exists() and len(file.read()) == 2
    file.flush()
    assert [json.loads(line)["step"] for line in epath.Path(tmp_path / "m.jsonl").read_text().splitlines()] == [1, 2]
    file.rewind(1)
    assert (tmp_path / "m.jsonl").read_text() == '{"step": 1}\n'


def test_wandb_goes_on_where_the_checkpoint_is(tmp_path, monkeypatch):
    started, logged = [], []

    def init(**options):
        started.append(options)
        return types.SimpleNamespace(id="abc", log=lambda values, step: logged.append((step, values)), finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    run = Wandb("project", tmp_path, {"seed": 1})
    run.rewind(0)
    run.write({"step": 1, "loss": 2.0, "time": 5.0})
    run.close()
    again = Wandb("project", tmp_path, {"seed": 1})
    again.rewind(7)
    again.write({"step": 8, "name": "heldout", "loss": 3.0})
    assert "id" not in started[0] and "resume_from" not in started[0] and started[1]["resume_from"] == "abc?_step=7"
    assert logged == [(1, {"loss": 2.0}), (8, {"heldout/loss": 3.0})]


def test_without_the_extra_the_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install 'jaxllm\[wandb\]'"):
        Wandb("project", tmp_path)


def test_numbers_that_are_not_finite_become_null_wherever_they_stand(tmp_path):
    file = JsonLines(tmp_path / "a.jsonl")
    file.write({"a": math.nan, "parts": {"b": math.inf, "c": 1.0}, "list": [1.0, math.nan, {"d": -math.inf}]})
    assert file.read() == [{"a": None, "parts": {"b": None, "c": 1.0}, "list": [1.0, None, {"d": None}]}]
