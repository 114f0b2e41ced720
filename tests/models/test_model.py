"""The Model facade: layouts, remat policies, packing, decoding and dropout change nothing that they should not change."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import subjaxprs

from jaxllm.models.model import Model
from jaxllm.models.presets import PRESETS, TINY, preset
from jaxllm.models.remat import POLICIES
from jaxllm.ops.attention import KERNELS
from jaxllm.parallel import rules
from jaxllm.parallel.mesh import make_mesh
from tests.models.drawn import random_params

QUICK = {"xla_backend_optimization_level": 0}  # compiles twice as fast
quick_jit = functools.partial(jax.jit, compiler_options=QUICK)
T = 24
SMALL = {"vocab_size": 64, "width": 32, "num_heads": 2, "num_kv_heads": 2, "head_dim": 16, "mlp_width": 48}
GEMMA = preset("tiny_gemma2").replace(**SMALL, num_layers=3)  # two places in the pattern and one layer left over
LITTLE = {name: {**SMALL, "num_layers": 2} for name in TINY}
LITTLE["tiny_gemma3"] = {**SMALL, "num_layers": 3, "layer_pattern": ("local", "global")}
LLAMA = preset("tiny_llama3").replace(**SMALL, num_layers=2)
SPLASH = ({"attention": "splash"}, {}, "pallas_call")
DROPPING = LLAMA.replace(residual_dropout=0.2, attention_dropout=0.3, embedding_dropout=0.1)


@functools.cache
def params_of(config):
    return random_params(Model(config), seed=0)


def tokens_of(config, rows=2, length=T):
    return np.random.RandomState(1).randint(0, config.vocab_size, (rows, length)).astype(np.int32)


def loss(model, params, tokens, **inputs):
    hidden = model.apply(params, tokens[:, :-1], **inputs)
    return -jnp.mean(model.log_probs(params, hidden, tokens[:, 1:]).log_probs)


def equal(a, b, tolerance=1e-5):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert np.linalg.norm(x - y) <= tolerance * np.linalg.norm(y) + 1e-9, rules.path_name(path)


@functools.cache
def scanned_reference(config):
    return quick_jit(jax.value_and_grad(functools.partial(loss, Model(config))))(params_of(config), tokens_of(config))


def test_scanned_equals_unscanned():
    value, grads = scanned_reference(GEMMA)
    model = Model(GEMMA, scan_layers=False)
    params = model.relayout(params_of(GEMMA), False)
    other, other_grads = quick_jit(jax.value_and_grad(functools.partial(loss, model)))(params, tokens_of(GEMMA))
    np.testing.assert_allclose(value, other, rtol=1e-6)
    equal(model.relayout(other_grads, True), grads)


@pytest.mark.parametrize("remat", [name for name in POLICIES if name != "none"])
def test_remat_changes_nothing(remat):
    value, grads = scanned_reference(LLAMA)
    model = Model(LLAMA, remat=remat)
    other, other_grads = quick_jit(jax.value_and_grad(functools.partial(loss, model)))(params_of(LLAMA), tokens_of(LLAMA))
    np.testing.assert_allclose(value, other, rtol=1e-6)
    equal(other_grads, grads)


def test_remat_policies_keep_less_and_less():
    """Bytes that the forward pass leaves for the backward pass, from `jax.vjp`'s residuals."""

    def kept(remat):
        model = Model(GEMMA, remat=remat)
        _, backward = jax.eval_shape(
            lambda p: jax.vjp(functools.partial(loss, model, tokens=jnp.asarray(tokens_of(GEMMA))), p), params_of(GEMMA)
        )
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(backward))

    none, minimal, dots, full = (kept(name) for name in ("none", "minimal", "dots", "full"))
    assert none > minimal > dots > full


def times(jaxpr, primitive):
    """How often the primitive is in the program, a loop's body taken once."""
    return sum(eqn.primitive.name == primitive for eqn in jaxpr.eqns) + sum(times(inner, primitive) for inner in subjaxprs(jaxpr))


@pytest.mark.parametrize(("how", "sizes", "primitive"), [({}, {}, "cond"), ({"context": "ring"}, {"context": 8}, "cond"), SPLASH])
def test_minimal_computes_no_attention_again(how, sizes, primitive):
    """A kernel skips blocks with `cond`, or is a `pallas_call`: the gradient has no more of them than without remat, and "full" has."""

    def kernels(remat):
        model, tokens = Model(LLAMA, remat=remat, **how), jnp.zeros((1, 2048), jnp.int32)
        gradient = jax.grad(lambda p: jnp.sum(model.apply(p, tokens)))
        with jax.set_mesh(make_mesh(sizes)) if sizes else contextlib.nullcontext():
            return times(jax.make_jaxpr(gradient)(model.abstract()).jaxpr, primitive)

    assert kernels("full") > kernels("none") == kernels("minimal") > 0


