"""LoRA: a product of two thin matrices beside every chosen weight (arXiv 2106.09685), and its kin."""

import dataclasses
import math
import zlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxllm.models.adapted import Adapter, Params
from jaxllm.models.layers import weight
from jaxllm.models.method import Peft, Site, chosen, nested
from jaxllm.models.tokens import Tokens
from jaxllm.ops.dropout import drop_channels, token_codes
from jaxllm.ops.products import project


@partial(jax.tree_util.register_dataclass, data_fields=("a", "b"), meta_fields=("scale", "dropout"))
@dataclass(frozen=True)
class Lora(Adapter):
    """x W + scale (dropout(x) A) B, section 4.1.

    Attributes:
      a: [inputs..., r], the kernel's dims that are summed over.
      b: [r, outputs...].
      scale: alpha / r.
      dropout: probability, of x.
    """

    a: jax.Array
    b: jax.Array
    scale: float
    dropout: float

    def product(self, y: jax.Array, x: jax.Array, dense: Any, kernel: Any, tokens: Tokens | None) -> jax.Array:
        """See `Adapter.product`."""
        return y + self.scale * self.beside(x, dense, tokens)

    def beside(self, x: jax.Array, dense: Any, tokens: Tokens | None) -> jax.Array:
        """(dropout(x) A) B."""
        num_inputs, dtype = self.a.ndim - 1, dense.compute.dtype
        x = dropped(x, num_inputs, self.dropout, str(dense.name), tokens)
        down, up = thin(dense.equation)
        a = weight(self.a, (*dense.axes[:num_inputs], "rank"), dtype)
        b = weight(self.b, ("rank", *dense.axes[num_inputs:]), dtype)
        return project(up, checkpoint_name(project(down, x, a), "lora"), b)

    def change(self) -> jax.Array:
        """What is added to the kernel, float32."""
        return self.scale * jnp.tensordot(self.a, self.b, 1, precision="highest")

    def merged(self, params: Params) -> Params:
        """See `Adapter.merged`."""
        kernel = params["kernel"]
        return {**params, "kernel": (kernel.astype(jnp.float32) + self.change()).astype(kernel.dtype)}


def thin(equation: str) -> tuple[str, str]:
    """The einsums of x A and (x A) B from that of x W: "btd,dnh->btnh" gives "btd,dr->btr" and "btr,rnh->btnh"."""
    (x, kernel), y = equation.split("->")[0].split(","), equation.split("->")[1]
    inner = "".join(dim for dim in kernel if dim in x)
    between = "".join(dim for dim in x if dim not in inner) + "r"
    return f"{x},{inner}r->{between}", f"{between},r{kernel[len(inner) :]}->{y}"


def dropped(x: jax.Array, num_inputs: int, rate: float, name: str, tokens: Tokens | None) -> jax.Array:
    """x [B, T, inputs...] after dropout of a module of this name; without a key it is x."""
    if not rate or tokens is None or tokens.rng is None:
        return x
    assert tokens.rows is not None
    codes = token_codes(tokens.rng, tokens.rows, tokens.segments, tokens.positions, salt=zlib.crc32(name.encode()))
    return drop_channels(x.reshape(*x.shape[: x.ndim - num_inputs], -1), codes, rate).reshape(x.shape)


@partial(jax.tree_util.register_dataclass, data_fields=("a", "b", "magnitude"), meta_fields=("scale", "dropout"))
@dataclass(frozen=True)
class Dora(Lora):
    """magnitude (x W + scale (dropout(x) A) B) / norm, the norm over the inputs of W + scale A B (arXiv 2402.09353, equation 5).

    The norm's gradient is stopped (section 4.3).

    Attributes:
      magnitude: [outputs...].
    """

    magnitude: jax.Array

    def product(self, y: jax.Array, x: jax.Array, dense: Any, kernel: Any, tokens: Tokens | None) -> jax.Array:
        """See `Adapter.product`."""
        ratio = self.magnitude / jax.lax.stop_gradient(self.norm(kernel))
        return (ratio * super().product(y, x, dense, kernel, tokens).astype(jnp.float32)).astype(y.dtype)

    def norm(self, kernel: Any) -> jax.Array:
        """Float32 [outputs...]: of W + scale A B, which is never made: |W|^2 + 2 scale B (A' W) + scale^2 B (A' A) B."""
        kernel, num_inputs = kernel.astype(jnp.float32), self.a.ndim - 1
        inputs = tuple(range(num_inputs))

        def product(x, axes=inputs):
            return jnp.tensordot(self.a, x, (axes, axes), precision="highest")

        between = 2 * self.scale * product(kernel) + self.scale**2 * jnp.tensordot(product(self.a), self.b, 1, precision="highest")
        square = jnp.sum(jnp.square(kernel), inputs) + jnp.sum(self.b * between, 0)
        return jnp.sqrt(jnp.maximum(square, 1e-24))

    def merged(self, params: Params) -> Params:
        """See `Adapter.merged`."""
        kernel = params["kernel"]
        ratio = self.magnitude / self.norm(kernel)
        return {**params, "kernel": (ratio * (kernel.astype(jnp.float32) + self.change())).astype(kernel.dtype)}


