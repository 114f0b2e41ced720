"""Every method of parameter-efficient tuning: where it starts, what it changes, what it never touches, and that it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.losses.terms import Term
from jaxllm.models import peft
from jaxllm.models.adapted import Adapted, Adapter
from jaxllm.models.model import Model
from jaxllm.models.presets import preset
from jaxllm.parallel import rules
from jaxllm.parallel.mesh import make_mesh
from jaxllm.training import state
from jaxllm.training.optimizers import make_optimizer
from jaxllm.training.step import make_step
from tests.models.tuned import (
    GEMMA,
    GPT2,
    LLAMA,
    ONE,
    QUICK,
    B,
    T,
    V,
    base_of,
    drawn_of,
    far,
    logits,
    of,
    program,
    quick_jit,
    start_of,
    tokens_for,
    tokens_of,
)

MERGE = ("lora", "rslora", "dora", "ia3", "last_n")
EVERY = pytest.mark.parametrize("name", peft.METHODS)


@EVERY
def test_starts_as_the_base(name):
    run, base, start = program(), base_of(), start_of(name)
    found, plain = run(Adapted(base, start), tokens_of()), run(base, tokens_of())
    if name in ("houlsby", "pfeiffer"):  # near it: what is added is of second order in matrices of deviation 0.01 and 0.02
        assert 0 < far(found, plain) < 0.02 * np.abs(plain).max()
    elif name == "dora":  # a norm divided by itself
        assert far(found, plain) < 1e-5 * np.abs(plain).max()
    else:
        np.testing.assert_array_equal(found, plain)
    shown = run(Adapted(base, drawn_of(name)), tokens_for(name))
    assert np.isfinite(shown).all() and far(shown[:, -T:], plain) > 0.1, "it changes nothing at all"


@EVERY
def test_merges_exactly_or_says_that_it_cannot(name):
    method, base, drawn = of(name), base_of(), drawn_of(name)
    if name not in MERGE:
        with pytest.raises(ValueError, match=r"no change of weights|no bias in the base"):
            method.merge(base, drawn)
        return
    run = program()
    adapted, merged = run(Adapted(base, drawn), tokens_of()), run(method.merge(base, drawn), tokens_of())
    assert far(adapted, merged) < 1e-5 * np.abs(adapted).max()


def test_biases_merge_where_the_base_has_them():
    base, drawn, run = base_of(GPT2), drawn_of("bitfit", GPT2), program(GPT2)
    merged = of("bitfit", GPT2).merge(base, drawn)
    assert far(run(Adapted(base, drawn), tokens_of()), run(merged, tokens_of())) < 1e-5
    assert far(run(merged, tokens_of()), run(base, tokens_of())) > 0.1


@EVERY
def test_axes_and_shapes_are_those_of_the_tree_in_either_layout(name):
    for scan_layers in (True, False):
        method = of(name, GEMMA, scan_layers=scan_layers)
        shapes, axes = method.abstract(), method.axes()
        jax.tree.map(lambda shape, names: len(shape.shape) == len(names) or pytest.fail(f"{shape} {names}"), shapes, axes)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
        other = method.relayout(shapes, not scan_layers)
        assert jax.tree.map(lambda x: x.shape, other) == jax.tree.map(
            lambda x: x.shape, of(name, GEMMA, scan_layers=not scan_layers).abstract()
        )


def data_of(name):
    tokens = tokens_for(name)
    weights = np.broadcast_to(np.arange(tokens.shape[1] - 1) >= of(name).num_soft, (B, tokens.shape[1] - 1))
    return {"tokens": tokens[:, :-1], "targets": np.where(tokens[:, 1:] < V, tokens[:, 1:], 0), "weights": weights.astype(np.float32)}


def loss(model, learned, frozen, batch, rng):
    """Of a model with a base; `open` 0 closes the way of the gradient."""
    learned = jax.tree.map(lambda x: jax.lax.stop_gradient(x) + frozen["open"] * (x - jax.lax.stop_gradient(x)), learned)
    params = Adapted(frozen["base"], learned)
    found = model.fused_cross_entropy(params, model.apply(params, batch["tokens"]), batch["targets"], batch["weights"])[0]
    return {"cross_entropy": Term(found, 1.0)}, {}


def totals(batch):
    return {"cross_entropy": batch["weights"].sum()}


@EVERY
def test_learns_and_leaves_the_base_alone(name):
    """A batch is memorised in 20 steps; with its gradient zeroed nothing moves, and the base never does, bit for bit."""
    method = of(name, ONE)
    optimizer = make_optimizer("adamw", 0.03, axes=method.axes(), weight_decay=0.0)
    step = quick_jit(make_step(functools.partial(loss, method.model), totals, optimizer, axes=method.axes()))
    data, base = data_of(name), jax.tree.map(jnp.asarray, base_of(ONE))

    def run(open, steps):
        params = jax.tree.map(jnp.asarray, start_of(name, ONE))
        now = state.TrainState(jnp.int32(0), params, optimizer.init(params))
        losses = []
        for _ in range(steps):
            now, report = step(now, {"base": base, "open": open}, data)
            losses.append(float(report["loss"]))
        return now, losses

    now, losses = run(1.0, 20)
    assert losses[-1] < losses[0] - 0.5, losses
    moved = jax.tree.map(far, now.params, start_of(name, ONE))
    assert all(x > 0 for x in jax.tree.leaves(moved)), moved
    jax.tree.map(np.testing.assert_array_equal, base, base_of(ONE))
    _, closed = run(0.0, 3)
    assert closed[0] == closed[-1] == losses[0]


# Every kind of adapter at once: one program shows what holds for each of them.


def joined(a, b):
    if isinstance(a, Adapter) or isinstance(b, Adapter):
        return b
    return {k: joined(a[k], b[k]) if k in a and k in b else a.get(k, b.get(k)) for k in (*a, *(k for k in b if k not in a))}


ALL = ("dora", "ia3", "bitfit", "pfeiffer", "prefix", "prompt")


@functools.cache
def all_of(config):
    return functools.reduce(joined, (drawn_of(name, config) for name in ALL))


def all_axes(config, **how):
    return functools.reduce(joined, (of(name, config, **how).axes() for name in ALL))


def objective(model, adapters, base, tokens):
    return jnp.mean(logits(model, Adapted(base, adapters), tokens) ** 2)


@functools.cache
def alone():
    """Loss and gradients of all adapters, scanned, on one device, without remat."""
    run = quick_jit(jax.value_and_grad(functools.partial(objective, Model(LLAMA))))
    return jax.device_get(run(all_of(LLAMA), base_of(), tokens_of(3)))


def same(found, wanted, tolerance):
    (value, grads), (other, others) = found, wanted
    np.testing.assert_allclose(value, other, rtol=1e-5)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(others), strict=True):
        assert np.linalg.norm(x - y) <= tolerance * np.linalg.norm(y) + 1e-7, rules.path_name(path)
        assert np.abs(y).max() > 0, rules.path_name(path)


def test_scanned_equals_unscanned():
    model = Model(LLAMA, scan_layers=False)
    params = Adapted(*(model.relayout(tree, False) for tree in (base_of(), all_of(LLAMA))))
    found, wanted = program(LLAMA, False)(params, tokens_of(3)), program()(Adapted(base_of(), all_of(LLAMA)), tokens_of(3))
    assert far(found, wanted) < 1e-5 * np.abs(wanted).max()


def test_remat_changes_nothing():
    run = quick_jit(jax.value_and_grad(functools.partial(objective, Model(LLAMA, remat="minimal"))))
    same(run(all_of(LLAMA), base_of(), tokens_of(3)), alone(), 1e-4)
    for remat in ("dots", "full"):
        jax.eval_shape(jax.grad(functools.partial(objective, Model(LLAMA, remat=remat))), all_of(LLAMA), base_of(), tokens_of(3))


def test_eight_devices_equal_one():
    model, mesh = Model(LLAMA), make_mesh({"replica": 2, "fsdp": 2, "tensor": 2})
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        stored = rules.shardings(all_axes(LLAMA), mesh, all_of(LLAMA))
        adapters = jax.device_put(all_of(LLAMA), stored)
        base = jax.device_put(base_of(LLAMA), rules.shardings(model.axes(), mesh, model.abstract()))
        tokens = jax.device_put(tokens_of(3), jax.NamedSharding(mesh, rules.spec(("batch", "sequence"), rules.COMPUTE)))
        found = quick_jit(jax.value_and_grad(functools.partial(objective, model)), out_shardings=(None, stored))(adapters, base, tokens)
        same(jax.device_get(found), alone(), 1e-4)


def test_decoding_equals_the_whole_forward():
    """Token by token from an empty cache, soft tokens first."""
    model, params, tokens = Model(LLAMA), Adapted(base_of(), all_of(LLAMA)), tokens_of(3)

    def body(cache, token):
        hidden, cache = model.decode(params, token[:, None], cache)
        return cache, hidden[:, 0]

    _, hidden = quick_jit(lambda: jax.lax.scan(body, model.init_cache(B, tokens.shape[1]), tokens.T))()
    whole = program()(params, tokens)
    assert far(whole, model.logits(params, hidden.swapaxes(0, 1))) < 1e-5 * np.abs(whole).max()


def test_bfloat16_is_near_and_its_gradients_are_float32():
    model, params = Model(LLAMA, dtype="bfloat16"), Adapted(base_of(), all_of(LLAMA))
    wanted = program()(params, tokens_of(3))
    found = quick_jit(functools.partial(logits, model))(params, tokens_of(3))
    assert 0 < np.linalg.norm(found - wanted) < 0.05 * np.linalg.norm(wanted)
    grads = jax.eval_shape(jax.grad(functools.partial(objective, model)), params.adapters, params.base, tokens_of(3))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads))
    assert jax.eval_shape(model.apply, params, tokens_of(3)).dtype == jnp.bfloat16


def test_a_step_of_lora_needs_no_gradients_of_the_base():
    """At most 0.6 of the memory and no more FLOPs than a step that trains everything, as the compiler counts."""
    model = Model(preset("tiny").replace(num_layers=2, vocab_size=V))
    method, base = peft.make(model, "lora"), model.abstract()
    batch = {name: jnp.zeros((2, 32), jnp.int32) for name in ("tokens", "targets")} | {"weights": jnp.ones((2, 32))}

    def cost(params, axes, frozen):
        optimizer = make_optimizer("adamw", 1e-3, axes=axes)
        of_params = functools.partial(loss, model) if frozen else full
        now = jax.eval_shape(lambda p: state.TrainState(jnp.int32(0), p, optimizer.init(p)), params)
        step = jax.jit(make_step(of_params, totals, optimizer, axes=axes), donate_argnums=0)
        compiled = step.lower(now, frozen, batch).compile(QUICK)
        memory = compiled.memory_analysis()
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes - memory.alias_size_in_bytes
        return held, compiled.cost_analysis()["flops"]

    def full(params, frozen, batch, rng):
        found = model.fused_cross_entropy(params, model.apply(params, batch["tokens"]), batch["targets"], batch["weights"])[0]
        return {"cross_entropy": Term(found, 1.0)}, {}

    memory, flops = cost(method.abstract(), method.axes(), {"base": base, "open": jnp.float32(1)})
    full_memory, full_flops = cost(base, model.axes(), {})
    print(f"memory {memory / full_memory:.2f}, FLOPs {flops / full_flops:.2f}")
    assert memory <= 0.6 * full_memory and flops <= full_flops


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("lorra", {}, "Unknown peft.name='lorra'.*Did you mean 'lora'"),
        ("lora", {"rang": 4}, "no option 'rang'.*Did you mean 'rank'"),
        ("lora", {"targets": ["query", "outputs"]}, "no linear layer is called 'outputs'.*Did you mean 'output'"),
        ("lora", {"targets": []}, "peft.targets is empty"),
        ("lora", {"rank": 0}, "peft.rank=0"),
        ("lora", {"rank": "8"}, "peft.rank='8' is not a whole number"),
        ("last_n", {"head": 1}, "peft.head=1 is not True or False"),
        ("lora", {"dropout": 1.0}, "peft.dropout=1.0"),
        ("houlsby", {"activation": "swish"}, "Unknown peft.activation='swish'.*silu"),
        ("houlsby", {"reduction": 64}, "peft.reduction=64"),
        ("prompt", {"start": "words"}, "Unknown peft.start='words'"),
        ("prompt", {"start": "text", "text": [1] * 5, "length": 4}, "with 5 text and peft.length=4"),
        ("prompt", {"start": "text", "text": [V]}, f"ids outside of 0 to {V - 1}"),
        ("prefix", {"length": 0}, "peft.length=0"),
        ("prefix", {"inner": -1}, "peft.inner=-1"),
        ("last_n", {"layers": 3}, "peft.layers=3"),
    ],
)
def test_what_does_not_fit_is_refused(name, options, match):
    with pytest.raises(ValueError, match=match):
        peft.make(Model(LLAMA), name, **options)


def test_axes_serve_every_optimizer():
    """Adafactor's state for prompts, cut over a mesh as the prompts are; weight decay for the matrices of LoRA alone."""
    method, mesh = of("prompt"), make_mesh({"fsdp": 8})
    optimizer = make_optimizer("adafactor", 0.3, axes=method.axes(), weight_decay=1e-5, parameter_scale=False)
    init = lambda: method.init(jax.random.key(0), base_of())  # noqa: E731
    made = state.abstract(init, optimizer, mesh, method.axes())
    assert made.params["embedding"]["prompt"].table.sharding.spec == jax.P(None, "fsdp")
    method = of("dora")
    lr, decay = 0.1, 0.5
    optimizer = make_optimizer("sgd", lr, axes=method.axes(), weight_decay=decay)
    zeros = jax.tree.map(np.zeros_like, drawn_of("dora"))
    update = lambda params: optimizer.update(zeros, optimizer.init(params), params, step=jnp.int32(0))[0]  # noqa: E731
    updates = quick_jit(update)(drawn_of("dora"))
    found = updates["layers"]["scanned"]["0"]["attention"]["query"]["lora"]
    np.testing.assert_allclose(found.b, -lr * decay * drawn_of("dora")["layers"]["scanned"]["0"]["attention"]["query"]["lora"].b, rtol=1e-6)
    assert not np.any(found.magnitude), "a magnitude is a vector"
