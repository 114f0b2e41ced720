"""IA3, BitFit and bottleneck adapters against numpy, and where in a block they stand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.models import peft
from jaxllm.models.adapted import Adapted
from jaxllm.models.adapters import Bias, Bottleneck, Scale
from jaxllm.models.layers import Compute, Dense, Norm
from jaxllm.models.model import Model
from tests.models.tuned import GEMMA, LLAMA, base_of, drawn_of, far, program, tokens_of

STREAM = np.random.RandomState(0)
X, W, C = (STREAM.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 4), (4, 5), (5,)))


def dense(adapter, before=None):
    module = Dense("btd,df->btf", W.shape, ("embed", "mlp"), Compute(), 1.0, (5,), before, name="up")
    return module.apply({"params": {"kernel": W, "bias": C}, "adapters": {"own": adapter}}, X)


def test_ia3_multiplies_what_comes_out_or_what_goes_in():
    out, into = STREAM.standard_normal(5).astype(np.float32), STREAM.standard_normal(4).astype(np.float32)
    np.testing.assert_allclose(dense(Scale(out, "out")), (X @ W + C) * out, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dense(Scale(into, "in"), jnp.tanh), (np.tanh(X) * into) @ W + C, rtol=1e-5, atol=1e-5)


def test_bitfit_adds_to_linear_layers_and_norms():
    np.testing.assert_allclose(dense(Bias(2 * C)), X @ W + 3 * C, rtol=1e-5, atol=1e-5)
    norm, delta = Norm(LLAMA, Compute(), (4,)), np.arange(4, dtype=np.float32)
    scale = {"params": {"scale": np.full(4, 2.0, np.float32)}}
    np.testing.assert_allclose(norm.apply({**scale, "adapters": {"own": Bias(delta)}}, X), norm.apply(scale, X) + delta, rtol=1e-6)


def test_bitfit_has_a_vector_for_every_linear_layer_and_norm():
    model = Model(GEMMA, scan_layers=False)
    found = peft.make(model, "bitfit").axes()
    layer = found["layers"]["0"]
    assert sorted(layer) == ["attention", "attention_norm", "attention_output_norm", "mlp", "mlp_norm", "mlp_output_norm"]
    assert sorted(layer["attention"]) == ["key", "output", "query", "value"] and sorted(layer["mlp"]) == ["down", "gate", "up"]
    assert found["final_norm"]["bitfit"].value == ("norm",)


@pytest.mark.parametrize(("activation", "f"), [("relu", lambda x: np.maximum(x, 0)), ("silu", lambda x: x / (1 + np.exp(-x)))])
def test_a_bottleneck_is_its_equation(activation, f):
    down, inner, up, outer = (STREAM.standard_normal(shape).astype(np.float32) for shape in ((4, 2), (2,), (2, 4), (4,)))
    found = Bottleneck(down, inner, up, outer, activation, 4.0)(jnp.asarray(X), Compute())
    np.testing.assert_allclose(found, 4 * (f(X @ down + inner) @ up + outer), rtol=1e-5, atol=1e-5)


PLACES = {"houlsby": ("after_attention", "after_mlp"), "pfeiffer": ("after_mlp",), "parallel": ("beside_mlp",)}


@pytest.mark.parametrize("name", PLACES)
def test_sizes_and_places(name):
    model = Model(LLAMA)
    method = peft.make(model, name)
    layer = method.abstract()["layers"]["scanned"]["0"]
    assert sorted(layer) == sorted(PLACES[name])
    entry = layer[PLACES[name][0]]
    width = LLAMA.width // (2 if name == "parallel" else 16)
    assert entry.down.shape == (LLAMA.num_layers, LLAMA.width, width)
    assert (entry.activation, entry.scale) == {"houlsby": ("silu", 1.0), "pfeiffer": ("relu", 1.0), "parallel": ("relu", 4.0)}[name]


def test_an_adapter_after_the_mlp_reads_its_output_and_one_beside_it_its_input():
    """With the MLP's own product silenced, what comes after it sees nothing, and what is beside it does."""
    silent = jax.tree_util.tree_map_with_path(lambda path, x: 0 * x if "down" in str(path) else x, base_of())
    plain = program()(silent, tokens_of())
    for name, shows in (("pfeiffer", False), ("parallel", True)):
        adapters = jax.tree_util.tree_map_with_path(lambda path, x: 0 * x if "bias" in str(path[-1]) else x, drawn_of(name))
        assert (far(program()(Adapted(silent, adapters), tokens_of()), plain) > 0.01) == shows
