"""Only the last layers learn: their parameters, copied into the second tree, stand in for the base's."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.models.adapted import Adapter, Params
from jaxllm.models.method import Peft

STEM = ("final_norm", "head")


@partial(jax.tree_util.register_dataclass, data_fields=("params",), meta_fields=("first",))
@dataclass(frozen=True)
class Replaced(Adapter):
    """Parameters in the place of the base's.

    Attributes:
      params: {"<layer>": parameters of a layer, ...}, and of `STEM` what is trained.
      first: the lowest of those layers.
    """

    params: Params
    first: int

    def repeats(self, layers: Params) -> int | None:
        """How many repetitions of the base's pattern stay as they are; None: the base has no stack of layers."""
        places = len(layers.get("scanned", {}))
        length = jax.tree.leaves(layers["scanned"])[0].shape[0] if places else 0
        return min(self.first // places, length) if places else None

    def stem(self, base: Params) -> Params:
        """The base with what is replaced outside of the layers."""
        return {**base, **{name: tree for name, tree in self.params.items() if name in STEM}}

    def opened(self, base: Params) -> Params:
        """The base with its stack of layers cut off where the first one is replaced; the layers after it stand one by one."""
        layers = base["layers"]
        kept = self.repeats(layers)
        single = {name: tree for name, tree in layers.items() if name != "scanned"}
        if kept is not None:
            places = len(layers["scanned"])
            for place, stacked in layers["scanned"].items():
                for repeat in range(kept, jax.tree.leaves(stacked)[0].shape[0]):
                    single[str(repeat * places + int(place))] = jax.tree.map(lambda x, i=repeat: x[i], stacked)
            if kept:
                single["scanned"] = jax.tree.map(lambda x: x[:kept], layers["scanned"])
        return {**self.stem(base), "layers": {**single, **self._own()}}

    def merged(self, params: Params) -> Params:
        """See `Adapter.merged`; here `params` are all of the base's."""
        layers = dict(params["layers"])
        scanned = dict(layers.pop("scanned", {}))
        places = len(scanned)
        for name, own in self._own().items():
            if name in layers:
                layers[name] = jax.tree.map(lambda new, old: new.astype(old.dtype), own, layers[name])
            else:
                row, place = divmod(int(name), places)
                scanned[str(place)] = jax.tree.map(
                    lambda old, new, i=row: jnp.asarray(old).at[i].set(new.astype(old.dtype)), scanned[str(place)], own
                )
        return {**self.stem(params), "layers": {**layers, **({"scanned": scanned} if scanned else {})}}

    def _own(self) -> Params:
        return {name: tree for name, tree in self.params.items() if name not in STEM}


@dataclass(frozen=True)
class LastLayers(Peft):
    """The last layers learn; the backward pass ends where they begin.

    Attributes:
      layers: how many.
      head: whether the final norm and the head learn too.
    """

    layers: int = 1
    head: bool = False

    def __post_init__(self):
        config = self.model.config
        if not 1 <= self.layers <= config.num_layers:
            raise ValueError(f"peft.layers={self.layers} of a model of {config.num_layers} layers. Give 1 to {config.num_layers}.")
        if self.head and config.tied_embeddings:
            raise ValueError("peft.head=True: this model's head is its embedding, which is read before all layers. Set peft.head=False.")

    def stem(self, rng: jax.Array, base: Params) -> Params:
        """See `Peft.stem`."""
        single = self.model.relayout(base, False)
        return self._replaced(jax.tree.map(lambda x: x.astype(jnp.float32), single, is_leaf=lambda x: hasattr(x, "astype")))

    def stem_axes(self) -> Params:
        """See `Peft.stem_axes`."""
        return self._replaced(dataclasses.replace(self.model, scan_layers=False).axes())

    def _replaced(self, params: Any) -> Params:
        num_layers = self.model.config.num_layers
        first = num_layers - self.layers
        own = {str(i): params["layers"][str(i)] for i in range(first, num_layers)}
        stem = {name: params[name] for name in STEM if self.head and name in params}
        return {"last": Replaced({**own, **stem}, first)}
