"""Reading a compiled program: how often, along which axes, how many bytes; against programs whose traffic is known by hand."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jaxllm.parallel.mesh import make_mesh
from jaxllm.planning import hlo

SIZES = {"replica": 2, "fsdp": 2, "context": 2}


def compiled(function, *shapes, spec):
    """The text of `function` over local blocks on eight devices."""
    mesh = make_mesh(SIZES)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=P(), check_vma=False)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(mapped).lower(*arguments).compile().as_text(), dict(mesh.shape)


def known():
    """(name, local function of a [16, 8] float32 block, kind, axes, bytes of the whole array, bytes that a device sends)"""
    block = 16 * 8 * 4
    swap = [(0, 1), (1, 0)]
    return [
        ("psum", lambda x: jax.lax.psum(x, "fsdp"), "all-reduce", ("fsdp",), block, block),
        ("psum of two", lambda x: jax.lax.psum(x, ("replica", "context")), "all-reduce", ("replica", "context"), block, 1.5 * block),
        ("gather", lambda x: jax.lax.all_gather(x, "context"), "all-gather", ("context",), 2 * block, block),
        ("scatter", lambda x: jax.lax.psum_scatter(x, ("replica", "fsdp")), "reduce-scatter", ("replica", "fsdp"), block, 0.75 * block),
        ("to all", lambda x: jax.lax.all_to_all(x, "replica", 0, 0, tiled=True), "all-to-all", ("replica",), block, 0.5 * block),
        ("ring", lambda x: jax.lax.ppermute(x, "fsdp", swap), "collective-permute", ("fsdp",), block, block),
    ]


@pytest.mark.parametrize(("function", "kind", "axes", "size", "sent"), [pytest.param(*row[1:], id=row[0]) for row in known()])
def test_what_travels(function, kind, axes, size, sent):
    shape = (4, 8) if kind == "reduce-scatter" else (16, 8)
    local = (lambda x: function(jnp.tile(x[:, None], (1, 4, 1)))) if kind == "reduce-scatter" else function  # scatters dim 0 of size 4
    text, mesh = compiled(local, shape, spec=P())
    (found,) = hlo.Module(text).collectives(mesh)
    assert (found.kind, found.axes, found.num_bytes, found.times) == (kind, axes, size, 1)
    assert found.sent == pytest.approx(sent)


def test_a_loop_counts_as_often_as_it_runs():
    def function(x):
        outer = lambda c, _: (jax.lax.scan(lambda d, _: (jnp.sin(jax.lax.psum(d, "fsdp")), None), c, None, length=5)[0] + 1, None)  # noqa: E731
        return jax.lax.scan(outer, x, None, length=3)[0] + jax.lax.psum(x[0, 0], "context")

    text, mesh = compiled(function, (16, 8), spec=P())
    found = {(c.axes, c.times) for c in hlo.Module(text).collectives(mesh)}
    assert found == {(("fsdp",), 15), (("context",), 1)}


def test_the_line_that_made_it():
    text, mesh = compiled(lambda x: jax.lax.psum(x, "fsdp"), (16, 8), spec=P())
    (found,) = hlo.Module(text).collectives(mesh)
    assert found.source == "" and "psum" in found.operation  # this file is not jaxllm's


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, use", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[4], use", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), use", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, use", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, use", [[0, 1], [2, 3]]),
        ("source_target_pairs={{0,1},{1,0}}, use", [[0, 1], [1, 0]]),
        ("channel_id=3", [[0, 1, 2, 3]]),
    ],
)
def test_groups_however_they_are_written(written, groups):
    assert hlo._groups(written, 4) == groups


@pytest.mark.parametrize(
    ("shape", "size"),
    [("f32[2,3]{1,0}", 24), ("(bf16[4]{0:T(128)}, s32[])", 12), ("pred[7]", 7), ("f8e4m3fn[8]", 8), ("s4[8]{0}", 4), ("token[]", 0)],
)
def test_bytes_of_a_type(shape, size):
    assert hlo.shape_bytes(shape) == size


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("(bf16[4,8]{1,0:T(8,128)(2,1)}, bf16[16,8]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) all-gather-start(%x)", 256),
        ("((f32[2]{0}, f32[4]{0}), (f32[8]{0}, f32[16]{0})) all-gather-start(%x, %y)", 96),
        ("(f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x)", 32),
        ("(f32[8]{0}, f32[2]{0}) all-reduce-start(%x, %y)", 40),
        ("f32[8]{0} reduce-scatter(%x)", 128),
    ],
)
def test_what_is_started_counts_its_result_once(line, size):
    """As TPUs write them: operands stand before the results, and context after them."""
    text = f"ENTRY %main (x: f32[2]) -> f32[2] {{\n  %op.1 = {line}, replica_groups=[1,4]<=[4]\n}}"
    (found,) = hlo.Module(text).collectives({"fsdp": 4})
    assert found.num_bytes == size and found.axes == ("fsdp",) and found.group == 4


def test_a_gather_spread_over_fusions_is_one():
    """As TPUs write an asynchronous collective fusion: start, steps and end each hold the instruction."""
    part = 'bf16[64]{0} all-gather(%x), channel_id=7, replica_groups=[1,4]<=[4], frontend_attributes={chain_id="3"}'
    other = 'bf16[64]{0} all-gather(%x), channel_id=8, replica_groups=[1,4]<=[4], frontend_attributes={chain_id="4"}'
    text = f"ENTRY %main (x: f32[2]) -> f32[2] {{\n  %a = {part}\n  %b = {part}\n  %c = {other}\n}}"
    assert [c.num_bytes for c in hlo.Module(text).collectives({"fsdp": 4})] == [128, 128]


def test_what_goes_through_the_hosts_crosses_slices():
    line = (
        "(f32[64,8]{1,0:T(8,128)}, u32[]{:S(2)}, token[]) send(%x, %token), channel_id=3, is_host_transfer=true, "
        'frontend_attributes={_xla_megascale_reduce_operation="SUM",_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    done = 'token[] send-done(%send), channel_id=3, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}'
    text = f"ENTRY %main (x: f32[2]) -> f32[2] {{\n  %send = {line}\n  %done = {done}\n}}"
    (found,) = hlo.Module(text).collectives({"replica": 2, "fsdp": 4})
    assert (found.kind, found.axes, found.num_bytes, found.group) == ("all-reduce", ("replica",), 2048, 2) and found.sent == 2048


def test_a_loop_without_a_count_is_refused():
    mesh = make_mesh(SIZES)
    step = functools.partial(jax.lax.while_loop, lambda x: jnp.sum(x) < 3, lambda x: x * 2)
    text = jax.jit(step).lower(jax.ShapeDtypeStruct((4,), jnp.float32)).compile().as_text()
    with pytest.raises(ValueError, match="does not say how often"):
        hlo.Module(text).collectives(dict(mesh.shape))
