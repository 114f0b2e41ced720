"""Small parts beside the weights: IA3's scales, BitFit's biases, bottleneck adapters after or beside the parts of a block."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxllm.models.adapted import Adapter, Params
from jaxllm.models.layers import ACTIVATIONS, AXES, Compute, logical_axes, weight
from jaxllm.models.method import Peft, nearest, nested, sites
from jaxllm.parallel import rules


@partial(jax.tree_util.register_dataclass, data_fields=("value",), meta_fields=("side",))
@dataclass(frozen=True)
class Scale(Adapter):
    """A Dense whose outputs or inputs are multiplied by learned numbers.

    Attributes:
      value: [outputs...] or [inputs...].
      side: "out" or "in".
    """

    value: jax.Array
    side: str

    def into(self, x: jax.Array) -> jax.Array:
        """See `Adapter.into`."""
        return x if self.side == "out" else (x.astype(jnp.float32) * self.value).astype(x.dtype)

    def out(self, y: jax.Array) -> jax.Array:
        """See `Adapter.out`."""
        return y * self.value if self.side == "out" else y

    def merged(self, params: Params) -> Params:
        """See `Adapter.merged`."""
        kernel = params["kernel"]
        value = self.value if self.side == "out" else self.value.reshape(*self.value.shape, *(1,) * (kernel.ndim - self.value.ndim))
        new = {"kernel": (kernel.astype(jnp.float32) * value).astype(kernel.dtype)}
        if "bias" in params and self.side == "out":
            new["bias"] = (params["bias"].astype(jnp.float32) * value).astype(params["bias"].dtype)
        return {**params, **new}


@dataclass(frozen=True)
class Ia3(Peft):
    """IA3 (arXiv 2205.05638, section 3.3): keys, values and the MLP's inner activations times vectors, which start at 1."""

    SIDES: ClassVar[dict[str, str]] = {"key": "out", "value": "out", "down": "in"}

    def layer(self, rng: jax.Array, base: Params, index: jax.Array) -> Params:
        """See `Peft.layer`."""
        return self._each(lambda site, dims, side: Scale(jnp.ones(site.shape[dims]), side))

    def layer_axes(self) -> Params:
        """See `Peft.layer_axes`."""
        return self._each(lambda site, dims, side: Scale(site.axes[dims], side))

    def _each(self, make: Callable) -> Params:
        found = sites(self.model)
        flat = {}
        for name, side in self.SIDES.items():
            site = found[name]
            dims = slice(None, site.num_inputs) if side == "in" else slice(site.num_inputs, None)
            flat[(*site.path, "ia3")] = make(site, dims, side)
        return nested(flat)


@partial(jax.tree_util.register_dataclass, data_fields=("value",), meta_fields=())
@dataclass(frozen=True)
class Bias(Adapter):
    """A learned vector that is added to what comes out of a Dense or a Norm."""

    value: jax.Array

    def out(self, y: jax.Array) -> jax.Array:
        """See `Adapter.out`."""
        return y + self.value

    def merged(self, params: Params) -> Params:
        """See `Adapter.merged`."""
        if "bias" not in params:
            raise ValueError(
                f"A bias of shape {self.value.shape} has no bias in the base to be merged into. Keep the adapters beside the base, or"
                " choose a base with model.qkv_bias, output_bias, mlp_bias and norm='layernorm'."
            )
        return {**params, "bias": (params["bias"].astype(jnp.float32) + self.value).astype(params["bias"].dtype)}


