"""Adafactor's scaling, layer by layer: a stack of layers is treated as its layers, so that scanning them changes nothing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxllm.parallel import rules
from jaxllm.training.masks import num_stacked


def scale_by_adafactor(
    axes: dict[str, rules.LogicalAxes] | None,
    decay_rate: float = 0.8,
    clipping_threshold: float = 1.0,
    min_dim_size_to_factor: int = 128,
    parameter_scale: bool = True,
) -> optax.GradientTransformation:
    """Factored second moments, update clipping and parameter-relative rates (arXiv 1804.04235, algorithms 4 and 6), from optax's parts.

    The state is optax's FactoredState; a stacked leaf's rows and columns keep their leading [L].

    Args:
      axes: parameter name -> logical axes; None: nothing is stacked.
      decay_rate: of the second moment, 1 - t^-rate (section 7.2).
      clipping_threshold: the largest root mean square of an update (section 6).
      min_dim_size_to_factor: a matrix with a smaller second dim keeps its whole second moment.
      parameter_scale: multiply by the root mean square of the parameter, at least 1e-3 (section 8).
    """
    factored = optax.scale_by_factored_rms(decay_rate=decay_rate, min_dim_size_to_factor=min_dim_size_to_factor)
    after = [optax.clip_by_block_rms(clipping_threshold)] + ([optax.scale_by_param_block_rms()] if parameter_scale else [])

    def init_one(param):
        state = factored.init(param)
        return state.v_row, state.v_col, state.v

    def update_one(grad, row, column, whole, param, count):
        update, state = factored.update(grad, optax.FactoredState(count, row, column, whole), param)
        for part in after:
            update, _ = part.update(update, part.init(param), param)
        return update, state.v_row, state.v_col, state.v

    def init(params):
        return optax.FactoredState(jnp.zeros((), jnp.int32), *_columns(_per_layer(init_one, axes, params), params, 3))

    def update(grads, state, params):
        out = _per_layer(update_one, axes, grads, state.v_row, state.v_col, state.v, params, shared=(state.count,))
        updates, rows, columns, wholes = _columns(out, grads, 4)
        return updates, optax.FactoredState(optax.safe_increment(state.count), rows, columns, wholes)

    return optax.GradientTransformation(init, update)


def _per_layer(f: Callable, axes: dict[str, rules.LogicalAxes] | None, *trees: Any, shared: tuple = ()) -> Any:
    """Maps `f` over leaves, mapped again over the dims along which a leaf stacks layers."""

    def one(path, *leaves):
        mapped = f
        for _ in range(num_stacked(axes[rules.path_name(path)]) if axes is not None else 0):
            mapped = jax.vmap(mapped, in_axes=(0,) * len(leaves) + (None,) * len(shared))
        return mapped(*leaves, *shared)

    return jax.tree_util.tree_map_with_path(one, *trees)


def _columns(tree_of_tuples: Any, like: Any, number: int) -> list[Any]:
    """A tree of tuples as a tuple of trees."""
    return [jax.tree.map(lambda _, row, i=i: row[i], like, tree_of_tuples) for i in range(number)]
