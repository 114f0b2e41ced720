"""Sharded = unsharded: loss and every gradient leaf, for each mesh axis and for three of them together."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.models.model import Model
from jaxllm.models.presets import preset
from jaxllm.ops.attention import zigzag_order
from jaxllm.parallel import rules
from jaxllm.parallel.mesh import make_mesh
from tests.models.drawn import random_params

QUICK = {"xla_backend_optimization_level": 0}  # compiles twice as fast
B, T = 8, 16
MESHES = {
    "replica": {"replica": 8},
    "fsdp": {"fsdp": 8},
    "tensor": {"tensor": 8},
    "context": {"context": 8},
    "three": {"replica": 2, "fsdp": 2, "tensor": 2},
    "all": {"fsdp": 2, "context": 2, "tensor": 2},
}
MODELS = {
    "llama": preset("tiny_llama3").replace(num_heads=16, num_kv_heads=8, head_dim=8),
    "gemma": preset("tiny_gemma2").replace(num_heads=16, num_kv_heads=8, head_dim=8, logit_softcap=5.0, num_layers=2),
    "gpt2": preset("tiny_gpt2").replace(num_heads=8, num_kv_heads=8, head_dim=8),
    "olmo2": preset("tiny_olmo2").replace(num_heads=16, num_kv_heads=8, head_dim=8),
}
MODELS["few"] = MODELS["olmo2"].replace(num_kv_heads=2, qkv_bias=True)  # fewer kv heads than the axis `tensor` has devices
MODELS["dropping"] = MODELS["llama"].replace(residual_dropout=0.2, attention_dropout=0.2, embedding_dropout=0.2)


def batch(vocab_size: int) -> dict[str, np.ndarray]:
    """Two documents a row, cut at a different place in each."""
    draw = np.random.RandomState(0)
    cut = draw.randint(3, T - 3, (B, 1))
    index = np.arange(T)[None]
    tokens = draw.randint(0, vocab_size, (B, T + 1)).astype(np.int32)
    segments = np.where(index < cut, 1, 2).astype(np.int32)
    positions = np.where(index < cut, index, index - cut).astype(np.int32)
    weights = (draw.rand(B, T) < 0.8).astype(np.float32)
    named = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "segments": segments, "positions": positions, "weights": weights}
    return named | {"row": np.arange(B, dtype=np.int32) + 100}


def loss(model: Model, params, data):
    where = {"segments": data["segments"], "positions": data["positions"], "rows": data["row"]}
    hidden = model.apply(params, data["tokens"], **where, rng=jax.random.key(5) if model.config.residual_dropout else None)
    return -jnp.sum(model.log_probs(params, hidden, data["targets"]).log_probs * data["weights"])


_alone: dict = {}


def alone(name: str):
    """Parameters, loss and gradients on one device."""
    if name not in _alone:
        model = Model(MODELS[name])
        params = random_params(model, seed=1)
        _alone[name] = jax.device_get(
            (params, *jax.jit(jax.value_and_grad(lambda p, d: loss(model, p, d)), compiler_options=QUICK)(params, batch(320)))
        )
    return _alone[name]


def on_mesh(model: Model, sizes: dict[str, int], params, data):
    """Loss and gradients with stored shardings in and out, and the compiled program's text."""
    mesh = make_mesh(sizes)
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        stored = rules.shardings(model.axes(), mesh, model.abstract())
        placed = {n: jax.NamedSharding(mesh, rules.spec(("batch", "sequence")[:n], rules.COMPUTE)) for n in (1, 2)}
        data = {k: jax.device_put(v, placed[v.ndim]) for k, v in data.items()}
        params = jax.device_put(params, stored)
        step = jax.jit(jax.value_and_grad(lambda p, d: loss(model, p, d)), out_shardings=(None, stored))
        compiled = step.lower(params, data).compile(QUICK)
        return *jax.device_get(compiled(params, data)), compiled.as_text()


def check(value, grads, expected_value, expected_grads):
    total = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(expected_grads)))
    assert abs(value - expected_value) < 1e-6 * abs(expected_value)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(expected_grads), strict=True):
        name = rules.path_name(path)
        if name.endswith("key/bias") and np.linalg.norm(b) < 1e-7 * total:  # not rotated, softmax does not see it: 0 but for rounding
            assert np.linalg.norm(a) < 1e-7 * total, name
        else:
            assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b), name


def no_device_holds_a_whole_table(text: str, V: int, D: int):
    """Nothing as large as the embedding is all-reduced: its gradient is scattered as it is summed."""
    assert f"f32[{V},{D // 8}]" in text  # a device's part
    reduced = [line for line in text.splitlines() if " all-reduce(" in line and f"[{V},{D}]" in line]
    assert not reduced, reduced


CASES = [("llama", "replica"), ("llama", "fsdp"), ("llama", "tensor"), ("llama", "context"), ("llama", "three")]
CASES += [("gpt2", "three"), ("olmo2", "tensor"), ("gemma", "all"), ("dropping", "three"), ("dropping", "context"), ("few", "tensor")]


@pytest.mark.parametrize(("name", "mesh"), CASES)
def test_sharded_equals_unsharded(name, mesh):
    params, *expected = alone(name)
    value, grads, text = on_mesh(Model(MODELS[name]), MESHES[mesh], params, batch(320))
    check(value, grads, *expected)
    if mesh == "fsdp":
        no_device_holds_a_whole_table(text, MODELS[name].vocab_size, MODELS[name].width)


