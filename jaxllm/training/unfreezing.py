"""Gradual unfreezing: the last layer learns first, and every few steps the one below it joins (ULMFiT, arXiv 1801.06146, section 3.3)."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.parallel import rules
from jaxllm.training.optimizers import Optimizer


def unfreezing(optimizer: Optimizer, every: int) -> Optimizer:
    """An optimizer for whose first steps the lower layers stand still: of L layers, layer l learns from step (L - 1 - l) * `every` on.

    What comes after the layers learns from step 0, embeddings from step L * `every`. What stands still has no gradient, so that its moments
    start from nothing when it joins, and no update: no weight decay either.

    Args:
      optimizer: from `make_optimizer`; what it freezes stays frozen.
      every: steps from one layer to the next.

    Raises:
      ValueError: `every` is no number of steps; at the first update, parameters without layers.
    """
    if every < 1:
        raise ValueError(f"every={every} is not a number of steps. Give 1 or more.")

    def update(grads, state, params, *, step):
        starts = steps_of_start(params, every)
        hold = lambda tree: jax.tree.map(lambda x, start: _held(x, start, step), tree, starts, is_leaf=lambda x: x is None)  # noqa: E731
        updates, state = optimizer.update(hold(grads), state, params, step=step)
        return hold(updates), state

    return optimizer._replace(update=update)


def steps_of_start(params: Any, every: int) -> Any:
    """The step from which each parameter learns, int32: a scalar, or one number for each layer of a stack.

    Args:
      params: {"layers": {"<layer>": ..., "scanned": {"<place>": stacked}}, ...}.
      every: steps from one layer to the next.
    """
    layers = params.get("layers") if isinstance(params, dict) else None
    if not layers:
        raise ValueError("Gradual unfreezing needs parameters with layers. Choose full tuning, or adapters that lie in layers.")
    scanned = layers.get("scanned", {})
    repeats = jax.tree.leaves(scanned)[0].shape[0] if scanned else 0
    num_layers = repeats * len(scanned) + len(layers) - bool(scanned)

    def start(path, leaf):
        parts = rules.path_name(path).split("/")
        if parts[0] != "layers":
            return jnp.int32(num_layers * every if parts[0] == "embedding" else 0)
        stacked = parts[1] == "scanned"
        layer = jnp.arange(repeats, dtype=jnp.int32) * len(scanned) + int(parts[2]) if stacked else jnp.int32(parts[1])
        return (num_layers - 1 - layer) * every

    return jax.tree_util.tree_map_with_path(start, params)


def _held(x: Any, start: jax.Array, step: jax.Array) -> Any:
    """x where its time has come, else zeros; None where it is frozen for good."""
    return None if x is None else jnp.where((step >= start).reshape(-1, *(1,) * (x.ndim - 1)) if start.ndim else step >= start, x, 0)