@pytest.mark.parametrize(("scan_layers", "kept_apart"), [(True, {False}), (False, {True})])
def test_the_compiler_does_not_undo_what_is_computed_again(scan_layers, kept_apart):
    """Norms and activations of the layers: in a scan's body they are apart from the forward pass anyway."""

    def inner(jaxpr):
        for eqn in jaxpr.eqns:
            if "prevent_cse" in eqn.params:
                yield eqn.params["prevent_cse"]
        for part in subjaxprs(jaxpr):
            yield from inner(part)

    model = Model(LLAMA.replace(norm_placement="post"), scan_layers=scan_layers)  # no norm outside of the layers
    gradient = jax.grad(lambda p: jnp.sum(model.apply(p, jnp.zeros((1, T), jnp.int32))))
    assert set(inner(jax.make_jaxpr(gradient)(model.abstract()).jaxpr)) == kept_apart


def test_offload_says_when_there_is_nowhere_to(monkeypatch):
    class Device:
        def addressable_memories(self):
            return [type("Memory", (), {"kind": "device"})]

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    with pytest.raises(ValueError, match=r"needs the memory 'pinned_host'.* has only: device. Choose remat='full'"):
        Model(GEMMA, remat="offload").apply(params_of(GEMMA), tokens_of(GEMMA))


def test_fresh_parameters_are_the_same_in_either_layout():
    """And no two layers start equal."""
    config = GEMMA.replace(num_layers=4, layer_pattern=("local", "global", "global"))
    scanned, single = (quick_jit(Model(config, scan_layers=scan).init)(jax.random.key(0)) for scan in (True, False))
    equal(Model(config).relayout(jax.device_get(single), True), scanned, 1e-6)
    first = [float(layer["mlp"]["up"]["kernel"][0, 0]) for layer in jax.device_get(single)["layers"].values()]
    assert len(set(first)) == 4


@pytest.mark.parametrize("optimizer", ["adam", "masked"])
def test_relayout_there_and_back_is_exact(optimizer):
    config = preset("tiny_gemma3").replace(**SMALL)
    model, params = Model(config), params_of(config)
    chain = optax.adam(1e-3)
    if optimizer == "masked":  # optax leaves empty nodes where nothing is optimised
        chain = optax.masked(chain, lambda tree: jax.tree.map(lambda x: x.ndim > 2, tree))
    abstract = jax.eval_shape(chain.init, params)
    draw = np.random.RandomState(0)
    opt_state = jax.tree.map(lambda x: draw.standard_normal(x.shape).astype(np.float32), abstract)
    tree = {"params": params, "opt_state": opt_state, "step": np.int32(3)}
    single = model.relayout(tree, False)
    assert set(single["params"]["layers"]) == {str(i) for i in range(config.num_layers)}
    again = model.relayout(single, True)
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(tree), strict=True))
    assert jax.tree.structure(model.relayout(again, False)) == jax.tree.structure(single)


def test_relayout_refuses_another_model():
    params = params_of(GEMMA)
    with pytest.raises(ValueError, match="should have 3 layers"):
        Model(GEMMA.replace(num_layers=7)).relayout(params, False)


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_pythia", "tiny_llama3.1", "tiny_mistral", "tiny_gemma3"])
def test_packed_equals_unpacked(name):
    """Two documents in one row give what each gives alone in a row of its own."""
    config = preset(name).replace(**LITTLE[name])
    model, params, cut, end = Model(config), params_of(config), 9, T - 3
    tokens = np.repeat(tokens_of(config, rows=1), 3, axis=0)
    tokens[2, : end - cut] = tokens[2, cut:end]
    index = np.arange(T)
    segments = np.stack([np.where(index < cut, 1, np.where(index < end, 2, 0)), index < cut, index < end - cut]).astype(np.int32)
    positions = np.stack([np.where(index < cut, index, index - cut), index, index]).astype(np.int32)
    hidden = quick_jit(model.apply)(params, tokens, segments=segments, positions=positions)
    np.testing.assert_allclose(hidden[0, :cut], hidden[1, :cut], atol=2e-5)
    np.testing.assert_allclose(hidden[0, cut:end], hidden[2, : end - cut], atol=2e-5)


DECODED = [
    ("tiny_gpt2", "causal", "slots", True),
    ("tiny_pythia", "causal", "pages", True),
    ("tiny_llama3.1", "causal", "pages", False),
    ("tiny_mistral", "causal", "slots", False),
    ("tiny_gemma2", "causal", "slots", True),
    *(("tiny_gemma3", "causal", held, scan_layers) for held in ("slots", "pages") for scan_layers in (True, False)),
    ("tiny_gemma3", "prefix", "slots", True),
]
CACHES = {"slots": {}, "pages": {"page": 4, "num_pages": 40}}


