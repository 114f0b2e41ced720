"""What the compiler is told, by kind of device and number of slices: one table, each row with its source, and what is refused.

The options go to `jax.jit(..., compiler_options=...)`, program by program: nothing is written into the environment, and `jaxllm plan`
compiles with the same ones. What is on by default in current compilers is left out.
"""

from collections.abc import Mapping
from typing import NamedTuple

Options = dict[str, str | int | bool]

# device_kind of jax -> generation of TPU
KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}
GENERATION: dict[str, Options] = {
    # one product at a time with all threads, so that a profile can be read; docs/performance.md
    "cpu": {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"},
    # apple/axlearn, common/compiler_options.py: on by default from v5 on
    "v4": {"xla_enable_async_all_gather": "true", "xla_enable_async_collective_permute": "true"},
    "v5e": {},
    "v5p": {},
    # AI-Hypercomputer/maxtext, benchmarks/xla_flags_library.py (DENSE_VMEM_LIMIT_FLAG), and axlearn as above
    "v6e": {"xla_tpu_scoped_vmem_limit_kib": "98304"},
    # AI-Hypercomputer/tpu-recipes, training/ironwood/llama3.1-405b
    "tpu7x": {"xla_tpu_scoped_vmem_limit_kib": "65536", "xla_tpu_prefer_async_allgather_to_allreduce": "true"},
    # NVIDIA/JAX-Toolbox, docs/GPU_performance.md, and NVIDIA's MaxText recipes for the thresholds; without the pipelined collectives, which
    # XLA took out of its defaults after losses that diverged (openxla/xla#16953).
    "nvidia": {
        "xla_gpu_enable_latency_hiding_scheduler": True,
        "xla_gpu_all_gather_combine_threshold_bytes": 1 << 30,
        "xla_gpu_all_reduce_combine_threshold_bytes": 1 << 30,
        "xla_gpu_reduce_scatter_combine_threshold_bytes": 128 << 20,
    },
}
# The gradients' sum between slices runs beside the backward pass: maxtext (DATA_PARALLEL_OVERLAP) and axlearn, as above.
SLICES: Options = {
    "xla_tpu_enable_data_parallel_all_reduce_opt": "true",
    "xla_tpu_data_parallel_opt_different_sized_ops": "true",
}
# Transfers to and from the host run beside the products: maxtext (HOST_OFFLOAD_FLAGS), as above.
OFFLOAD: Options = {
    "xla_tpu_enable_all_experimental_scheduler_features": "true",
    "xla_tpu_host_transfer_overlap_limit": "24",
    "xla_tpu_aggressive_opt_barrier_removal": "ENABLED",
    "xla_lhs_prioritize_async_depth_over_stall": "ENABLED",
    "xla_max_concurrent_host_send_recv": "100",
}


class Corrupting(NamedTuple):
    """A combination that is known to give wrong numbers.

    Attributes:
      generations: where.
      options: all of these together.
      context: only where the sequence is cut over the mesh axis `context`.
      source: who saw what.
    """

    generations: tuple[str, ...]
    options: Options
    context: bool
    source: str


CORRUPTING = (
    Corrupting(
        ("v6e",),
        {"xla_tpu_enable_sparse_core_collective_offload_all_reduce": "true"},
        False,
        "quality discrepancy, jax 0.6.2 (apple/axlearn, common/compiler_options.py)",
    ),
    Corrupting(
        ("tpu7x",),
        {"xla_tpu_enable_sparse_core_collective_offload_all_reduce": "true"},
        False,
        "abnormal loss, jax 0.8.3 (apple/axlearn, common/compiler_options.py)",
    ),
    Corrupting(
        ("tpu7x",),
        {"xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true"},
        False,
        "abnormal loss, jax 0.8.3 (apple/axlearn, common/compiler_options.py)",
    ),
    Corrupting(
        ("v6e",),
        {"xla_tpu_enable_async_collective_fusion_fuse_all_reduce": "true", "xla_tpu_overlap_compute_collective_tc": "true"},
        True,
        "NaN with a cut sequence and splash attention, jax 0.10.2 (jax-ml/jax#38741)",
    ),
    Corrupting(("nvidia",), {"xla_gpu_use_memcpy_local_p2p": "true"}, False, "wrong values on 8 GPUs, jax 0.4 (openxla/xla#19555)"),
)


def generation(device_kind: str) -> str | None:
    """The row of `GENERATION` for a device, as jax calls its kind; None: there is none."""
    return "nvidia" if device_kind.startswith(("NVIDIA", "Tesla")) else KINDS.get(device_kind, "cpu" if device_kind == "cpu" else None)


def compiler_options(
    device_kind: str,
    num_slices: int = 1,
    *,
    offload: bool = False,
    context: int = 1,
    given: Mapping[str, str | int | bool] | None = None,
    fast: bool = True,
) -> Options:
    """The options for one kind of device.

    Args:
      device_kind: as jax calls it; a kind without a row gets only what was given.
      num_slices: slices joined by a data-center network.
      offload: activations travel to the host's memory.
      context: size of the mesh axis of that name.
      given: the user's own; they win over the table.
      fast: whether the table is used at all.

    Raises:
      ValueError: a combination that is known to corrupt results.
    """
    row = generation(device_kind)
    options: Options = {}
    if row is not None and fast:
        options = dict(GENERATION[row])
    if device_kind in KINDS and fast:
        options |= (SLICES if num_slices > 1 else {}) | (OFFLOAD if offload else {})
    options |= dict(given or {})
    for bad in CORRUPTING:
        set_all = all(_text(options.get(name)) == _text(value) for name, value in bad.options.items())
        if row in bad.generations and set_all and (context > 1 or not bad.context):
            names = ", ".join(bad.options)
            raise ValueError(f"On {row}, {names} is known to corrupt results: {bad.source}. Take it out of xla.options.")
    return options


def _text(value: object) -> str:
    return str(value).lower()