@pytest.mark.parametrize("name", ["llama", "dropping"])
def test_zigzag_order_and_ring_change_nothing(name):
    params, *expected = alone(name)
    order = zigzag_order(T, 4)
    data = {k: v[:, order] if v.ndim == 2 else v for k, v in batch(320).items()}
    value, grads, _ = on_mesh(Model(MODELS[name], context="ring", remat="full"), {"fsdp": 2, "context": 4}, params, data)
    check(value, grads, *expected)


def test_microbatches_drop_the_same():
    """Every second row each: the sum of the halves' losses is the whole one's, and so are the gradients."""
    params, *expected = alone("dropping")
    step = jax.jit(jax.value_and_grad(lambda p, d: loss(Model(MODELS["dropping"]), p, d)), compiler_options=QUICK)
    halves = [step(params, {k: v[i::2] for k, v in batch(320).items()}) for i in range(2)]
    check(*jax.device_get(jax.tree.map(jnp.add, *halves)), *expected)


@pytest.fixture
def never_kept():
    """What is compiled here is not kept between runs: a program out of the cache writes no dump."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, float("inf"))
    yield
    jax.config.update(name, before)


def partitioned(model: Model, sizes: dict[str, int], folder) -> str:
    """The gradient's program as the partitioner leaves it: later the CPU widens all of bfloat16."""
    mesh, data = make_mesh(sizes), batch(320)
    dump = {"xla_dump_to": str(folder), "xla_dump_hlo_pass_re": "spmd-partitioning"}
    with jax.set_mesh(mesh):
        stored = rules.shardings(model.axes(), mesh, model.abstract())
        params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), model.abstract(), stored)
        jax.jit(jax.grad(lambda p: loss(model, p, data)), out_shardings=stored).lower(params).compile({**QUICK, **dump})
    return next(folder.glob("*after_spmd-partitioning*")).read_text()


def results(text: str, collective: str) -> Counter:
    """How often each type and shape comes out of this collective."""
    return Counter(re.findall(rf"= (\w+\[[\d,]+\])\S* {collective}\(", text))


V, D, N, K, H, F = 320, 64, 16, 8, 8, 128  # of MODELS["llama"]
LAYER = [(D, N, H), (D, K, H), (D, K, H), (N, H, D), (D, F), (D, F), (F, D)]  # its matrices


@pytest.mark.usefixtures("never_kept")
@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("scan_layers", [True, False])
def test_weights_travel_in_the_compute_dtype(tmp_path, remat, scan_layers):
    """Over `fsdp`, layers, embedding and head: gathered for the forward and again for the backward pass; the tables' gradients are wide."""
    text = partitioned(Model(MODELS["llama"], dtype="bfloat16", remat=remat, scan_layers=scan_layers), {"fsdp": 8}, tmp_path)
    gathered, narrow = results(text, "all-gather"), lambda shapes: Counter(f"bf16[{','.join(map(str, shape))}]" for shape in shapes)
    assert set(gathered) == set(narrow([*LAYER, (V, D), (D, V)]))
    programs = 1 if scan_layers else MODELS["llama"].num_layers
    for name, number in narrow(LAYER).items():
        assert gathered[name] == 2 * number * programs, name
    assert set(results(text, "reduce-scatter")) == {"f32[320,8]", "f32[8,320]"}


@pytest.mark.usefixtures("never_kept")
def test_gradients_of_gathered_keys_are_summed_in_float32(tmp_path):
    text = partitioned(Model(MODELS["llama"], dtype="bfloat16", context="gather"), {"context": 8}, tmp_path)
    assert results(text, "reduce-scatter")[f"f32[{B},{K},{T // 8},{H}]"] == 2  # dk and dv
    assert not any(name.startswith("bf16") for name in results(text, "reduce-scatter"))


@pytest.mark.parametrize("mesh", ["fsdp", "context", "all"])
def test_bfloat16_on_a_mesh_is_as_near_float32_as_on_one_device(mesh):
    """Sums are cut, and rounded, at other places on a mesh: its error is another draw of the size of one device's own.

    A quarter more is allowed, for sums over devices that are rounded themselves. Two independent draws of size e are sqrt(2) * e apart. The
    loss is a sum of float32 numbers, each of a hidden state that is rounded to 8 bits: off by at most 2**-9.
    """
    params, _, exact = alone("llama")
    model = Model(MODELS["llama"], dtype="bfloat16")
    value, one = jax.device_get(jax.jit(jax.value_and_grad(lambda p, d: loss(model, p, d)), compiler_options=QUICK)(params, batch(320)))
    other, many, _ = on_mesh(model, MESHES[mesh], params, batch(320))
    assert abs(value - other) < 2**-9 * abs(value)
    for (path, e), a, b in zip(jax.tree_util.tree_leaves_with_path(exact), jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        name, size = rules.path_name(path), np.linalg.norm(a - e)
        assert np.linalg.norm(b - e) < 1.25 * size, (name, np.linalg.norm(b - e) / size)
        assert np.linalg.norm(a - b) < 1.25 * 2**0.5 * size, (name, np.linalg.norm(a - b) / size)
