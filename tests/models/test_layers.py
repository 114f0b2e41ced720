"""Look-up, norms and activations against their definitions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.models.config import CHOICES
from jaxllm.models.layers import ACTIVATIONS, MLP, Compute, Dense, Norm, logical_axes, look_up
from jaxllm.models.presets import preset
from jaxllm.parallel import rules
from jaxllm.parallel.mesh import make_mesh

TABLE = np.random.RandomState(0).standard_normal((24, 16)).astype(np.float32)
TOKENS = np.random.RandomState(1).randint(0, 24, (4, 6)).astype(np.int32)


@pytest.mark.parametrize("sizes", [{"fsdp": 2, "tensor": 2, "context": 2}, {"replica": 2, "tensor": 4}])
def test_look_up_on_a_mesh(sizes):
    """Values and the table's gradient, which comes back cut as the table is stored; tokens outside the vocabulary give NaN."""
    mesh = make_mesh(sizes)
    up = np.random.RandomState(2).standard_normal((4, 6, 16)).astype(np.float32)

    outside = TOKENS.copy()
    outside[0, 0], outside[1, 0] = 24, -1

    def f(table, tokens, outside):
        return jax.vjp(lambda t: look_up(t, tokens, "float32"), table)[1](up)[0], look_up(table, outside, "float32")

    with jax.set_mesh(mesh):
        table = jax.device_put(TABLE, jax.NamedSharding(mesh, rules.spec(("vocab", "embed"), rules.STORED)))
        gradient, rows = jax.jit(f)(table, TOKENS, outside)
    assert gradient.sharding.shard_shape(gradient.shape) == table.sharding.shard_shape(table.shape)
    expected = np.zeros_like(TABLE)
    np.add.at(expected, TOKENS, up)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)
    wanted = TABLE[TOKENS]
    wanted[0, 0] = wanted[1, 0] = np.nan
    np.testing.assert_allclose(rows, wanted)


def test_look_up_alone_gives_nan_outside():
    assert np.isnan(look_up(jnp.asarray(TABLE), jnp.asarray([[24]]), "float32")).all()


@pytest.mark.parametrize("kind", CHOICES["norm"])
@pytest.mark.parametrize("shape", [(16,), (2, 8)])
def test_norms_by_definition(kind, shape):
    config = preset("tiny_llama3").replace(norm=kind, norm_epsilon=1e-3)
    x = np.random.RandomState(0).standard_normal((3, 5, *shape)).astype(np.float32)
    scale, bias = np.linspace(0.5, 2, 16).reshape(shape), np.linspace(-1, 1, 16).reshape(shape)
    params = {"scale": scale} | ({"bias": bias} if kind == "layernorm" else {})
    dims = tuple(range(2, x.ndim))
    centred = x - x.mean(dims, keepdims=True) if kind == "layernorm" else x
    expected = centred / np.sqrt((centred**2).mean(dims, keepdims=True) + 1e-3) * scale + (bias if kind == "layernorm" else 0)
    got = Norm(config, Compute(), shape).apply({"params": params}, x)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_bias_gradient_is_summed_in_float32():
    dense = Dense("btd,df->btf", (2, 3), ("embed", "mlp"), Compute("bfloat16"), 0.1, (3,), name="up")
    x, params = jnp.zeros((8, 1024, 2), jnp.bfloat16), {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}
    up = jnp.asarray(np.random.RandomState(0).standard_normal((8, 1024, 3)) + 0.5, jnp.bfloat16)
    y, backward = jax.vjp(lambda p: dense.apply({"params": p}, x), params)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(backward(up)[0]["bias"], np.asarray(up, np.float64).sum((0, 1)), rtol=1e-5)


@pytest.mark.parametrize("name", CHOICES["activation"])
@pytest.mark.parametrize("gated", [True, False])
def test_mlp_by_definition(name, gated):
    assert name in ACTIVATIONS
    config = preset("tiny_llama3").replace(activation=name, gated_mlp=gated, mlp_bias=True)
    draw = np.random.RandomState(0)
    x = draw.standard_normal((2, 3, 64)).astype(np.float32)
    shapes = {"gate": (64, 128), "up": (64, 128), "down": (128, 64)}
    p = {k: {"kernel": draw.standard_normal(s) / 8, "bias": draw.standard_normal(s[1])} for k, s in shapes.items() if gated or k != "gate"}
    up = x @ p["up"]["kernel"] + p["up"]["bias"]
    formulas = {
        "silu": lambda z: z / (1 + np.exp(-z)),
        "gelu": lambda z: z * 0.5 * (1 + np.vectorize(math.erf)(z / 2**0.5)),
        "gelu_tanh": lambda z: z * 0.5 * (1 + np.tanh((2 / np.pi) ** 0.5 * (z + 0.044715 * z**3))),
        "relu": lambda z: np.maximum(z, 0),
        "relu2": lambda z: np.maximum(z, 0) ** 2,
    }
    hidden = formulas[name](x @ p["gate"]["kernel"] + p["gate"]["bias"]) * up if gated else formulas[name](up)
    got = MLP(config, Compute()).apply({"params": p}, x)
    np.testing.assert_allclose(got, hidden @ p["down"]["kernel"] + p["down"]["bias"], atol=2e-4)


def test_an_unknown_parameter_has_no_axes():
    with pytest.raises(KeyError):
        logical_axes(("layers", "0", "mlp", "sideways", "kernel"), 2)
