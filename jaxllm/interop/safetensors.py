"""The safetensors format: headers checked before they are believed, tensors mapped by numpy, files written one tensor at a time.

A file is 8 bytes (the header's length, little-endian), a JSON object {name: {dtype, shape, data_offsets}}, and the bytes of the tensors.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

MAX_HEADER = 100_000_000  # bytes; the limit of the format's own library
MAX_DIMS = 8  # of a tensor; no weight has more
ITEM_BITS = {  # of every dtype of the format; buffers may have any
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
FLOATS: dict[str, np.dtype] = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
CODES = {dtype.name: code for code, dtype in FLOATS.items()}  # "bfloat16" -> "BF16"
DAMAGED = "It is damaged or made to do harm: fetch it again from where you trust it."


class Tensor(NamedTuple):
    """Where a tensor lies: `size` bytes from `start` on, in row-major order."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; for `json.loads(object_pairs_hook=...)`.

    Raises:
      ValueError: a key is there twice.
    """
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:100]!r} is there twice")
        found[key] = value
    return found


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name. Every number in the header is checked against the others and against the size of the file.

    Raises:
      ValueError: a header that is too long, no JSON or holds a key twice; an unknown dtype; offsets that leave the file, overlap, leave
        gaps or do not fit dtype and shape; a file that was cut off.
    """
    header, data = _header(path)
    tensors = {name: _tensor(path, name, facts, data) for name, facts in header.items() if name != "__metadata__"}
    _check_cover(path, tensors.values(), data, path.stat().st_size)
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """What a file says of itself, {} if nothing.

    Raises:
      ValueError: a header that is too long, no JSON or holds a key twice; or something else than texts.
    """
    found = _header(path)[0].get("__metadata__", {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"{path}: its __metadata__ is not a table of texts. {DAMAGED}")
    return found


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header as it stands, and where the data begin."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise ValueError(f"{path}: its header claims {length:,} bytes, in a file of {size:,}. {DAMAGED}")
        text = file.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its header is not what the format asks for ({_short(error)}). {DAMAGED}") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path}: its header is a {type(header).__name__}, not a table of tensors. {DAMAGED}")
    return header, 8 + length


def _short(error: BaseException) -> str:
    return "too deeply nested" if isinstance(error, RecursionError) else str(error)[:200]


def _tensor(path: Path, name: str, facts: Any, data: int) -> Tensor:
    where = f"{path}: tensor {name[:100]!r}"
    if not isinstance(facts, dict) or set(facts) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{where} does not have exactly dtype, shape and data_offsets. {DAMAGED}")
    dtype, shape, offsets = facts["dtype"], facts["shape"], facts["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BITS:
        raise ValueError(f"{where} has the unknown dtype {str(dtype)[:100]!r}. Those of the format: {', '.join(ITEM_BITS)}.")
    if not _are_sizes(shape, MAX_DIMS) or not _are_sizes(offsets, 2) or len(offsets) != 2:
        facts = f"shape {str(shape)[:100]} and data_offsets {str(offsets)[:100]}"
        raise ValueError(f"{where} has {facts}, which are not whole numbers >= 0, at most {MAX_DIMS} and just two. {DAMAGED}")
    size = offsets[1] - offsets[0]
    if size * 8 != math.prod(shape) * ITEM_BITS[dtype]:
        raise ValueError(f"{where} is {dtype}{shape} in {size:,} bytes: that does not fit. {DAMAGED}")
    return Tensor(path, name, dtype, tuple(shape), data + offsets[0], size)


def _are_sizes(value: Any, most: int) -> bool:
    return isinstance(value, list) and len(value) <= most and all(type(number) is int and number >= 0 for number in value)


def _check_cover(path: Path, tensors: Iterable[Tensor], data: int, size: int) -> None:
    """Refuses tensors that do not lie one after the other from the first byte to the last."""
    end = data
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.size)):
        if tensor.start != end:
            what = "overlaps the one before it" if tensor.start < end else "leaves a gap before it"
            raise ValueError(f"{path}: tensor {tensor.name!r} {what} (byte {tensor.start:,}, not {end:,}). {DAMAGED}")
        end += tensor.size
    if end != size:
        what = "It was cut off: fetch it again." if end > size else DAMAGED
        raise ValueError(f"{path}: its tensors end at byte {end:,}, the file at {size:,}. {what}")


def mapped(tensor: Tensor) -> np.ndarray:
    """The tensor as a read-only array that lies in the file; its memory is given back when the array is dropped.

    Raises:
      ValueError: its dtype is none that weights are read from.
    """
    if tensor.dtype not in FLOATS:
        raise ValueError(
            f"{tensor.file}: weight {tensor.name!r} has dtype {tensor.dtype}. Weights are read from: {', '.join(FLOATS)};"
            " save the model unquantized in one of them."
        )
    if not tensor.size:
        return np.empty(tensor.shape, FLOATS[tensor.dtype])
    return np.memmap(tensor.file, FLOATS[tensor.dtype], "r", tensor.start, tensor.shape)


def write(
    path: Path,
    tensors: Mapping[str, tuple[int, ...]],
    dtype: str,
    arrays: Iterable[np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a file and flushes it to the disk; one array is in memory at a time.

    Args:
      path: of the file.
      tensors: name -> shape, in the order of `arrays`.
      dtype: a key of `CODES`, of all of them.
      arrays: the tensors themselves.
      metadata: what the file says of itself.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}  # transformers asks which framework's layout it is
    end = 0
    for name, shape in tensors.items():
        start, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data are aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, shape), array in zip(tensors.items(), arrays, strict=True):
            assert array.shape == shape and array.dtype == dtype, (name, array.shape, shape, array.dtype, dtype)
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
