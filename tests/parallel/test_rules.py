"""Logical names become shardings by two tables; what does not divide is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxllm.parallel import rules
from jaxllm.parallel.mesh import AXES, make_mesh


def test_both_tables_know_only_axes_of_the_mesh():
    for table in (rules.STORED, rules.COMPUTE):
        for mesh_axes in table.values():
            assert set((mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes or ()) <= set(AXES)


def test_names_become_specs():
    assert rules.spec(("embed", "mlp"), rules.STORED) == PartitionSpec("fsdp", "tensor")
    assert rules.spec(("batch", "sequence", None), rules.COMPUTE) == PartitionSpec(("replica", "fsdp"), "context", None)
    with pytest.raises(KeyError):
        rules.spec(("no_such_name",), rules.STORED)


def test_what_does_not_divide_is_named_with_what_would():
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    axes = {"mlp": {"kernel": ("embed", "mlp")}}
    shardings = rules.shardings(axes, mesh, {"mlp": {"kernel": np.zeros((8, 6))}})
    assert shardings["mlp"]["kernel"].spec == PartitionSpec("fsdp", "tensor")
    with pytest.raises(ValueError, match=r"mlp/kernel: dim 0 \(embed=6\) does not divide by mesh axis fsdp=4.*: 1, 2, 3\."):
        rules.shardings(axes, mesh, {"mlp": {"kernel": np.zeros((6, 6))}})
    with pytest.raises(ValueError, match=r"x: dim 0 \(batch=6\) does not divide by mesh axis replica\*fsdp=4"):
        rules.check_divides("x", (6,), ("batch",), dict(mesh.shape), rules.COMPUTE)


def test_few_kv_heads_stay_whole_where_the_axis_is_a_multiple():
    mesh = make_mesh({"fsdp": 2, "tensor": 4})
    axes = ("embed", "kv_heads", "head_dim")
    assert rules.sharding("key", (8, 4, 2), axes, mesh).spec == PartitionSpec("fsdp", "tensor", None)
    assert rules.sharding("key", (8, 2, 2), axes, mesh).spec == PartitionSpec("fsdp", None, None)
    with pytest.raises(ValueError, match=r"key: dim 1 \(kv_heads=6\) does not divide by mesh axis tensor=4.*: 1, 2, 3\."):
        rules.sharding("key", (8, 6, 2), axes, mesh)
    with jax.set_mesh(mesh):
        out = jax.jit(lambda x: rules.constrain(x, "batch", None, "kv_heads", None))(jnp.ones((8, 3, 2, 5)))
        assert {shard.data.shape for shard in out.addressable_shards} == {(4, 3, 2, 5)}


def test_a_vocabulary_that_does_not_divide_is_told_the_next_size():
    with pytest.raises(ValueError, match=r"vocab=50257\) does not divide by mesh axis tensor=8.*: 1\. Or set model.vocab_size=50264"):
        rules.sharding("head/kernel", (64, 50257), ("embed", "vocab"), make_mesh({"tensor": 8}))


def test_without_a_mesh_nothing_happens():
    x = jnp.ones((4, 4))
    assert rules.constrain(x, "batch", "embed") is x
    assert rules.shard_map(jnp.sin, (("batch",),), ("batch",)) is jnp.sin
    assert rules.ambient_mesh() is None and rules.axis_size("fsdp") == 1


def test_under_a_mesh_activations_are_pinned():
    with jax.set_mesh(make_mesh({"fsdp": 4, "context": 2})):
        out = jax.jit(lambda x: rules.constrain(x * 2, "batch", "sequence", "embed"))(jnp.ones((8, 4, 3)))
        assert {shard.data.shape for shard in out.addressable_shards} == {(2, 2, 3)}
        assert rules.axis_size("context") == 2


def test_shard_map_sees_local_blocks_and_equals_the_whole():
    seen = []

    def block(x, w):
        seen.append((x.shape, w.shape))
        return x * jnp.sum(w)

    x, w = jnp.arange(32.0).reshape(8, 4), jnp.arange(3.0)
    with jax.set_mesh(make_mesh({"fsdp": 4, "context": 2})):
        out = jax.jit(lambda x, w: rules.shard_map(block, (("batch", "sequence"), (None,)), ("batch", "sequence"))(x, w))(x, w)
    assert seen[0] == ((2, 2), (3,)) and np.array_equal(out, x * 3)
