"""Rows of a global batch: which of them this process must read, and how they become one array over all processes."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding


def rows_needed(sharding: Sharding, num_rows: int) -> np.ndarray:
    """The rows of the global batch that lie on this process's devices.

    Args:
      sharding: of an array whose dim 0 is the batch; dims after it do not matter here.
      num_rows: B, rows of the global batch.

    Returns:
      int64 [b], ascending; the same row can be needed by several processes.

    Raises:
      ValueError: the batch does not divide.
    """
    needed = np.zeros(num_rows, bool)
    for index in _index_map(sharding, (num_rows,)).values():
        needed[index[0]] = True
    return np.flatnonzero(needed)


def make_global(rows: np.ndarray, sharding: Sharding, num_rows: int) -> jax.Array:
    """One global array from each process's own rows.

    Args:
      rows: [b, ...], the rows that `rows_needed` names, in its order.
      sharding: of the global array [B, ...].
      num_rows: B.

    Raises:
      ValueError: another number of rows than needed, or the batch does not divide.
    """
    needed = rows_needed(sharding, num_rows)
    if len(rows) != len(needed):
        raise ValueError(f"This process needs {len(needed)} rows of the batch of {num_rows}, and was given {len(rows)}.")

    def local(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        start, stop, _ = index[0].indices(num_rows)
        first = int(np.searchsorted(needed, start))  # a device's rows are neighbours, here as in the whole
        return rows[(slice(first, first + stop - start), *index[1:])]

    return jax.make_array_from_callback((num_rows, *rows.shape[1:]), sharding, local, dtype=rows.dtype)


def _index_map(sharding: Sharding, shape: tuple[int, ...]) -> Mapping[Any, Any]:
    if isinstance(sharding, jax.sharding.NamedSharding) and len(sharding.spec) > 1:
        sharding = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(sharding.spec[0]))
    try:
        return sharding.addressable_devices_indices_map(shape)
    except ValueError as error:
        raise ValueError(f"batch_size={shape[0]} does not divide over the devices: {error}. Give a multiple of replica x fsdp.") from None