def given_pages(cache):
    """The pages of the pool dealt out to the rows in no order."""
    if cache.pages is None:
        return cache
    order = np.random.RandomState(0).permutation(40)[: cache.pages.size].astype(np.int32)
    return cache._replace(pages=jnp.asarray(order.reshape(cache.pages.shape)))


@pytest.mark.parametrize(("name", "kind", "held", "scan_layers"), DECODED)
def test_cached_decode_equals_full_forward(name, kind, held, scan_layers):
    """Prompts of different lengths, then in chunks of up to three, then one by one, some rows standing still; every window and pattern."""
    config = preset(name).replace(**LITTLE[name])
    model = Model(config, scan_layers=scan_layers)
    params = model.relayout(params_of(config), scan_layers)
    lengths, width, rows = np.array([4, 10, 1, 5], np.int32), 10, np.arange(4)
    tokens = tokens_of(config, rows=4)
    full_prefix = np.arange(T)[None] < lengths[:, None] if kind == "prefix" else None
    expected = quick_jit(functools.partial(model.apply, kind=kind))(params, tokens, prefix=full_prefix)
    cache = given_pages(model.init_cache(4, T, chunk=3, **CACHES[held]))
    cache = cache._replace(prefix=jnp.asarray(lengths)) if kind == "prefix" else cache
    prompts = np.where(np.arange(width) < lengths[:, None], tokens[:, :width], 7)
    hidden, cache = quick_jit(functools.partial(model.decode, kind=kind, fresh=True))(params, prompts, cache, counts=lengths)
    for row, n in zip(rows, lengths, strict=True):
        np.testing.assert_allclose(hidden[row, :n], expected[row, :n], atol=3e-5)
    decode, at = quick_jit(functools.partial(model.decode, kind=kind)), lengths.copy()
    for counts in ([3, 0, 2, 3], [1, 3, 3, 0], *[[1, 1, 1, 1]] * 2, *[[0, 1, 1, 1]] * (T - 15)):
        counts = np.minimum(np.array(counts, np.int32), T - at)
        new = max(1, counts.max())
        batch = np.stack([np.pad(tokens[row, at[row] : at[row] + new], (0, new))[:new] for row in rows])
        hidden, cache = decode(params, batch, cache, counts=counts)
        for row in rows:
            found, wanted = hidden[row, : counts[row]], expected[row, at[row] : at[row] + counts[row]]
            np.testing.assert_allclose(found, wanted, atol=3e-5)
        at += counts
    assert (np.asarray(cache.lengths) == at).all() and at.max() == T


def test_a_ring_holds_no_more_than_it_has_to():
    """A layer with a window keeps window + chunk - 1 slots, however long the row, and goes on for ever."""
    config = preset("tiny_mistral").replace(**LITTLE["tiny_mistral"])
    model, params, tokens = Model(config), params_of(config), tokens_of(config, rows=1)
    cache = model.init_cache(1, 10_000)
    assert {leaf.shape[-2] for leaf in jax.tree.leaves(cache.layers)} == {config.window}
    _, cache = quick_jit(functools.partial(model.decode, fresh=True))(params, tokens, cache)
    decode = quick_jit(model.decode)
    for _ in range(2 * config.window):
        hidden, cache = decode(params, tokens[:, :1], cache)
    again = np.concatenate([tokens, np.repeat(tokens[:, :1], 2 * config.window, axis=1)], axis=1)
    np.testing.assert_allclose(hidden[0, 0], quick_jit(model.apply)(params, again)[0, -1], atol=3e-5)


def test_decode_refuses_what_does_not_fit():
    model, params = Model(GEMMA), params_of(GEMMA)
    cache = model.init_cache(1, 4)
    with pytest.raises(ValueError, match="do not fit into a cache of length 4"):
        model.decode(params, tokens_of(GEMMA, 1, 5), cache)
    with pytest.raises(ValueError, match="bidirectional"):
        model.decode(params, tokens_of(GEMMA, 1, 2), cache, kind="bidirectional")
    decode = quick_jit(model.decode)
    hidden, cache = decode(params, tokens_of(GEMMA, 1, 3), cache)
    assert np.isfinite(hidden).all()
    assert np.isnan(decode(params, tokens_of(GEMMA, 1, 3), cache)[0]).all()  # past the end, known only at run time


def test_bidirectional_sees_the_future():
    model, params, tokens = Model(GEMMA), params_of(GEMMA), np.repeat(tokens_of(GEMMA, 1), 2, axis=0)
    tokens[1, -1] = (tokens[1, -1] + 1) % 64
    for kind, moves in (("causal", False), ("bidirectional", True)):
        hidden = quick_jit(functools.partial(model.apply, kind=kind))(params, tokens)
        assert bool(np.abs(hidden[0, T - 2] - hidden[1, T - 2]).max() > 1e-6) == moves


