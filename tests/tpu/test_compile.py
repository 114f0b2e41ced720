"""The real train step compiled for TPUs that are not there: every generation with every remat policy and every mesh axis.

Runs in an environment with libtpu (`make aot`), one after the other: libtpu takes a lock.
"""

import functools
import json
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxllm.__main__ import main
from jaxllm.ops.blockwise import Rule
from jaxllm.ops.flash import SPLASH_BLOCKS, Blocks, splash
from jaxllm.parallel import flags, rules
from jaxllm.parallel.mesh import AXES
from jaxllm.planning import topologies
from jaxllm.planning.compiled import Compiled, compile_program
from jaxllm.planning.verdict import faults
from jaxllm.stages import plan
from jaxllm.stages.config import resolve

SHAPE = {"num_layers": 4, "width": 256, "num_heads": 2, "num_kv_heads": 2, "head_dim": 128, "mlp_width": 512, "vocab_size": 384}
SETTINGS = {"batch_size": 16, "sequence_length": 256, "model": SHAPE, "data": {"tokenizer": {"kind": "bytes"}}}
SLICES = {"v5e": "v5e:2x4", "v5p": "v5p:2x2x2", "v6e": "v6e:2x4", "tpu7x": "tpu7x:2x2x1"}
CASES = {
    "none": ({"fsdp": 8}, {}),
    "minimal": ({"fsdp": 4, "tensor": 2}, {}),
    "dots": ({"fsdp": 4, "context": 2}, {"model.context": "ring"}),
    "offload": ({"fsdp": 4, "context": 2}, {"model.context": "gather"}),
    "full": ({"replica": 2, "fsdp": 4}, {"microbatches": 2}),
}


@functools.cache
def planned(generation, remat):
    sizes, more = CASES[remat]
    settings = SETTINGS | {f"parallel.{axis}": size for axis, size in sizes.items()} | more
    (found,) = plan.plan(resolve(settings | {"remat": remat}), topologies.parse(SLICES[generation]))
    assert isinstance(found.compiled, Compiled), found.compiled
    return found


@pytest.mark.parametrize("remat", CASES)
@pytest.mark.parametrize("generation", SLICES)
def test_the_train_step_compiles(generation, remat):
    found = planned(generation, remat)
    assert sum(found.compiled.memory.values()) == found.compiled.total > found.state
    assert found.left > 0 and found.compiled.gathered_calls == []
    crossed = {axis for flow in found.flows for axis in flow.axes.split()}
    assert crossed >= {axis for axis, size in CASES[remat][0].items() if size > 1}
    if "context" not in CASES[remat][0]:
        assert found.compiled.operations["custom-call"] >= 4 * 2, "splash runs forward and backward in each of four layers"


LATER = {
    "sft": ({"peft": {"name": "lora"}}, ["train_step"]),
    "reward": ({"reward.loss": "ranking", "reward.answers": 4}, ["train_step"]),
    "rl": (
        {"rl.method": "ppo", "rollout": {"task": "arithmetic", "prompts": 16, "samples_per_prompt": 4, "max_new_tokens": 64}},
        ["train_step", "prefill", "decode", "scoring"],
    ),
}


@pytest.mark.parametrize("stage", LATER)
def test_every_later_stage_is_planned_by_the_same_door(stage):
    more, names = LATER[stage]
    plans = plan.plan(resolve(SETTINGS | {"stage": stage} | more), topologies.parse("v5e:2x2"))
    assert [found.name for found in plans] == names
    optimizer = {found.compiled.memory["optimizer"] for found in plans}
    assert len(optimizer) == 1 and optimizer.pop() > 0, "the optimizer's state lies there while other programs run"
    for found in plans:
        assert sum(found.compiled.memory.values()) == found.compiled.total and found.speed.step > 0 and found.left > 0
        assert "all-gather" in {flow.kind for flow in found.flows}, "the weights are cut along fsdp"


@pytest.mark.parametrize("generation", SLICES)
def test_pure_fsdp_sends_what_the_formula_says(generation):
    """Gathers within 1 %. Sums as reduce-scatters or, where the compiler wants it so (v5p), as all-reduces of twice the bytes, and told."""
    found = planned(generation, "none")
    sent = {flow.kind: flow.sent for flow in found.flows if flow.axes == "fsdp"}
    least = {flow.kind: flow.minimum for flow in found.flows if flow.minimum}
    assert sent["all-gather"] == pytest.approx(least["all-gather"], rel=0.01)
    assert sent["reduce-scatter"] + sent["all-reduce"] / 2 == pytest.approx(least["reduce-scatter"], rel=0.05), sent
    assert any("as an all-reduce" in said for said in faults(found.compiled, found.flows)) == (sent["reduce-scatter"] == 0)


