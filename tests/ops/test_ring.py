"""A sequence cut over devices: ring and gather give what one device gives, hold the keys they say they hold, and share the work evenly."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.ops import blockwise
from jaxllm.ops.attention import attention, zigzag_order
from jaxllm.ops.visibility import Side
from jaxllm.parallel import rules
from jaxllm.parallel.mesh import make_mesh

B, T, N, K, H = 2, 64, 4, 2, 8
QUICK = {"xla_backend_optimization_level": 0}  # these programs run once


@pytest.mark.parametrize("context", [1, 2, 4])
def test_each_device_holds_an_early_and_a_late_chunk(context):
    order = zigzag_order(T, context)
    assert sorted(order) == list(range(T))
    chunks = np.arange(T).reshape(2 * context, -1)
    for device, local in enumerate(order.reshape(context, -1)):
        np.testing.assert_array_equal(local, np.concatenate([chunks[device], chunks[2 * context - 1 - device]]))


def test_a_length_that_does_not_divide_is_named():
    with pytest.raises(ValueError, match=r"sequence_length=60 does not divide by 2 \* parallel.context=8. Use 56 or 64"):
        zigzag_order(60, 4)


def inputs():
    rng = np.random.default_rng(0)
    q, k, v, weights = (rng.normal(size=(B, T, n, H)).astype(np.float32) for n in (N, K, K, N))
    segments, positions = np.ones((B, T), np.int32), np.tile(np.arange(T, dtype=np.int32), (B, 1))
    segments[0, 20:], segments[1, 50:] = 2, 0
    positions[0, 20:] -= 20
    return q, k, v, weights, segments, positions, positions < 5


def outputs(q, k, v, weights, segments, positions, prefix, with_prefix=False, **how):
    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(q, k, v, weights, segments, positions, prefix):
        def f(q, k, v):
            same = {"q_positions": positions, "kv_positions": positions, "q_segments": segments, "kv_segments": segments}
            out = attention(q, k, v, **same, prefix=prefix if with_prefix else None, block=8, **how)
            return jnp.sum(out * weights), out

        (_, out), grads = jax.value_and_grad(f, (0, 1, 2), has_aux=True)(q, k, v)
        return out, *grads

    return [np.asarray(x) for x in run(q, k, v, weights, segments, positions, prefix)]


DROP = {"dropout": 0.3, "rng": jax.random.key(0), "rows": jnp.arange(B)}


@pytest.mark.parametrize("context", ["gather", "ring"])
@pytest.mark.parametrize(
    ("sizes", "how"),
    [
        ({"fsdp": 2, "context": 4}, {}),
        ({"context": 8}, {"window": 9, "softcap": 2.0}),
        ({"fsdp": 2, "context": 2, "tensor": 2}, {"kind": "bidirectional"}),
        ({"context": 2, "tensor": 4}, {"kind": "prefix", "with_prefix": True}),
        ({"context": 4, "replica": 2}, DROP),
    ],
    ids=lambda x: " ".join(f"{k}={v}" for k, v in x.items() if k not in DROP),
)
def test_ring_and_gather_are_the_reference(sizes, how, context):
    expected = outputs(*inputs(), **how, implementation="reference")
    order = zigzag_order(T, sizes["context"])
    with jax.set_mesh(make_mesh(sizes)):
        got = outputs(*(x[:, order] for x in inputs()), **how, context=context)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a[:, np.argsort(order)], b, atol=2e-5)


def compiled(context, sizes, length):
    """The program of one forward and backward on keys and values that arrive cut along the sequence."""
    mesh = make_mesh(sizes)
    with jax.set_mesh(mesh):
        cut = jax.NamedSharding(mesh, rules.spec(("batch", "sequence"), rules.COMPUTE))
        place = functools.partial(jax.ShapeDtypeStruct, sharding=cut)
        q, k, v = (place((B, length, n, H), jnp.float32) for n in (N, K, K))
        ids = place((B, length), jnp.int32)

        def f(q, k, v, ids):
            same = {"q_positions": ids, "kv_positions": ids, "q_segments": ids, "kv_segments": ids}
            return jnp.sum(attention(q, k, v, **same, context=context, block=16))

        return jax.jit(jax.grad(f, (0, 1, 2))).lower(q, k, v, ids).compile()


def float_arrays(program):
    """The sizes in elements of all float arrays of one device's program, and of the results of each kind of collective."""
    sized = lambda found: [int(np.prod([int(d) for d in shape.split(",")])) for shape in found]  # noqa: E731
    text = program.as_text()
    everything = sized(re.findall(r"f32\[([\d,]+)\]", text))
    of = {op: sized(re.findall(rf"= \(?f32\[([\d,]+)\]\S* {op}", text)) for op in ("all-gather", "collective-permute")}
    return everything, of


def test_ring_holds_a_share_of_the_keys_and_gather_all_of_them():
    length, ways = 1024, 8
    whole, share = B * length * K * H, B * (length // ways) * K * H  # elements of k, for all devices and for one
    ring, gather = (compiled(form, {"context": ways}, length) for form in ("ring", "gather"))

    everything, of = float_arrays(gather)
    assert of["all-gather"].count(whole) >= 2 and not of["collective-permute"]  # k and v
    everything, of = float_arrays(ring)
    assert not of["all-gather"] and of["collective-permute"] and set(of["collective-permute"]) == {share}
    assert max(everything) < whole  # not even the queries, twice as many heads, are that large: nothing holds all keys

    arguments = ring.memory_analysis().argument_size_in_bytes
    assert arguments == 4 * (share * (N // K + 2) + B * length // ways)  # q, k, v and ids arrive cut
    assert ring.memory_analysis().temp_size_in_bytes < gather.memory_analysis().temp_size_in_bytes


def blocks_by_device(order, context, segments):
    """How many pairs of blocks each device computes in all, when every shard of keys has visited it."""
    shards = np.split(order, context)
    rule = blockwise.Rule(block=T // (2 * context))
    side = lambda index: Side(jnp.asarray(index, jnp.int32)[None], jnp.asarray(segments[index], jnp.int32)[None])  # noqa: E731
    return [sum(int(blockwise.computed_blocks(rule, side(mine), side(guest)).sum()) for guest in shards) for mine in shards]


def test_the_causal_work_is_the_same_on_every_device():
    one_document = np.ones(T)
    balanced = blocks_by_device(zigzag_order(T, 4), 4, one_document)
    assert balanced == [9, 9, 9, 9]  # of 16 pairs: chunk i sees i + 1 chunks, and (i + 1) + (8 - i) = 9
    assert blocks_by_device(np.arange(T), 4, one_document) == [3, 7, 11, 15]


@pytest.mark.parametrize("context", ["gather", "ring"])
def test_what_is_not_visible_is_not_computed(context):
    q, k, v, weights, segments, positions, prefix = inputs()
    segments[:], positions[:] = 1, np.arange(T)
    order = zigzag_order(T, 4)
    v[:, T - T // 8 :] = np.nan  # the last of 8 chunks: the first 7 do not see it, and 0 * nan would be nan
    with jax.set_mesh(make_mesh({"context": 4, "fsdp": 2})):
        got = outputs(*(x[:, order] for x in (q, k, v, weights, segments, positions, prefix)), context=context)
    out, dq = (x[:, np.argsort(order)] for x in got[:2])
    assert np.isfinite(out[:, : T - T // 8]).all() and np.isfinite(dq[:, : T - T // 8]).all()
    assert np.isnan(out[:, T - T // 8 :]).all()