@dataclass(frozen=True)
class LoraMethod(Peft):
    """LoRA.

    Attributes:
      rank: r.
      alpha: the change is alpha / r times the product.
      dropout: probability with which an element of x is left out of x A.
      targets: names of linear layers; None: all.
    """

    rank: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    targets: tuple[str, ...] | None = None

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"peft.rank={self.rank} is not a rank. Give 1 or more.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"peft.dropout={self.dropout} is not a probability. Choose 0 <= dropout < 1; 0 turns it off.")
        chosen(self.model, self.targets)

    @property
    def scale(self) -> float:
        """What the product is multiplied with."""
        return self.alpha / self.rank

    def layer(self, rng: jax.Array, base: Params, index: jax.Array) -> Params:
        """See `Peft.layer`."""
        found = {}
        for name, site in chosen(self.model, self.targets).items():
            key = jax.random.fold_in(rng, zlib.crc32(name.encode()))
            kernel = base[site.path[0]][name]["kernel"]
            found[(*site.path, "lora")] = self.entry(*self._drawn(key, site), kernel, site)
        return nested(found)

    def layer_axes(self) -> Params:
        """See `Peft.layer_axes`."""
        return nested({(*site.path, "lora"): self.entry_axes(site) for site in chosen(self.model, self.targets).values()})

    def entry(self, a: jax.Array, b: jax.Array, kernel: Any, site: Site) -> Any:
        """The adapter of one Dense."""
        return Lora(a, b, self.scale, self.dropout)

    def entry_axes(self, site: Site) -> Any:
        """Its logical axes."""
        return Lora((*site.axes[: site.num_inputs], "rank"), ("rank", *site.axes[site.num_inputs :]), self.scale, self.dropout)  # type: ignore[arg-type]

    def _drawn(self, key: jax.Array, site: Site) -> tuple[jax.Array, jax.Array]:
        """A as `peft` draws it, kaiming-uniform with a = sqrt(5), which is uniform up to fan_in ** -0.5; B zero."""
        inputs, outputs = site.shape[: site.num_inputs], site.shape[site.num_inputs :]
        bound = math.prod(inputs) ** -0.5
        return jax.random.uniform(key, (*inputs, self.rank), minval=-bound, maxval=bound), jnp.zeros((self.rank, *outputs))


@dataclass(frozen=True)
class RsloraMethod(LoraMethod):
    """Rank-stabilised LoRA (arXiv 2312.03732): the factor is alpha / sqrt(r)."""

    @property
    def scale(self) -> float:
        """See `LoraMethod.scale`."""
        return self.alpha / math.sqrt(self.rank)


@dataclass(frozen=True)
class DoraMethod(LoraMethod):
    """Weight-decomposed LoRA (arXiv 2402.09353): a magnitude for every output, at first that of the base's weights."""

    def entry(self, a: jax.Array, b: jax.Array, kernel: Any, site: Site) -> Any:
        """See `LoraMethod.entry`."""
        unknown = Dora(a, b, self.scale, self.dropout, magnitude=jnp.zeros(()))
        return dataclasses.replace(unknown, magnitude=unknown.norm(kernel))

    def entry_axes(self, site: Site) -> Any:
        """See `LoraMethod.entry_axes`."""
        plain = super().entry_axes(site)
        return Dora(plain.a, plain.b, plain.scale, plain.dropout, site.axes[site.num_inputs :])  # type: ignore[arg-type]