@pytest.mark.parametrize("generation", topologies.CHIPS)
def test_every_option_of_the_table_is_taken(generation):
    name = {2: f"{generation}:2x2", 3: f"{generation}:2x2x1"}[topologies.CHIPS[generation].torus]
    mesh = topologies.make_mesh(topologies.parse(name), dict.fromkeys(AXES, 1) | {"fsdp": -1})
    options = flags.compiler_options(mesh.devices.flat[0].device_kind, 2, offload=True)
    assert len(options) >= len(flags.SLICES) + len(flags.OFFLOAD)
    x = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))
    jax.jit(lambda x: x * 2, compiler_options=options).lower(x).compile()


@pytest.mark.parametrize(("generation", "fast"), [*((name, True) for name in SLICES), ("v6e", False)])
def test_the_blocks_of_the_table_fit_the_chip(generation, fast):
    """Splash at a length that none of the blocks is cut for, forward and backward, with the flags of the table and without."""
    mesh = topologies.make_mesh(topologies.parse(SLICES[generation]), dict.fromkeys(AXES, 1) | {"fsdp": -1})
    whole = NamedSharding(mesh, P())
    qkv = [jax.ShapeDtypeStruct((1, 4096, 4, 128), jnp.bfloat16, sharding=whole)] * 3
    segments = jax.ShapeDtypeStruct((1, 4096), jnp.int32, sharding=whole)
    rule = Rule("causal", None, 50.0, 0.1, 0.0, 0)

    def local(q, k, v, segments):
        return jax.shard_map(lambda *a: splash(rule, *a), in_specs=P(), out_specs=P(), check_vma=False)(q, k, v, segments)

    options = flags.compiler_options(mesh.devices.flat[0].device_kind, fast=fast)
    with rules.under(mesh.abstract_mesh):
        f = jax.jit(jax.grad(lambda *a: local(*a).astype(jnp.float32).sum(), (0, 1, 2)), compiler_options=options)
        text = f.lower(*qkv, segments).compile().as_text()
    assert text.count("tpu_custom_call") >= 3
    kind = flags.generation(mesh.devices.flat[0].device_kind)
    assert kind == generation and SPLASH_BLOCKS.get(kind, Blocks()).within(4096) == SPLASH_BLOCKS.get(kind, Blocks())


def test_several_slices_are_joined_by_dcn():
    settings = SETTINGS | {"parallel.replica": 2, "parallel.fsdp": 4}
    (found,) = plan.plan(resolve(settings), topologies.parse("v5e:2x2", 2))
    assert {flow.link for flow in found.flows if "replica" in flow.axes} == {"DCN"}
    assert found.speed.dcn > 0 and found.flags["xla_tpu_enable_data_parallel_all_reduce_opt"] == "true"


def test_a_kernel_behind_a_gather_is_named():
    mesh = topologies.make_mesh(topologies.parse("v5e:2x4"), {"replica": 1, "fsdp": 8, "tensor": 1, "context": 1, "expert": 1, "stage": 1})
    cut = jax.ShapeDtypeStruct((8, 256, 2, 128), jnp.bfloat16, sharding=NamedSharding(mesh, P("fsdp")))

    def behind(q, k, v):
        local = functools.partial(splash, Rule(scale=0.1), segments=jnp.ones((8, 256), jnp.int32))
        return jax.shard_map(local, mesh=rules.ambient_mesh(), in_specs=P(), out_specs=P(), check_vma=False)(q, k, v)

    found = compile_program("behind", jax.jit(behind), (cut, cut, cut), mesh, lambda path: "batch")
    assert any("An all-gather feeds the kernel" in said for said in faults(found))


def test_what_does_not_fit_is_told_with_what_would(tmp_path, capsys):
    config = tmp_path / "large.py"
    shape = SHAPE | {"num_layers": 32, "width": 4096, "num_heads": 32, "num_kv_heads": 8, "mlp_width": 14336}
    settings = SETTINGS | {"model": shape, "batch_size": 4}
    config.write_text(f"def get_config():\n    return {settings!r}\n")
    words = [
        "plan",
        "--config",
        str(config),
        "--topology",
        "v5e:2x2",
        "--json",
        str(tmp_path / "p.json"),
        "--html",
        str(tmp_path / "p.html"),
    ]
    assert main(words) == 1
    said = capsys.readouterr().out
    assert "train_step does not fit" in said and re.search(r"would fit: v5e:\d+x\d+ with fsdp=-1", said), said
    (record,) = json.loads((tmp_path / "p.json").read_text())
    assert not record["fits"] and record["used_bytes"] > record["hbm_bytes"]
    assert "<svg" in (tmp_path / "p.html").read_text()


def test_the_search_finds_what_fits(tmp_path, capsys):
    config = tmp_path / "small.py"
    config.write_text(f"def get_config():\n    return {SETTINGS!r}\n")
    assert main(["plan", "--config", str(config), "--topology", "v5e:2x4", "--search", "2"]) == 0
    assert "The fastest that fits, by its roofline: --config.remat=none --config.microbatches=1" in capsys.readouterr().out
