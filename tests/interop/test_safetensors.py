"""A safetensors file is believed only as far as its numbers agree with one another and with the file."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxllm.interop import safetensors


def file_of(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def tensor(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_files_of_the_library_are_read_and_ours_are_read_by_it(tmp_path):
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones((3, 1), np.float32), "none": np.ones((0, 4), np.float32)}
    save_file(arrays, tmp_path / "theirs.safetensors", {"by": "them"})
    found = {name: safetensors.mapped(t) for name, t in safetensors.read_header(tmp_path / "theirs.safetensors").items()}
    assert found.keys() == arrays.keys() and all(np.array_equal(found[name], arrays[name]) for name in arrays)
    with pytest.raises(ValueError, match="read-only"):
        found["b"][0] = 1
    for dtype in safetensors.CODES:
        ours = {name: array.astype(dtype) for name, array in arrays.items()}
        safetensors.write(tmp_path / "ours.safetensors", {name: array.shape for name, array in ours.items()}, dtype, ours.values())
        again = load_file(tmp_path / "ours.safetensors")
        assert all(again[name].dtype == dtype and np.array_equal(again[name], ours[name]) for name in arrays)


EIGHT = b"\0" * 8
HOSTILE = {
    "a header longer than the file": ({"header": {}, "length": 1 << 62}, "its header claims 4,611,686,018,427,387,904 bytes"),
    "no header": ({"header": b"", "length": 0}, "its header is not what the format asks for"),
    "no JSON": ({"header": b"{nonsense"}, "its header is not what the format asks for"),
    "not UTF-8": ({"header": b'{"\xff": 1}'}, "its header is not what the format asks for"),
    "too deep": ({"header": b"[" * 100_000}, "its header is not what the format asks for"),
    "a list": ({"header": []}, "its header is a list"),
    "a name twice": ({"header": b'{"a": {}, "a": {}}'}, "the key 'a' is there twice"),
    "a tensor that is none": ({"header": {"a": 3}}, "tensor 'a' does not have exactly dtype, shape and data_offsets"),
    "a key too many": ({"header": {"a": tensor() | {"x": 1}}, "data": EIGHT}, "tensor 'a' does not have exactly"),
    "an unknown dtype": (
        {"header": {"a": tensor("F128")}, "data": EIGHT},
        "tensor 'a' has the unknown dtype 'F128'. Those of the format: F64",
    ),
    "a dtype of another size": ({"header": {"a": tensor("F64")}, "data": EIGHT}, r"tensor 'a' is F64\[2\] in 8 bytes: that does not fit"),
    "a negative size": ({"header": {"a": tensor(shape=(-2,))}, "data": EIGHT}, r"shape \[-2\]"),
    "a size of True": ({"header": {"a": tensor(shape=(True, 2))}, "data": EIGHT}, r"shape \[True, 2\]"),
    "a size that is broken": ({"header": {"a": tensor(shape=(2.0,))}, "data": EIGHT}, r"shape \[2.0\]"),
    "offsets turned round": ({"header": {"a": tensor(offsets=(8, 0))}, "data": EIGHT}, "in -8 bytes"),
    "offsets past the end": ({"header": {"a": tensor(offsets=(80, 88))}, "data": EIGHT}, "leaves a gap before it"),
    "one over another": (
        {"header": {"a": tensor(), "b": tensor(offsets=(4, 12))}, "data": EIGHT * 2},
        "tensor 'b' overlaps the one before it",
    ),
    "a gap": ({"header": {"a": tensor(), "b": tensor(offsets=(12, 20))}, "data": EIGHT * 3}, "tensor 'b' leaves a gap"),
    "cut off": ({"header": {"a": tensor()}, "data": b"\0" * 7}, "It was cut off: fetch it again"),
    "more after the end": ({"header": {"a": tensor()}, "data": b"\0" * 9}, "its tensors end at byte"),
    "a size past 64 bits": ({"header": {"a": tensor(shape=(1 << 80,))}, "data": EIGHT}, "that does not fit"),
}


@pytest.mark.parametrize(("made", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header_is_answered_in_one_line(made, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        safetensors.read_header(file_of(tmp_path / "x.safetensors", **made))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_file_of_three_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    with pytest.raises(ValueError, match="in a file of 3"):
        safetensors.read_header(tmp_path / "x")
