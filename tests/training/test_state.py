"""The state is born sharded, every leaf in its place, and says what it costs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxllm.parallel.mesh import make_mesh
from jaxllm.training.optimizers import OPTIMIZERS, make_optimizer
from jaxllm.training.state import abstract, create, from_params, report


def specs(tree):
    return {jax.tree_util.keystr(path): leaf.sharding.spec for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({"fsdp": 4, "tensor": 2})


def test_adamw_moments_lie_where_their_parameters_lie(mesh):
    state = create(toy.init, make_optimizer("adamw", 1e-3, axes=toy.AXES), mesh, toy.AXES, ema=True)
    assert state.params["blocks"]["query"].sharding.spec == P(None, "fsdp", "tensor", None)
    assert state.params["head"].sharding.spec == P("fsdp", "tensor")
    adam = next(s for s in jax.tree.leaves(state.opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState)) if hasattr(s, "mu"))
    for tree in (adam.mu, adam.nu, state.ema):
        assert specs(tree) == specs(state.params)
    assert state.step.sharding.is_fully_replicated and state.guard.losses.sharding.is_fully_replicated
    shard = state.params["head"].addressable_shards[0].data
    assert shard.shape == (toy.D // 4, toy.V // 2)


def test_adafactors_rows_and_columns_keep_the_axes_that_are_left(mesh):
    square = {"w": (16, 16), "stack": (2, 16, 32)}
    axes = {"w": ("embed", "mlp"), "stack": ("layers", "embed", "mlp")}
    init = lambda: jax.tree.map(jnp.zeros, square, is_leaf=lambda x: isinstance(x, tuple))  # noqa: E731
    state = create(init, make_optimizer("adafactor", 1e-3, axes=axes, min_dim_size_to_factor=8), mesh, axes)
    factored = next(
        s for s in jax.tree.leaves(state.opt_state, is_leaf=lambda x: isinstance(x, optax.FactoredState)) if hasattr(s, "v_row")
    )
    assert factored.v_row["w"].sharding.spec == P("fsdp") and factored.v_col["w"].sharding.spec == P("tensor")
    assert factored.v_row["stack"].shape == (2, 16) and factored.v_row["stack"].sharding.spec == P(None, "fsdp")
    assert factored.v_col["stack"].shape == (2, 32) and factored.v_col["stack"].sharding.spec == P(None, "tensor")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_abstract_is_what_create_makes(mesh, name):
    optimizer = make_optimizer(name, 1e-3, axes=toy.AXES)
    shapes, state = abstract(toy.init, optimizer, mesh, toy.AXES), create(toy.init, optimizer, mesh, toy.AXES)
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(shapes), jax.tree.leaves(state), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype and a.sharding == b.sharding
    assert report(shapes, mesh) == report(state, mesh)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_keeps_a_whole_copy_on_each_device(mesh, name):
    options = {"min_dim_size_to_factor": 8} if name == "adafactor" else {}
    state = abstract(toy.init, make_optimizer(name, 1e-3, axes=toy.AXES, **options), mesh, toy.AXES)
    cut = sum(p.size for p in jax.tree.leaves(state.params) if not p.sharding.is_fully_replicated)
    whole = sum(s.size for s in jax.tree.leaves(state.opt_state) if s.sharding.is_fully_replicated)
    assert whole < 0.1 * cut


def test_values_do_not_depend_on_the_mesh(mesh):
    optimizer, random = make_optimizer("adamw", 1e-3), lambda: {"w": jax.random.normal(jax.random.key(0), (16, 32))}
    axes = {"w": ("embed", "mlp")}
    one = create(random, optimizer, make_mesh({"fsdp": 1}, jax.devices()[:1]), axes)
    many = create(random, optimizer, mesh, axes)
    np.testing.assert_array_equal(one.params["w"], many.params["w"])


def test_round_existing_parameters(mesh):
    params = toy.init(3)
    state = from_params(params, make_optimizer("lion", 1e-3), mesh, toy.AXES, ema=True, guard=None)
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    jax.tree.map(np.testing.assert_array_equal, state.ema, params)
    assert state.params["head"].sharding.spec == P("fsdp", "tensor") and state.guard is None and int(state.step) == 0


def test_fewer_kv_heads_than_the_tensor_axis_stay_whole_with_their_moments(mesh):
    kernel = lambda: {"key": {"kernel": jnp.zeros((16, 2, 8))}}  # noqa: E731
    narrow = make_mesh({"fsdp": 2, "tensor": 4}, jax.devices()[:8])
    state = abstract(kernel, make_optimizer("adamw", 1e-3), narrow, {"key": {"kernel": ("embed", "kv_heads", "head_dim")}})
    kernels = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (16, 2, 8)]
    assert len(kernels) == 3 and all(leaf.sharding.is_equivalent_to(NamedSharding(narrow, P("fsdp")), 3) for leaf in kernels)


def test_report_counts_and_finds_what_is_replicated(mesh):
    big = {"cut": (1024, 512), "left": (1024, 512), "odd": (1031, 1031)}
    axes = {"cut": ("embed", "mlp"), "left": (None, None), "odd": (None, None)}
    init = lambda: jax.tree.map(jnp.zeros, big, is_leaf=lambda x: isinstance(x, tuple))  # noqa: E731
    state = abstract(init, make_optimizer("sgd", 1e-3, momentum_dtype="bfloat16"), mesh, axes, guard=None)
    found = report(state, mesh)
    count = 2 * 1024 * 512 + 1031 * 1031
    assert found.num_params == count
    assert found.bytes_per_device["params"] == 4 * (1024 * 512 // 8 + 1024 * 512 + 1031 * 1031)
    assert found.bytes_per_device["opt_state"] == found.bytes_per_device["params"] // 2 and found.bytes_per_device["ema"] == 0
    assert [name for name, _ in found.replicated] == ["params/left"]  # the odd one cannot be cut, the moments are at the limit
    assert any("params/left (2.0 MiB)" in line for line in found.lines()) and f"parameters: {count:,}" in found.lines()
    alone = make_mesh({"fsdp": 1}, jax.devices()[:1])
    assert report(abstract(init, make_optimizer("sgd", 1e-3), alone, axes), alone).replicated == []


def test_errors(mesh):
    with pytest.raises(ValueError, match=r"params/w: dim 0 .* does not divide by mesh axis fsdp=4"):
        abstract(lambda: {"w": jnp.zeros((6, 4))}, make_optimizer("sgd", 1.0), mesh, {"w": ("embed", "mlp")})
    with pytest.raises(ValueError, match="Parameter 'w' has no logical axes"):
        abstract(lambda: {"w": jnp.zeros((8, 4))}, make_optimizer("sgd", 1.0), mesh, {"v": ("embed", "mlp")})
