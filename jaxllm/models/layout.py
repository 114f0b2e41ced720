"""Between the two layouts of the layers, one by one and stacked for a scan: exact, in any tree that holds parameter-like trees."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.models.config import ModelConfig

Tree = Any


def holds_layers(tree: Tree) -> bool:
    """Whether this is a parameter-like tree: a dict whose "layers" is keyed by layer numbers and, or, "scanned"."""
    if not isinstance(tree, dict) or not isinstance(tree.get("layers"), dict):
        return False
    return all(isinstance(name, str) and (name.isdigit() or name == "scanned") for name in tree["layers"])


def relayout(config: ModelConfig, tree: Tree, scan_layers: bool) -> Tree:
    """Every parameter-like tree inside `tree` in the wanted layout; all else as it is.

    Leaves may be jax or numpy arrays, or ShapeDtypeStructs (which lose their sharding).

    Raises:
      ValueError: the layers in a tree are not those of the config.
    """

    def convert(node):
        if not holds_layers(node):
            return node
        layers = one_by_one(config, node["layers"])
        others = {name: relayout(config, part, scan_layers) for name, part in node.items() if name != "layers"}
        return {**others, "layers": stacked(config, layers) if scan_layers else layers}

    return jax.tree.map(convert, tree, is_leaf=holds_layers)


def one_by_one(config: ModelConfig, layers: dict[str, Tree]) -> dict[str, Tree]:
    """{"<layer>": tree} for every layer."""
    places = len(config.layer_pattern)
    single = {name: tree for name, tree in layers.items() if name != "scanned"}
    for place, tree in layers.get("scanned", {}).items():
        for repeat in range(config.num_repeats):
            single[str(repeat * places + int(place))] = jax.tree.map(lambda x, i=repeat: _take(x, i, config.num_repeats), tree)
    if sorted(map(int, single)) != list(range(config.num_layers)):
        raise ValueError(
            f"This tree holds the layers {', '.join(sorted(single, key=int))}, but model.num_layers={config.num_layers} "
            f"and model.layer_pattern={config.layer_pattern}. Give the ModelConfig that it was made with."
        )
    return {str(layer): single[str(layer)] for layer in range(config.num_layers)}


def stacked(config: ModelConfig, layers: dict[str, Tree]) -> dict[str, Tree]:
    """{"scanned": {"<place in the pattern>": stacked tree}} and the remainder by number."""
    places = len(config.layer_pattern)
    out: dict[str, Tree] = {str(layer): layers[str(layer)] for layer in config.remainder}
    if config.num_repeats:
        whole = places * config.num_repeats
        out["scanned"] = {str(p): jax.tree.map(_stack, *(layers[str(i)] for i in range(p, whole, places))) for p in range(places)}
    return out


def _take(x: Any, index: int, length: int) -> Any:
    if x.shape[:1] != (length,):
        raise ValueError(
            f"A stacked leaf of shape {x.shape} should have {length} layers in front. Give the ModelConfig that it was made with."
        )
    return jax.ShapeDtypeStruct(x.shape[1:], x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x[index]


def _stack(*leaves: Any) -> Any:
    if isinstance(leaves[0], jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((len(leaves), *leaves[0].shape), leaves[0].dtype)
    return (np if isinstance(leaves[0], np.ndarray) else jnp).stack(leaves)
