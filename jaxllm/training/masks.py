"""Which parameters something applies to: by name, by logical axes, and trees with holes where it does not apply."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax

from jaxllm.parallel import rules

STACKED = ("layers", "expert", "stack")  # dims along which whole parameters are stacked
LOOKUPS = ("vocab", "positions", "output")  # dims that are looked up by index, or are scores: their matrices are tables, not maps


def is_axes(node: Any) -> bool:
    """Whether a node of a tree is a tuple of logical axis names."""
    return isinstance(node, tuple) and all(isinstance(name, str | None) for name in node)


def named_axes(axes: Any) -> dict[str, rules.LogicalAxes]:
    """A tree of logical axis names, flat: parameter name -> tuple of names."""
    return {rules.path_name(path): names for path, names in jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_axes)}


def select(tree: Any, mask: Any) -> Any:
    """The tree with None where the mask is False: those leaves are gone for `jax.tree` and for optax."""
    return jax.tree.map(lambda leaf, keep: leaf if keep else None, tree, mask)


def merge(selected: Any, full: Any) -> Any:
    """`full` with the leaves of `selected` in their places."""
    return jax.tree.map(lambda chosen, leaf: leaf if chosen is None else chosen, selected, full, is_leaf=lambda x: x is None)


def by_name(tree: Any, patterns: str | Sequence[str]) -> Any:
    """True for each leaf whose name (a/b/c) matches one of the regular expressions somewhere.

    Raises:
      ValueError: a pattern that is no regular expression, or that matches no name.
    """
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    names = [rules.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    for pattern in patterns:
        try:
            found = any(re.search(pattern, name) for name in names)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}.") from None
        if not found:
            shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
            raise ValueError(f"No parameter's name matches {pattern!r}. The names are: {shown}.")
    return jax.tree_util.tree_map_with_path(lambda path, _: any(re.search(p, rules.path_name(path)) for p in patterns), tree)


def num_stacked(axes: rules.LogicalAxes | None) -> int:
    """How many leading dims merely stack whole parameters."""
    names = axes or ()
    return next((i for i, name in enumerate(names) if name not in STACKED), len(names))


def matrix_split(shape: tuple[int, ...], axes: rules.LogicalAxes | None) -> tuple[int, int, int] | None:
    """How a parameter is read as a stack of matrices, heads and head size as one dim (q: [D, N*H]; output: [N*H, D]).

    Args:
      shape: the parameter's.
      axes: its logical axes; None: nothing is known, and only [rows, columns] is a matrix.

    Returns:
      (stack, rows, columns), or None for vectors, biases [N, H] and scalars.
    """
    if axes is None:
        return (1, shape[0], shape[1]) if len(shape) == 2 else None
    first = num_stacked(axes)
    dims: list[int] = []
    for i in range(first, len(shape)):
        if axes[i] == "head_dim" and i > first and axes[i - 1] in ("heads", "kv_heads"):
            dims[-1] *= shape[i]
        else:
            dims.append(shape[i])
    return (math.prod(shape[:first]), dims[0], dims[1]) if len(dims) == 2 else None


def is_matrix(shape: tuple[int, ...], axes: rules.LogicalAxes | None) -> bool:
    """Whether weight decay applies by default: to matrices, embeddings included, not to vectors, biases and norms."""
    return matrix_split(shape, axes) is not None


def is_hidden_matrix(shape: tuple[int, ...], axes: rules.LogicalAxes | None) -> bool:
    """Whether muon applies: to matrices that map hidden vectors to hidden vectors, not to embeddings, learned positions or the head."""
    return is_matrix(shape, axes) and not any(name in LOOKUPS for name in axes or ())
