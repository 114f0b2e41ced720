"""Attention: the plain form against its definition, every kernel against the plain form, forward and backward."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.ops import attention as door
from jaxllm.ops.attention import KERNELS, attention
from jaxllm.ops.blockwise import Rule
from jaxllm.ops.flash import Blocks, splash
from jaxllm.parallel import rules
from jaxllm.parallel.mesh import make_mesh

H = 8


def tokens(length, batch=3):
    """Segments and positions of a packed row, a padded row and a row that is all padding; and a prefix of each document."""
    segments = np.ones((batch, length), np.int32)
    segments[0, length // 3 :], segments[0, length // 2 :] = 2, 3
    segments[1, length - length // 4 :] = 0
    segments[2] = 0
    positions = np.arange(length) - np.stack([np.searchsorted(row, row) if row.all() else 0 * row for row in segments])
    return segments, positions.astype(np.int32), positions < 3


def heads(num_heads, num_kv_heads, length, batch=3, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(batch, length, n, H)).astype(np.float32) for n in (num_heads, num_kv_heads, num_kv_heads, num_heads)]


def outputs(q, k, v, weights, segments, positions, prefix=None, **how):
    """The output, and the gradients of its weighted sum towards q, k and v."""

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(q, k, v, weights, segments, positions, prefix):
        def f(q, k, v):
            same = {"q_positions": positions, "kv_positions": positions, "q_segments": segments, "kv_segments": segments}
            out = attention(q, k, v, **same, prefix=prefix, **how)
            return jnp.sum(out * weights), out

        (_, out), grads = jax.value_and_grad(f, (0, 1, 2), has_aux=True)(q, k, v)
        return out, *grads

    return [np.asarray(x) for x in run(q, k, v, weights, segments, positions, prefix)]


def by_definition(q, k, v, segments, positions, prefix, kind, window, softcap):
    """Token by token, float64."""
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(*q.shape[:3]):
        scores = {}
        for s in range(k.shape[1]):
            behind = int(positions[b, t]) - int(positions[b, s])
            seen = segments[b, t] == segments[b, s] != 0
            seen &= kind == "bidirectional" or behind >= 0 or (kind == "prefix" and bool(prefix[b, s]))
            seen &= window is None or (abs(behind) if kind == "bidirectional" else behind) < window
            if seen:
                score = float(q[b, t, n] @ k[b, s, n * k.shape[2] // q.shape[2]]) * H**-0.5
                scores[s] = np.exp(score if softcap is None else softcap * np.tanh(score / softcap))
        for s, weight in scores.items():
            out[b, t, n] += weight / sum(scores.values()) * v[b, s, n * k.shape[2] // q.shape[2]]
    return out


TABLE = list(itertools.product(["causal", "bidirectional", "prefix"], [None, 5], [None, 2.0]))
SPLASH = [("causal", None, None), ("causal", 5, 2.0), ("causal", 150, None), ("bidirectional", None, 2.0), ("bidirectional", 5, None)]
QUICK = {"xla_backend_optimization_level": 0}  # these programs run once: compiling them is what takes time


def asked(kind, window, softcap, prefix):
    return {"kind": kind, "window": window, "softcap": softcap, "prefix": prefix if kind == "prefix" else None}


@pytest.mark.parametrize(("kind", "window", "softcap"), TABLE)
def test_the_reference_is_the_definition(kind, window, softcap):
    segments, positions, prefix = tokens(13)
    q, k, v, weights = heads(4, 2, 13)
    got = outputs(q, k, v, weights, segments, positions, implementation="reference", **asked(kind, window, softcap, prefix))
    np.testing.assert_allclose(got[0], by_definition(q, k, v, segments, positions, prefix, kind, window, softcap), atol=1e-5)


@pytest.mark.parametrize(
    ("implementation", "length", "block", "num_kv_heads", "kind", "window", "softcap"),
    [("xla", length, block, K, *row) for (length, block, K), row in zip([(37, 8, 2), (32, 8, 4), (37, 64, 1)] * 4, TABLE, strict=True)]
    + [
        ("splash", length, None, K, *row) for (length, K), row in zip([(200, 2), (37, 4), (600, 1), (200, 1), (37, 2)], SPLASH, strict=True)
    ],
)
def test_every_kernel_is_the_reference(implementation, length, block, num_kv_heads, kind, window, softcap):
    segments, positions, prefix = tokens(length)
    inputs = *heads(4, num_kv_heads, length), segments, positions
    how = asked(kind, window, softcap, prefix)
    expected = outputs(*inputs, implementation="reference", **how)
    got = outputs(*inputs, implementation=implementation, block=block, **how)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert (got[0][2] == 0).all() and (got[0][1, segments[1] == 0] == 0).all()  # who sees nothing gets nothing
    assert all((grad[2] == 0).all() for grad in got[1:])


def test_splash_does_not_depend_on_its_blocks():
    segments, positions, _ = tokens(500)
    q, k, v, weights = heads(2, 1, 500)
    blocks = Blocks(q=512, kv=128, q_dkv=128, kv_dkv=256, q_dq=256, kv_dq=512)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def found(q, k, v):
        k, v = (jnp.repeat(x, 2, axis=2) for x in (k, v))
        return jnp.sum(splash(Rule("causal", 130, None, 0.3, 0.0, 0), q, k, v, segments, blocks) * weights)

    def expected(q, k, v):
        how = {"q_segments": segments, "kv_segments": segments, "q_positions": positions, "kv_positions": positions}
        return jnp.sum(attention(q, k, v, window=130, scale=0.3, implementation="reference", **how) * weights)

    for a, b in zip(jax.grad(found, (0, 1, 2))(q, k, v), jax.grad(expected, (0, 1, 2))(q, k, v), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_blocks_divide_the_sequence():
    assert Blocks(q=1024, q_dkv=2048).within(1536) == Blocks(512, 512, 1536)
    assert Blocks().within(384) == Blocks(*[384] * 6)


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_without_segments_a_row_is_one_document(implementation):
    q, k, v, _ = heads(2, 2, 20)
    got = jax.jit(functools.partial(attention, implementation=implementation, window=6), compiler_options=QUICK)(q, k, v)
    segments, positions = np.ones((3, 20), np.int32), np.tile(np.arange(20), (3, 1))
    np.testing.assert_allclose(got, by_definition(q, k, v, segments, positions, None, "causal", 6, None), atol=1e-5)


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_bfloat16_stays_and_is_close(implementation):
    segments, positions, _ = tokens(40)
    q, k, v, weights = (jnp.asarray(x, jnp.bfloat16) for x in heads(4, 2, 40))
    expected = outputs(*(np.asarray(x, np.float32) for x in (q, k, v, weights)), segments, positions, implementation="reference")
    got = outputs(q, k, v, weights, segments, positions, implementation=implementation, block=16)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == jnp.bfloat16 and np.linalg.norm(a.astype(np.float32) - b) < 0.01 * np.linalg.norm(b)


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_extreme_scores_are_finite(implementation):
    segments, positions, _ = tokens(24)
    q, k, v, weights = heads(2, 2, 24)
    assert all(
        np.isfinite(x).all() for x in outputs(q * 1e4, k * 1e4, v, weights, segments, positions, implementation=implementation, block=8)
    )


def test_a_cache_is_read_by_its_positions_and_segments():
    length = 24
    q, k, v, _ = heads(4, 2, length)
    positions = np.tile(np.arange(length, dtype=np.int32), (3, 1))
    whole = jax.jit(functools.partial(attention, implementation="reference"))(q, k, v)
    order = np.random.default_rng(0).permutation(length + 5)  # a cache may hold its tokens in any order, and empty slots
    pad = lambda x: np.pad(x, [(0, 0), (0, 5)] + [(0, 0)] * (x.ndim - 2), constant_values=0)[:, order]  # noqa: E731
    cached = pad(k), pad(v), pad(positions), pad(np.ones((3, length), np.int32))

    @jax.jit
    def decode(q, position, k, v, positions, filled):
        one = jnp.ones((3, 1), jnp.int32)
        return attention(q, k, v, q_positions=position, kv_positions=positions, q_segments=one, kv_segments=filled, block=8)

    for step in (0, 7, length - 1):
        one = decode(q[:, step : step + 1], positions[:, step : step + 1], *cached)
        np.testing.assert_allclose(one[:, 0], whole[:, step], atol=1e-5)


def test_blocks_in_which_nothing_is_visible_are_not_computed():
    segments = np.repeat(np.array([[1, 2]], np.int32), 16, axis=1)
    positions = np.tile(np.arange(16, dtype=np.int32), (1, 2))
    q, k, v, weights = heads(2, 2, 32, batch=1)
    v[:, :16] = np.nan  # 0 * nan is nan: only what is never multiplied stays clean
    skipped = outputs(q, k, v, weights, segments, positions, implementation="xla", block=16)
    assert np.isfinite(skipped[0][:, 16:]).all() and np.isfinite(skipped[1][:, 16:]).all()
    computed = outputs(q, k, v, weights, segments, positions, implementation="xla", block=32)
    assert np.isnan(computed[0][:, 16:]).all()


def test_memory_is_linear_in_the_length():
    def temporary(length, implementation):
        def f(q, k, v):
            return jnp.sum(attention(q, k, v, implementation=implementation, block=64))

        shapes = [jax.ShapeDtypeStruct((1, length, n, H), jnp.float32) for n in (4, 2, 2)]
        return jax.jit(jax.grad(f, (0, 1, 2))).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert temporary(2048, "xla") < 2.2 * temporary(1024, "xla")
    assert temporary(2048, "reference") > 3.5 * temporary(1024, "reference")


def test_memory_stays_linear_where_layers_are_scanned():
    def temporary(length):
        def f(x, segments):
            layer = lambda x, _: (attention(x, x, x, q_segments=segments, kv_segments=segments, implementation="xla", block=64), None)  # noqa: E731
            return jnp.sum(jax.lax.scan(layer, x, length=2)[0])

        shapes = jax.ShapeDtypeStruct((1, length, 4, H), jnp.float32), jax.ShapeDtypeStruct((1, length), jnp.int32)
        return jax.jit(jax.grad(f)).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert temporary(2048) < 2.2 * temporary(1024)


class TestDropout:
    length = 32
    segments, positions, _ = tokens(length)

    def run(self, rows=(5, 6, 7), seed=0, take=slice(None), rate=0.25, **how):
        inputs = [x[take] for x in (*heads(4, 2, self.length), self.segments, self.positions)]
        rows = jnp.asarray(rows, jnp.int32)[take]
        return outputs(*inputs, dropout=rate, rng=jax.random.key(seed), rows=rows, **how)

    def test_every_kernel_drops_the_same(self):
        expected = self.run(implementation="reference")
        for how in ({"implementation": "xla", "block": 8}, {"implementation": "splash"}):  # splash gives way
            for a, b in zip(self.run(**how), expected, strict=True):
                np.testing.assert_allclose(a, b, atol=2e-5)

    def test_a_draw_depends_on_key_and_row_but_not_on_the_split(self):
        whole = self.run()
        np.testing.assert_allclose(self.run(take=slice(1, 2))[0], whole[0][1:2], atol=1e-5)
        assert not np.allclose(self.run(seed=1)[0], whole[0]) and not np.allclose(self.run(rows=(5, 9, 7))[0][1], whole[0][1])

    def test_the_share_is_right_and_the_mean_is_kept(self):
        ones = np.ones((4, 256, 2, H), np.float32)
        dropped = functools.partial(attention, kind="bidirectional", dropout=0.3, block=128)
        out = jax.jit(dropped)(ones, ones, ones, rng=jax.random.key(3), rows=np.arange(4))
        kept = np.asarray(out)[..., 0] * 0.7  # the share of 256 equal probabilities that were kept, for each query
        assert abs(kept.mean() - 0.7) < 0.005
        assert kept.std() == pytest.approx(np.sqrt(0.3 * 0.7 / 256), rel=0.1)  # as of independent draws


@pytest.mark.parametrize(
    ("implementation", "sizes", "num_kv_heads"),
    [
        ("xla", {"fsdp": 2, "tensor": 4}, 4),
        ("xla", {"replica": 2, "tensor": 4}, 2),
        ("xla", {"tensor": 8}, 1),
        ("xla", {"fsdp": 8}, 2),  # 8 does not divide the batch of 4
        ("splash", {"fsdp": 2, "tensor": 4}, 4),
        ("splash", {"replica": 2, "tensor": 4}, 2),
    ],
    ids=str,
)
def test_sharded_is_unsharded(implementation, sizes, num_kv_heads):
    segments, positions, _ = tokens(24, batch=4)
    inputs = *heads(8, num_kv_heads, 24, batch=4), segments, positions
    expected = outputs(*inputs, implementation="reference")
    with jax.set_mesh(make_mesh(sizes)):
        got = outputs(*inputs, implementation=implementation, block=8)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize(
    ("backend", "how", "kernel", "reason"),
    [
        ("cpu", {}, "xla", None),
        ("tpu", {}, "splash", None),
        ("tpu", {"kind": "prefix"}, "xla", "a prefix is data"),
        ("tpu", {"dropout": 0.1}, "xla", "drops no probabilities"),
        ("tpu", {"cache": True}, "xla", "not the same tokens"),
        ("tpu", {"context": 2}, "xla", "over `context`"),
        ("gpu", {"segments": False, "dtype": jnp.bfloat16}, "cudnn", None),
        ("gpu", {"segments": False}, "xla", "no float32"),
        ("gpu", {"dtype": jnp.bfloat16}, "xla", "no segment ids"),
        ("gpu", {"segments": False, "dtype": jnp.bfloat16, "softcap": 3.0}, "xla", "no soft-cap"),
    ],
)
def test_the_table_of_kernels(monkeypatch, backend, how, kernel, reason):
    ran, logged = [], []
    monkeypatch.setattr(rules, "platform", lambda: backend)
    monkeypatch.setattr(door.logging, "warning", lambda line, *args: logged.append(line % args))
    monkeypatch.setattr(door, "_log_once", functools.cache(door._log_once.__wrapped__))
    for name in KERNELS:
        monkeypatch.setitem(KERNELS, name, lambda asked, context, q, *rest, name=name: ran.append(name) or q)
    segments, positions, prefix = tokens(16, batch=4)
    q, k, v, _ = (jnp.asarray(x, how.get("dtype", jnp.float32)) for x in heads(2, 2, 16, batch=4))
    more = (
        {"prefix": prefix} if how.get("kind") == "prefix" else {"rng": jax.random.key(0), "rows": np.arange(4)} if "dropout" in how else {}
    )
    if how.get("segments", True):
        more |= {"q_segments": segments, "kv_segments": segments.copy() if how.get("cache") else segments}
    more |= {name: how[name] for name in ("kind", "dropout", "softcap") if name in how}
    with jax.set_mesh(make_mesh({"context": how.get("context", 1), "fsdp": -1})):
        for _ in range(2):
            attention(q, k, v, q_positions=positions, kv_positions=positions, **more)
    assert ran == [kernel, kernel]
    assert len(logged) == (reason is not None) and (reason is None or reason in logged[0])  # said once, not at every call


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"kind": "diagonal"}, "Unknown attention kind 'diagonal'. Choose one of: causal, bidirectional, prefix"),
        ({"implementation": "flash"}, "Unknown attention implementation 'flash'. Choose one of: auto, reference, xla"),
        ({"context": "spiral"}, "Unknown attention context 'spiral'. Choose one of: gather, ring"),
        ({"kind": "prefix"}, "prefix missing"),
        ({"prefix": np.ones((3, 8), bool)}, "prefix given"),
        ({"window": 0}, "window=0 sees nothing"),
        ({"dropout": 0.5}, "needs rng and rows"),
    ],
)
def test_mistakes_are_named(how, message):
    q, k, v, _ = heads(2, 2, 8)
    with pytest.raises(ValueError, match=re.escape(message)):
        attention(q, k, v, **how)
