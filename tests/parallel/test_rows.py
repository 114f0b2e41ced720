"""Each process's rows make the same global array as the whole batch would."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.parallel.mesh import make_mesh
from jaxllm.parallel.rows import make_global, rows_needed


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"fsdp": 2, "replica": 2, "context": 2}, {"tensor": 8}])
def test_rows_make_the_global_array(sizes):
    sharding = NamedSharding(make_mesh(sizes), PartitionSpec(("replica", "fsdp"), "context"))
    batch = np.arange(16 * 6, dtype=np.int32).reshape(16, 6)
    needed = rows_needed(sharding, 16)
    assert np.array_equal(needed, np.arange(16))  # one process: all of them
    array = make_global(batch[needed], sharding, 16)
    assert array.sharding == sharding and np.array_equal(array, batch)


class Half:
    """A sharding as the second of two processes sees it: of four devices with four rows each, it has the second and the fourth."""

    def addressable_devices_indices_map(self, shape):
        return {1: (slice(4, 8),), 3: (slice(12, 16),)}


def test_a_process_with_scattered_rows_reads_only_those():
    assert rows_needed(Half(), 16).tolist() == [4, 5, 6, 7, 12, 13, 14, 15]


def test_scattered_rows_land_where_they_belong(monkeypatch):
    placed = {}
    monkeypatch.setattr(jax, "make_array_from_callback", lambda shape, sharding, local, dtype: placed.update(
        {row: local((slice(row, row + 4), slice(0, 1))) for row in (4, 12)}
    ))  # fmt: skip
    batch = np.arange(32).reshape(16, 2)
    make_global(batch[rows_needed(Half(), 16)], Half(), 16)
    assert np.array_equal(placed[4], batch[4:8, :1]) and np.array_equal(placed[12], batch[12:16, :1])


def test_a_batch_that_does_not_divide_and_wrong_rows_are_refused():
    sharding = NamedSharding(make_mesh({"fsdp": 8}), PartitionSpec("fsdp"))
    with pytest.raises(ValueError, match="batch_size=12 does not divide"):
        rows_needed(sharding, 12)
    with pytest.raises(ValueError, match="needs 16 rows of the batch of 16, and was given 3"):
        make_global(np.zeros((3, 2)), sharding, 16)