def test_dropout_belongs_to_the_row():
    """Splitting a batch, another layout and remat draw the same masks; another key or row draws others."""
    model, params, tokens = Model(DROPPING), params_of(DROPPING), tokens_of(DROPPING, rows=4)
    rng, rows = jax.random.key(7), np.arange(4, dtype=np.int32)
    forward = quick_jit(model.apply)
    whole = forward(params, tokens, rng=rng, rows=rows)
    parts = [forward(params, tokens[i : i + 2], rng=rng, rows=rows[i : i + 2]) for i in (0, 2)]
    equal(np.concatenate(parts), whole)
    unscanned = Model(DROPPING, scan_layers=False, remat="full")
    other = quick_jit(unscanned.apply)(unscanned.relayout(params, False), tokens, rng=rng, rows=rows)
    equal(other, whole)
    assert np.abs(whole - forward(params, tokens, rng=jax.random.key(8), rows=rows)).max() > 0.1
    order = np.random.RandomState(0).permutation(T)  # along T it is the position that names a token, not the index
    moved = forward(params, tokens[:, order], rng=rng, rows=rows, positions=np.tile(order.astype(np.int32), (4, 1)))
    equal(moved, whole[:, order])
    same_tokens = np.repeat(tokens[:1], 4, axis=0)
    drawn = forward(params, same_tokens, rng=rng, rows=rows)
    assert np.abs(drawn[0] - drawn[1]).max() > 0.1
    np.testing.assert_allclose(forward(params, tokens), forward(params, tokens, rows=rows), atol=0)


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_queries_and_keys_are_normalised_as_the_rest(norm):
    params = Model(LLAMA.replace(qk_norm="head", norm=norm), scan_layers=False).abstract()
    attention = params["layers"]["0"]["attention"]
    assert set(attention["query_norm"]) == set(attention["key_norm"]) == set(params["final_norm"])


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_shapes_and_axes(name):
    model = Model(preset(name))
    abstract, axes = model.abstract(), model.axes()
    is_axes = lambda x: isinstance(x, tuple)  # noqa: E731
    for (path, leaf), names in zip(jax.tree_util.tree_leaves_with_path(abstract), jax.tree.leaves(axes, is_leaf=is_axes), strict=True):
        assert len(names) == len(leaf.shape), rules.path_name(path)
        assert all(n is None or n in rules.STORED for n in names)
    assert model.num_params(abstract) == model.num_params()


@pytest.mark.parametrize(("field", "value"), [("remat", "dot"), ("dtype", "bf16"), ("attention", "flash"), ("context", "rings")])
def test_unknown_choices_are_named(field, value):
    with pytest.raises(ValueError, match=f"Unknown {field}='{value}'. Choose one of"):
        Model(GEMMA, **{field: value})


@pytest.mark.parametrize(
    ("backend", "sizes", "how", "kernel"),
    [
        ("cpu", {}, {}, "xla"),
        ("gpu", {}, {"dtype": "bfloat16"}, "xla"),
        ("gpu", {}, {"dtype": "bfloat16", "attention": "cudnn"}, "xla"),
        ("tpu", {}, {}, "splash"),
        ("tpu", {"context": 8}, {}, "xla"),
    ],
)
def test_the_kernel_of_training_is_told(monkeypatch, backend, sizes, how, kernel):
    """As the forward pass of packed rows takes it."""
    ran, model, params = set(), Model(GEMMA, **how), params_of(GEMMA)
    monkeypatch.setattr(rules, "platform", lambda: backend)
    for name in KERNELS:
        monkeypatch.setitem(KERNELS, name, lambda asked, context, q, *rest, name=name: ran.add(name) or q)
    with jax.set_mesh(make_mesh(sizes)) if sizes else contextlib.nullcontext():
        assert model.attention_kernel() == kernel
        jax.eval_shape(lambda p, t: model.apply(p, t, segments=t), params, jnp.ones((1, T), jnp.int32))
    assert ran == {kernel}


@pytest.mark.parametrize("positions", [None, np.arange(257, dtype=np.int32)[None]])
def test_learned_positions_end(positions):
    with pytest.raises(ValueError, match="learned positions"):
        Model(preset("tiny_gpt2")).apply({}, np.zeros((1, 257), np.int32), positions=positions)


def test_bfloat16_is_near_float32():
    params, tokens = params_of(GEMMA), tokens_of(GEMMA)
    half, full = (quick_jit(Model(GEMMA, dtype=dtype).apply)(params, tokens) for dtype in ("bfloat16", "float32"))
    assert half.dtype == jnp.bfloat16
    assert np.linalg.norm(half.astype(jnp.float32) - full) < 0.05 * np.linalg.norm(full)
