"""Several LoRAs over one base: each row of a batch goes through its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.models.adapted import Adapter, Params
from jaxllm.models.layers import weight
from jaxllm.models.lora import Lora, thin
from jaxllm.models.method import nested
from jaxllm.models.tokens import Tokens
from jaxllm.parallel import rules


@partial(jax.tree_util.register_dataclass, data_fields=("a", "b", "scales"), meta_fields=())
@dataclass(frozen=True)
class Stack(Adapter):
    """Several LoRAs over one base; each row of a batch goes through its own, number `Tokens.adapter`, and a negative number through none.

    Attributes:
      a: [adapters, inputs..., r].
      b: [adapters, r, outputs...].
      scales: [adapters].
    """

    a: jax.Array
    b: jax.Array
    scales: jax.Array

    @property
    def num_stacked(self) -> int:
        """How many there are."""
        return self.scales.shape[-1]

    def product(self, y: jax.Array, x: jax.Array, dense: Any, kernel: Any, tokens: Tokens | None) -> jax.Array:
        """See `Adapter.product`."""
        num_inputs, dtype, row = self.a.ndim - 2, dense.compute.dtype, dense.equation[0]
        first = jnp.zeros(x.shape[0], jnp.int32)
        index = first if tokens is None or tokens.adapter is None else tokens.adapter
        down, up = (equation.replace(",", f",{row}") for equation in thin(dense.equation))
        a = weight(self.a, (None, *dense.axes[:num_inputs], "rank"), dtype)
        b = weight(self.b, (None, "rank", *dense.axes[num_inputs:]), dtype)
        found = jnp.einsum(up, jnp.einsum(down, x, jnp.take(a, index, 0, mode="clip")), jnp.take(b, index, 0, mode="clip"))
        scale = jnp.where(index < 0, 0, jnp.take(self.scales, index, mode="clip")).astype(dtype)
        return y + scale.reshape(-1, *(1,) * (y.ndim - 1)) * found


def stack(adapters: Sequence[Params]) -> Params:
    """Several trees of LoRAs, of any ranks and targets, as one tree whose rows choose: number i is `adapters[i]`.

    Raises:
      ValueError: something else than a LoRA without a magnitude is among them.
    """
    flat = [_loras(tree) for tree in adapters]
    found = {}
    for path in sorted(set().union(*flat)):
        here = [tree.get(path) for tree in flat]
        like = next(one for one in here if one is not None)
        rank, at = max(one.a.shape[-1] for one in here if one is not None), 1 if "scanned" in path else 0
        padded = [_padded(one, like, rank, at) for one in here]
        a, b = (jnp.stack([pair[i] for pair in padded], at) for i in range(2))
        scales = jnp.array([0.0 if one is None else one.scale for one in here])
        found[path] = Stack(a, b, jnp.broadcast_to(scales, (*a.shape[:at], len(here))))
    return nested(found)


def _loras(tree: Params) -> dict[tuple[str, ...], Lora]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, Adapter))
    flat = {tuple(rules.path_name(path).split("/")): found for path, found in leaves}
    for path, found in flat.items():
        if type(found) is not Lora:
            raise ValueError(f"{'/'.join(path)} is of kind {type(found).__name__}. Only adapters of lora and rslora can be stacked.")
    return flat


def _padded(one: Lora | None, like: Lora, rank: int, at: int) -> tuple[jax.Array, jax.Array]:
    """A and B with as many ranks; where there is no LoRA, zeros: nothing is added."""
    a, b = (jnp.zeros_like(like.a), jnp.zeros_like(like.b)) if one is None else (one.a, one.b)
    more = rank - a.shape[-1]
    return (
        jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, more)]),
        jnp.pad(b, [(0, more if dim == at else 0) for dim in range(b.ndim)]),
    )
