"""Remat policies by name: what a block keeps for the backward pass, and what it computes again."""

from collections.abc import Callable

import jax
from flax import linen as nn

from jaxllm.ops.blockwise import RESIDUALS
from jaxllm.parallel import rules

policies = jax.checkpoint_policies

# The results that are named with `checkpoint_name` in layers.py and transformer.py, and by attention's kernels: their output and softmax
# totals, which the backward pass needs. cuDNN's kernel and the reference name nothing: there attention is computed again.
PROJECTIONS = ("query", "key", "value")
PRODUCTS = (*PROJECTIONS, RESIDUALS, "output", "gate", "up", "down", "lora")


def _minimal() -> Callable:
    return policies.save_only_these_names(*PRODUCTS)


def _dots() -> Callable:
    return policies.dots_with_no_batch_dims_saveable


def _full() -> Callable:
    return policies.nothing_saveable


def _offload() -> Callable:
    kinds = {memory.kind for device in jax.local_devices()[:1] for memory in device.addressable_memories()}
    if rules.platform() == jax.default_backend() and "pinned_host" not in kinds:
        raise ValueError(
            f"remat='offload' needs the memory 'pinned_host'; the backend {jax.default_backend()!r} has only: {', '.join(sorted(kinds))}. "
            "Choose remat='full', which needs the least memory of the others."
        )
    names = ("block_input", *PROJECTIONS, RESIDUALS)
    return policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=list(names), offload_src="device", offload_dst="pinned_host"
    )


# From the most memory to the least; each gives a policy for `jax.checkpoint`, or None for no checkpoint at all.
POLICIES: dict[str, Callable[[], Callable | None]] = {
    "none": lambda: None,  # keep everything but gathered weights (`Compute.regather`), the inside of norms, and what an activation makes
    "minimal": _minimal,  # keep all matrix products and attention's output: norms, activations and rotations are computed again
    "dots": _dots,  # keep matrix products with weights; attention is computed again
    "full": _full,  # keep a block's input only
    "offload": _offload,  # keep inputs, q, k, v and attention's output in the host's memory; the MLP is computed again
}


def rematerialized(module: type[nn.Module], name: str, *, scanned: bool) -> type[nn.Module]:
    """The module class under the remat policy of this name; `scanned`: it is called in the body of a scan.

    Raises:
      ValueError: an unknown policy, or one that this backend cannot do.
    """
    if name not in POLICIES:
        raise ValueError(f"Unknown remat={name!r}. Choose one of: {', '.join(POLICIES)}.")
    policy = POLICIES[name]()
    return module if policy is None else nn.remat(module, policy=policy, prevent_cse=not scanned)
