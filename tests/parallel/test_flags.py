"""Compiler flags: by device and slices, the user's own win, and what corrupts results is refused."""

import jax
import pytest

from jaxllm.parallel.flags import CORRUPTING, GENERATION, KINDS, compiler_options


def test_every_generation_has_a_row_and_a_name():
    assert set(KINDS.values()) | {"nvidia", "cpu"} == set(GENERATION)


def test_an_unknown_device_gets_what_was_given_and_nothing_else():
    assert compiler_options("AMD MI300", 2, offload=True, given={"a": True}) == {"a": True}


@pytest.mark.parametrize(
    ("kind", "row", "prefix"),
    [("NVIDIA H200", "nvidia", "xla_gpu_"), ("Tesla V100-SXM2-16GB", "nvidia", "xla_gpu_"), ("cpu", "cpu", "xla_cpu_")],
)
def test_gpus_and_cpus_get_their_own_and_nothing_of_a_tpu(kind, row, prefix):
    options = compiler_options(kind, 2, offload=True)
    assert options == GENERATION[row] and all(name.startswith(prefix) for name in options)
    jax.jit(lambda x: x, compiler_options=options).lower(1.0).compile()  # every backend reads the names of all of them
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_gpu_enable_nothing"):
        jax.jit(lambda x: x, compiler_options={"xla_gpu_enable_nothing": "true"}).lower(1.0).compile()


def test_slices_and_offload_add_their_own():
    one, two = compiler_options("TPU v5"), compiler_options("TPU v5", 2)
    assert set(two) - set(one) == {"xla_tpu_enable_data_parallel_all_reduce_opt", "xla_tpu_data_parallel_opt_different_sized_ops"}
    assert "xla_tpu_host_transfer_overlap_limit" in compiler_options("TPU v5", offload=True)


def test_the_users_own_win():
    assert compiler_options("TPU v6 lite", given={"xla_tpu_scoped_vmem_limit_kib": 1024})["xla_tpu_scoped_vmem_limit_kib"] == 1024


@pytest.mark.parametrize("bad", CORRUPTING, ids=lambda bad: "-".join((*bad.generations, *bad.options)))
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("form", [str, lambda value: value == "true"], ids=["word", "bool"])
def test_what_corrupts_results_is_refused_where_it_does(bad, form, fast):
    given = {name: form(value) for name, value in bad.options.items()}
    kind = next((kind for kind, row in KINDS.items() if row in bad.generations), "NVIDIA H200")
    with pytest.raises(ValueError, match=r"known to corrupt results: .*jax"):
        compiler_options(kind, context=2, given=given, fast=fast)
    if bad.context:
        assert compiler_options(kind, context=1, given=given, fast=fast).items() >= given.items()
    assert compiler_options("TPU v4", context=2, given=given, fast=fast).items() >= given.items()  # nothing is known against it there
    some = given | {next(iter(given)): "false"}
    assert compiler_options(kind, context=2, given=some, fast=fast).items() >= some.items()  # all of them together, or nothing


def test_without_the_table_there_is_what_was_given():
    assert compiler_options("TPU7x", 2, offload=True, fast=False) == {}
    assert compiler_options("TPU7x", given={"a": 1}, fast=False) == {"a": 1}
