"""Every optimizer against an independent reference, sharded against unsharded, and what is decayed, frozen and kept in bfloat16."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from jaxllm.parallel.mesh import make_mesh
from jaxllm.training.masks import is_matrix, named_axes
from jaxllm.training.optimizers import OPTIMIZERS, WEIGHT_DECAY, make_optimizer
from jaxllm.training.state import create

MATRICES = {
    "embedding": True,
    "head": True,
    "blocks": {"query": True, "output": True, "bias": False, "up": True, "down": True, "norm": False},
}


def walk(optimizer, steps=4, params=None, number_steps=False):
    """Parameters after some updates with drawn gradients."""
    params = toy.init() if params is None else params
    state = optimizer.init(params)

    @jax.jit
    def update(grads, state, params, step):
        updates, state = optimizer.update(grads, state, params, **({"step": step} if number_steps else {}))
        return optax.apply_updates(params, updates), state

    for step in range(steps):
        grads = jax.tree.map(lambda p, full: p, toy.gradients(step), toy.init())
        params, state = update(jax.tree.map(lambda g, p: g if p is not None else None, grads, params), state, params, step)
    return params, state


def assert_close(ours, theirs, rtol=2e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), ours, theirs)


REFERENCES = {
    "adamw": lambda: optax.adamw(1e-2, 0.9, 0.95, 1e-8, weight_decay=0.1, mask=MATRICES),
    "lion": lambda: optax.lion(1e-2, 0.9, 0.99, weight_decay=0.1, mask=MATRICES),
    "sgd": lambda: optax.chain(optax.trace(0.9), optax.add_decayed_weights(0.1, MATRICES), optax.scale(-1e-2)),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_equals_optax(name):
    ours, _ = walk(make_optimizer(name, 1e-2, axes=toy.AXES, weight_decay=0.1), number_steps=True)
    theirs, _ = walk(REFERENCES[name]())
    assert_close(ours, theirs)


def test_adafactor_equals_optax_on_single_layers_and_treats_stacks_as_layers():
    ours, state = walk(make_optimizer("adafactor", 1e-2, axes=toy.AXES, min_dim_size_to_factor=8), number_steps=True)

    def layer(tree, i):
        return {**tree, "blocks": layer_of(tree, i)}

    reference = optax.adafactor(1e-2, min_dim_size_to_factor=8)
    update = jax.jit(reference.update)
    for i in range(toy.L):
        params = layer(toy.init(), i)
        inner = reference.init(params)
        for step in range(4):
            updates, inner = update(layer(toy.gradients(step), i), inner, params)
            params = optax.apply_updates(params, updates)
        assert_close(layer(ours, i), params, rtol=1e-4)
    rows = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, optax.FactoredState))[0].v_row
    assert rows["head"].shape == (toy.D,) and rows["blocks"]["up"].shape == (toy.L, toy.D)


def numpy_newton_schulz(x):
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def test_muon_equals_numpy_on_hidden_matrices_and_adamw_elsewhere():
    ours, _ = walk(make_optimizer("muon", 1e-2, axes=toy.AXES, weight_decay=0.1), number_steps=True)
    theirs, _ = walk(REFERENCES["adamw"]())
    for name in ("embedding", "head"):
        assert_close(ours[name], theirs[name])
    for name in ("bias", "norm"):
        assert_close(ours["blocks"][name], theirs["blocks"][name])

    rows = {"query": toy.D, "output": toy.N * toy.H, "up": toy.D, "down": toy.F}
    for name, num_rows in rows.items():
        for i in range(toy.L):
            start = np.asarray(toy.init()["blocks"][name][i], np.float64)
            param, mean = start.reshape(num_rows, -1), 0.0
            for step in range(4):
                grad = np.asarray(toy.gradients(step)["blocks"][name][i], np.float64).reshape(num_rows, -1)
                mean = 0.95 * mean + 0.05 * grad
                direction = numpy_newton_schulz(0.95 * mean + 0.05 * grad)
                param = param - 1e-2 * (0.2 * np.sqrt(max(param.shape)) * direction + 0.1 * param)
            np.testing.assert_allclose(ours["blocks"][name][i].reshape(num_rows, -1), param, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("rms", [0.2, None])
def test_muons_first_update_equals_optax(rms):
    params = {"up": toy.init()["blocks"]["up"][0], "down": toy.init()["blocks"]["down"][0]}
    grads = {"up": toy.gradients()["blocks"]["up"][0], "down": toy.gradients()["blocks"]["down"][0]}
    theirs = optax.contrib.muon(1.0, consistent_rms=rms)
    ours = make_optimizer("muon", 1.0, axes={"up": ("embed", "mlp"), "down": ("mlp", "embed")}, rms=rms, weight_decay=0.0)
    assert_close(
        jax.jit(ours.update)(grads, ours.init(params), params, step=0)[0],
        theirs.update(grads, theirs.init(params), params)[0],
        rtol=1e-4,
        atol=1e-5,
    )


def layer_of(tree, i):
    """Layer number i of the blocks."""
    return jax.tree.map(lambda leaf: leaf[i], tree["blocks"])


def unstacked(tree):
    """The tree with a subtree for each layer."""
    return {name: leaf for name, leaf in tree.items() if name != "blocks"} | {f"layer{i}": layer_of(tree, i) for i in range(toy.L)}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scanned_layers_equal_unscanned_layers(name):
    axes = {**{k: v for k, v in toy.AXES.items() if k != "blocks"}}
    axes |= {f"layer{i}": {k: v[1:] for k, v in toy.AXES["blocks"].items()} for i in range(toy.L)}
    options = {"min_dim_size_to_factor": 8} if name == "adafactor" else {}
    stacked, single = make_optimizer(name, 1e-2, axes=toy.AXES, **options), make_optimizer(name, 1e-2, axes=axes, **options)
    params, grads = toy.init(), toy.gradients()
    ours = unstacked(jax.jit(stacked.update)(grads, stacked.init(params), params, step=0)[0])
    theirs = jax.jit(single.update)(unstacked(grads), single.init(unstacked(params)), unstacked(params), step=0)[0]
    assert_close(ours, theirs, rtol=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sharded_equals_unsharded(name):
    options = {"min_dim_size_to_factor": 8} if name == "adafactor" else {}
    optimizer = make_optimizer(name, 1e-2, axes=toy.AXES, **options)
    expected, _ = walk(optimizer, 3, number_steps=True)
    mesh = make_mesh({"replica": 1, "fsdp": 4, "tensor": 2})
    state = create(toy.init, optimizer, mesh, toy.AXES)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, (state.params, state.opt_state))
    with jax.set_mesh(mesh):

        @jax.jit
        def update(grads, state, params, step):
            updates, state = optimizer.update(grads, state, params, step=step)
            return jax.lax.with_sharding_constraint((optax.apply_updates(params, updates), state), shardings)

        params, opt_state = state.params, state.opt_state
        for step in range(3):
            params, opt_state = update(jax.device_put(toy.gradients(step), shardings[0]), opt_state, params, step)
    assert_close(params, expected, rtol=1e-4)


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"replica": 2, "fsdp": 2, "tensor": 2}])
def test_newton_schulz_is_local_to_each_device(sizes):
    """Matrices travel once there and once back, by all-to-all; while they are multiplied, whole, nothing travels at all."""
    mesh = make_mesh(sizes)
    optimizer = make_optimizer("muon", 1e-2, axes=toy.AXES, freeze="embedding|head|bias|norm")
    state = create(toy.init, optimizer, mesh, toy.AXES)
    grads = jax.device_put(toy.gradients(), jax.tree.map(lambda p: p.sharding, state.params))
    with jax.set_mesh(mesh):
        text = jax.jit(lambda g, s, p: optimizer.update(g, s, p, step=0)).lower(grads, state.opt_state, state.params).compile().as_text()
    moves = re.findall(r"= .* (all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute)\(", text)
    assert moves.count("all-to-all") >= 2 and set(moves) <= {"all-to-all"} | ({"all-gather"} if "tensor" in sizes else set()), moves
    gathered = [tuple(map(int, shape.split(","))) for shape in re.findall(r"= f32\[([0-9,]+)\]\S* all-gather\(", text)]
    assert all(toy.D not in shape for shape in gathered), gathered  # over `tensor` only, rows still cut over `fsdp`
    products = {tuple(map(int, shape.split(",")))[-2:] for shape in re.findall(r"= f32\[([0-9,]+)\]\S* dot\(", text)}
    assert products == {(toy.D, toy.D), (toy.D, toy.F)}
    stacks = {shape.split(",")[0] for shape in re.findall(r"= f32\[([0-9]+,[0-9]+,[0-9]+)\]\S* dot\(", text)}
    assert stacks <= {str(8 // sizes["fsdp"])}  # of 8 matrices of one shape each device has its share (and no dim for a share of 1)


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd", "muon"])
def test_first_moment_in_bfloat16(name):
    ours, state = walk(make_optimizer(name, 1e-3, axes=toy.AXES, momentum_dtype="bfloat16"), number_steps=True)
    theirs, _ = walk(make_optimizer(name, 1e-3, axes=toy.AXES), number_steps=True)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.bfloat16]
    assert sum(leaf.size for leaf in moments) == sum(p.size for p in jax.tree.leaves(ours))
    assert_close(ours, theirs, rtol=0.1, atol=3e-3)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(ours))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_of_bfloat16_parameters_are_float32(name):
    low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), toy.init())
    state = make_optimizer(name, 1e-3, axes=toy.AXES).init(low)
    assert {leaf.dtype for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)} == {jnp.dtype("float32")}


def test_the_second_moment_of_bfloat16_parameters_follows_the_gradients():
    """In bfloat16, 0.999 times a number is that number: it would never forget the large gradient that came first."""
    optimizer = make_optimizer("adamw", 1e-3, b2=0.999)
    params = {"w": jnp.ones((4, 4), jnp.bfloat16)}
    state = optimizer.init(params)

    @jax.jit
    def update(grad, state, step):
        after = optimizer.update({"w": jnp.full((4, 4), grad)}, state, params, step=step)[1]
        return jax.tree.map(lambda old, new: new.astype(old.dtype), state, after)  # as the training step does

    for step in range(2000):
        state = update(1.0 if step == 0 else 0.01, state, step)
    (second,) = (leaf.nu["w"] for leaf in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "nu")) if hasattr(leaf, "nu"))
    np.testing.assert_allclose(second, 1e-3 * 0.999**1999 + 1e-4 * (1 - 0.999**1999), rtol=1e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_bfloat16_parameters_is_that_of_float32_ones(name):
    """Nothing in it is rounded to the parameters' dtype on the way; small and factored matrices."""
    params = {"small": jnp.ones((4, 4)), "large": jnp.ones((256, 256))}
    optimizer = make_optimizer(name, 1e-3, axes={"small": ("embed", "mlp"), "large": ("embed", "mlp")})
    states = []
    for dtype in ("float32", "bfloat16"):
        ours = jax.tree.map(lambda p, dtype=dtype: p.astype(dtype), params)
        state, update = optimizer.init(ours), jax.jit(optimizer.update)
        for step in range(20):
            grads = jax.tree.map(lambda p, step=step: jnp.full(p.shape, 1.0 if step == 0 else 0.01), params)
            state = update(grads, state, ours, step=step)[1]
        states.append(state)
    assert_close(states[1], states[0], rtol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_is_for_matrices(name):
    """With zero gradients, what moves is what decays."""
    optimizer = make_optimizer(name, 0.5, axes=toy.AXES, weight_decay=0.1)
    params = toy.init()
    updates, _ = jax.jit(optimizer.update)(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params, step=0)
    expected = jax.tree.map(lambda p, decays: -0.05 * p if decays else 0 * p, params, MATRICES)
    assert_close(updates, expected, atol=1e-7)


def test_decay_by_name():
    optimizer = make_optimizer("adamw", 0.5, axes=toy.AXES, weight_decay=0.1, decay=["^head$", "norm"])
    params = toy.init()
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params, step=0)
    moved = [name for name, leaf in zip(named_axes(toy.AXES), jax.tree.leaves(updates), strict=True) if np.abs(leaf).max() > 0]
    assert moved == ["blocks/norm", "head"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_have_no_state_and_no_update(name):
    optimizer = make_optimizer(name, 1e-2, axes=toy.AXES, freeze=["embedding", "blocks/(query|norm)"])
    params = toy.init()
    state = optimizer.init(params)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert not [n for n in names if "embedding" in n or "query" in n or "norm" in n] and [n for n in names if "output" in n]
    updates, _ = jax.eval_shape(lambda: optimizer.update(toy.gradients(), state, params, step=0))
    assert updates["embedding"] is None and updates["blocks"]["query"] is None and updates["head"] is not None
    assert optimizer.trainable(params)["blocks"] == {"query": False, "output": True, "bias": True, "up": True, "down": True, "norm": False}


def test_the_rate_follows_the_step_of_the_run():
    optimizer = make_optimizer("sgd", lambda step: 1.0 + step, axes=toy.AXES, momentum=0.0)
    params, grads = toy.init(), toy.gradients()
    updates, _ = optimizer.update(grads, optimizer.init(params), params, step=jnp.asarray(6))
    assert_close(updates, jax.tree.map(lambda g: -7 * g, grads))


def test_without_axes_only_plain_matrices_count():
    assert is_matrix((3, 4), None) and not is_matrix((2, 3, 4), None) and not is_matrix((4,), None)


def test_every_row_has_a_weight_decay():
    assert set(WEIGHT_DECAY) == set(OPTIMIZERS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_optimizer("adamv", 1.0), "Unknown optimizer 'adamv'. Choose one of: adamw, .* Did you mean 'adamw'"),
        (lambda: make_optimizer("adamw", 1.0, b3=1), "'adamw' has no option 'b3'. Its options: b1, b2, eps, momentum_dtype"),
        (
            lambda: make_optimizer("adamw", 1.0, freeze="kernel").init(toy.init()),
            "No parameter's name matches 'kernel'. The names are: blocks/bias",
        ),
        (lambda: make_optimizer("adamw", 1.0, freeze="(").init(toy.init()), "'\\(' is not a regular expression"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
