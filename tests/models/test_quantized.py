"""A model on a quantised base: its kernels' values, LoRA beside it, either layout, decoding, four devices as one, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.models import peft, quantized
from jaxllm.models.adapted import Adapted, merge
from jaxllm.models.model import Model
from jaxllm.models.presets import preset
from jaxllm.ops.quantize import KINDS, NF4, bits, is_quantized, whole
from jaxllm.parallel import rules
from jaxllm.parallel.mesh import make_mesh
from tests.models.drawn import random_params

QUICK = {"xla_backend_optimization_level": 0}
TOKENS = np.random.RandomState(0).randint(0, 256, (2, 12)).astype(np.int32)


@pytest.fixture(scope="module", params=KINDS)
def made(request):
    """(kind, model, base, the same base made whole again, adapters that do something)."""
    model = Model(preset("tiny_llama3"))
    base = jax.jit(lambda params: quantized.quantize_params(params, request.param), compiler_options=QUICK)(random_params(model, 0))
    adapters = peft.make(model, "lora", rank=2).init(jax.random.key(1), base)
    adapters = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(2), leaf.shape), adapters)
    return request.param, model, base, whole(base), adapters


@pytest.fixture(scope="module")
def logits(made):
    model = made[1]
    return jax.jit(lambda params: model.logits(params, model.apply(params, TOKENS)), compiler_options=QUICK)


def test_the_model_computes_with_the_dequantised_kernels(made, logits):
    kind, model, base, plain, _ = made
    np.testing.assert_allclose(logits(base), logits(plain), atol=2e-5)
    assert jax.tree.map(jnp.shape, plain) == jax.tree.map(jnp.shape, model.abstract())
    kernels = [leaf for leaf in jax.tree.leaves(base, is_leaf=is_quantized) if is_quantized(leaf)]
    assert len(kernels) == 7 and all(bits(leaf) < {"nf4": 4.5, "int8": 8.6}[kind] for leaf in kernels)
    assert model.num_params(base) == model.num_params(plain) == model.num_params()


def test_lora_learns_beside_it_and_gets_the_gradients_of_the_whole_base(made):
    _, model, base, plain, adapters = made

    def loss(adapters, base):
        params = Adapted(base, adapters)
        return -model.log_probs(params, model.apply(params, TOKENS[:, :-1]), TOKENS[:, 1:]).log_probs.mean()

    grad = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)
    (value, got), (expected_value, expected) = grad(adapters, base), grad(adapters, plain)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)
    for _ in range(10):
        value_after, slope = grad(adapters, base)
        adapters = jax.tree.map(lambda x, g: x - 0.05 * g, adapters, slope)
    assert value_after < value - 0.1


def test_dora_knows_the_norms_of_the_quantised_kernels(made, logits):
    _, model, base, plain, _ = made
    init = jax.jit(peft.make(model, "dora", rank=2, targets=("output", "up")).init, compiler_options=QUICK)
    adapters = init(jax.random.key(1), base)
    np.testing.assert_allclose(logits(Adapted(base, adapters)), logits(plain), atol=1e-4)  # B is zero, the magnitude is the norm


def test_merging_makes_the_base_whole(made, logits):
    _, _, base, plain, adapters = made
    merged = merge(base, adapters)
    assert not any(is_quantized(leaf) for leaf in jax.tree.leaves(merged, is_leaf=is_quantized))
    np.testing.assert_allclose(logits(merged), logits(Adapted(plain, adapters)), atol=1e-4)


def test_one_by_one_is_stacked(made, logits):
    kind, model, base, _, _ = made
    single = Model(model.config, scan_layers=False)
    apart = single.relayout(base, False)
    expected = jax.jit(lambda params: quantized.quantize_params(params, kind), compiler_options=QUICK)(random_params(single, 0))
    for a, b in zip(jax.tree.leaves(apart), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6 if a.dtype == np.float32 else 0)
    assert jax.tree.structure(apart) == jax.tree.structure(expected) == jax.tree.structure(quantized.abstract(single, kind))
    forward = jax.jit(lambda params: single.logits(params, single.apply(params, TOKENS)), compiler_options=QUICK)
    np.testing.assert_allclose(forward(apart), logits(base), atol=2e-5)


def test_cached_decode_is_the_full_forward(made, logits):
    _, model, base, _, _ = made

    def decoded(params):
        hidden, cache = model.decode(params, TOKENS[:, :8], model.init_cache(2, 12), fresh=True)
        return model.logits(params, jnp.concatenate([hidden, model.decode(params, TOKENS[:, 8:], cache)[0]], 1))

    np.testing.assert_allclose(jax.jit(decoded, compiler_options=QUICK)(base), logits(base), atol=3e-5)


def test_four_devices_are_one(made):
    kind, model, base, _, adapters = made
    model = Model(model.config, remat={"nf4": "full", "int8": "none"}[kind])

    def loss(adapters, base):
        params = Adapted(base, adapters)
        return -model.log_probs(params, model.apply(params, TOKENS[:, :-1]), TOKENS[:, 1:]).log_probs.mean()

    expected = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)(adapters, base)
    mesh = make_mesh({"fsdp": 2, "tensor": 2}, devices=jax.devices()[:4])
    lies = rules.shardings(quantized.axes(model, kind), mesh, quantized.abstract(model, kind))
    plain = jax.device_put(random_params(model, 0), rules.shardings(model.axes(), mesh, model.abstract()))
    cut = quantized.quantize_params(plain, kind, free=True)  # where the kernels lie
    assert jax.tree.map(lambda leaf, there: leaf.sharding == there, cut, lies) == jax.tree.map(lambda leaf: True, cut)
    assert plain["layers"]["scanned"]["0"]["mlp"]["up"]["kernel"].is_deleted() and not plain["embedding"]["tokens"].is_deleted()
    for a, b in zip(jax.tree.leaves(cut), jax.tree.leaves(base), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6 if a.dtype == np.float32 else 0)  # a mean is summed in another order
    with jax.set_mesh(mesh):
        got = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)(adapters, cut)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(got[1]), jax.tree.leaves(expected[1]), strict=True):
        assert np.linalg.norm(a - b) <= 2e-5 * np.linalg.norm(b)


def test_a_qlora_step_needs_less_than_half_of_what_lora_needs():
    model = Model(preset("tiny_llama3").replace(width=256, mlp_width=1024, num_layers=12), remat="full")
    adapters = peft.make(model, "lora", rank=2).abstract()

    def loss(adapters, base):
        params = Adapted(base, adapters)
        return jnp.sum(model.apply(params, TOKENS))

    def needed(base):
        memory = jax.jit(jax.grad(loss), compiler_options=QUICK).lower(adapters, base).compile().memory_analysis()
        return memory.argument_size_in_bytes + memory.temp_size_in_bytes

    small, large = needed(quantized.abstract(model, "nf4")), needed(model.abstract())
    assert small < 0.5 * large, small / large


def test_nf4_blocks_run_along_the_width():
    base = quantized.abstract(Model(preset("tiny_llama3"), scan_layers=False), "nf4")["layers"]["0"]
    for module in ("query", "key", "value", "output"):
        record = base["attention"][module]["kernel"]
        assert isinstance(record, NF4) and record.shape[record.along] == 64
    with pytest.raises(ValueError, match="96 does not divide by 64"):
        quantized.abstract(Model(preset("tiny_llama3").replace(width=96)), "nf4")