@dataclass(frozen=True)
class Bitfit(Peft):
    """BitFit (arXiv 2106.10199): only biases learn. Every linear layer and norm has one, as a difference to the base's own or to none."""

    def layer(self, rng: jax.Array, base: Params, index: jax.Array) -> Params:
        """See `Peft.layer`."""
        return self._each(self._layer_norms(), lambda shape, axes: Bias(jnp.zeros(shape)))

    def layer_axes(self) -> Params:
        """See `Peft.layer_axes`."""
        return self._each(self._layer_norms(), lambda shape, axes: Bias(axes))

    def stem(self, rng: jax.Array, base: Params) -> Params:
        """See `Peft.stem`."""
        return {"final_norm": {"bitfit": Bias(jnp.zeros(self.model.config.width))}} if "final_norm" in base else {}

    def stem_axes(self) -> Params:
        """See `Peft.stem_axes`."""
        return {"final_norm": {"bitfit": Bias(("norm",))}} if "final_norm" in self.model.abstract() else {}  # type: ignore[arg-type]

    def _layer_norms(self) -> dict[tuple[str, ...], tuple[int, ...]]:
        layer = self.model.relayout(self.model.abstract(), False)["layers"]["0"]
        leaves = {tuple(rules.path_name(path).split("/")): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(layer)}
        return {path: shape for path, shape in leaves.items() if path[-1] == "scale"}

    def _each(self, norms: dict[tuple[str, ...], tuple[int, ...]], make: Callable) -> Params:
        flat = {(*path[:-1], "bitfit"): make(shape, logical_axes(("layers", "0", *path), len(shape))) for path, shape in norms.items()}
        for name, site in sites(self.model).items():
            flat[(*site.path, "bitfit")] = make(site.shape[site.num_inputs :], AXES[f"{name}/bias"])
        return nested(flat)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("down", "inner_bias", "up", "outer_bias"),
    meta_fields=("activation", "scale"),
)
@dataclass(frozen=True)
class Bottleneck(Adapter):
    """scale * (activation(x down + inner_bias) up + outer_bias).

    Attributes:
      down, inner_bias, up, outer_bias: [D, M], [M], [M, D], [D].
    """

    down: jax.Array
    inner_bias: jax.Array
    up: jax.Array
    outer_bias: jax.Array
    activation: str
    scale: float

    def __call__(self, x: jax.Array, compute: Compute) -> jax.Array:
        """[B, T, D] -> [B, T, D], in the compute dtype; biases are added in float32."""
        x = x.astype(compute.dtype) @ weight(self.down, ("embed", "rank"), compute.dtype)
        x = ACTIVATIONS[self.activation](x.astype(jnp.float32) + self.inner_bias).astype(compute.dtype)
        x = x @ weight(self.up, ("rank", "embed"), compute.dtype)
        return (self.scale * (x.astype(jnp.float32) + self.outer_bias)).astype(compute.dtype)


@dataclass(frozen=True)
class Houlsby(Peft):
    """Adapters after attention and after the MLP, before the sum with the residual stream (arXiv 1902.00751, figure 2).

    Attributes:
      reduction: the inner width is D / reduction.
      activation: a name of `layers.ACTIVATIONS`; silu is swish.
      scale: factor of what is added.
    """

    PLACES: ClassVar[tuple[str, ...]] = ("after_attention", "after_mlp")

    reduction: float = 16
    activation: str = "silu"
    scale: float = 1.0

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            near = nearest(self.activation, ACTIVATIONS)
            raise ValueError(f"Unknown peft.activation={self.activation!r}. Choose one of: {', '.join(ACTIVATIONS)}.{near}")
        if not 0 < self.reduction <= self.model.config.width:
            raise ValueError(f"peft.reduction={self.reduction} leaves no inner width. Choose up to model.width={self.model.config.width}.")

    @property
    def inner(self) -> int:
        """M."""
        return int(self.model.config.width / self.reduction)

    def matrices(self, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Down and up as they start: normal with deviation 0.01, cut at two of them (section 3.6)."""
        D, M = self.model.config.width, self.inner
        down, up = (jax.random.truncated_normal(key, -2.0, 2.0, (D, M)) for key in jax.random.split(rng))
        return 0.01 * down, 0.01 * up.T

    def layer(self, rng: jax.Array, base: Params, index: jax.Array) -> Params:
        """See `Peft.layer`."""
        D, M, keys = self.model.config.width, self.inner, jax.random.split(rng, len(self.PLACES))
        found = {}
        for place, key in zip(self.PLACES, keys, strict=True):
            down, up = self.matrices(key)
            found[place] = Bottleneck(down, jnp.zeros(M), up, jnp.zeros(D), self.activation, self.scale)
        return found

    def layer_axes(self) -> Params:
        """See `Peft.layer_axes`."""
        axes: Any = (("embed", "rank"), ("rank",), ("rank", "embed"), ("norm",))
        return {place: Bottleneck(axes[0], axes[1], axes[2], axes[3], self.activation, self.scale) for place in self.PLACES}


@dataclass(frozen=True)
class Pfeiffer(Houlsby):
    """One adapter, after the MLP (arXiv 2005.00247, appendix); matrices start normal with BERT's deviation of 0.02."""

    PLACES: ClassVar[tuple[str, ...]] = ("after_mlp",)

    activation: str = "relu"

    def matrices(self, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `Houlsby.matrices`."""
        D, M = self.model.config.width, self.inner
        down, up = jax.random.split(rng)
        return 0.02 * jax.random.normal(down, (D, M)), 0.02 * jax.random.normal(up, (M, D))


@dataclass(frozen=True)
class Parallel(Houlsby):
    """A scaled adapter beside the MLP, of the same input (arXiv 2110.04366, section 4.6); up starts at zero, down as LoRA's A."""

    PLACES: ClassVar[tuple[str, ...]] = ("beside_mlp",)

    reduction: float = 2
    activation: str = "relu"
    scale: float = 4.0

    def matrices(self, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `Houlsby.matrices`."""
        D, M = self.model.config.width, self.inner
        bound = 1 / math.sqrt(D)
        return jax.random.uniform(rng, (D, M), minval=-bound, maxval=bound), jnp.zeros((M, D))
