"""Trees as a checkpoint holds them: plain nested dicts of arrays under names that do not depend on the classes of the day."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxllm.parallel.rules import path_name

Names = dict[str, tuple[list[int], str]]  # name -> (shape, dtype)


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of any tree as {"params/embed/kernel": leaf}; None and empty containers have no name."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def as_dict(tree: Any) -> dict[str, Any]:
    """The same leaves as plain nested dicts; a place in a tuple becomes its number, a field of a record its name."""
    result: dict[str, Any] = {}
    for name, leaf in named_leaves(tree).items():
        *parents, last = name.split("/")
        at = result
        for part in parents:
            at = at.setdefault(part, {})
        at[last] = leaf
    return result


def from_dict(like: Any, nested: Mapping[str, Any]) -> Any:
    """The inverse of `as_dict`: the leaves of `nested` in the containers of `like`."""
    leaves = named_leaves(nested)
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in named_leaves(like)])


def names_and_shapes(tree: Any) -> Names:
    """Name -> (shape, dtype) of every array: what a manifest says of the arrays."""
    return {name: (list(x.shape), np.dtype(x.dtype).name) for name, x in named_leaves(tree).items()}


def check_same(saved: Names, wanted: Names, where: str) -> None:
    """Refuses to load into a state that is built otherwise.

    Raises:
      ValueError: names the first array that differs, how, and how many do.
    """
    wrong = [f"it has {name} and the state has not" for name in saved.keys() - wanted.keys()]
    wrong += [f"the state has {name} and it has not" for name in wanted.keys() - saved.keys()]
    for name in saved.keys() & wanted.keys():
        if (list(saved[name][0]), saved[name][1]) != (list(wanted[name][0]), wanted[name][1]):
            wrong.append(f"{name} is {_show(saved[name])} in it and {_show(wanted[name])} in the state")
    if wrong:
        raise ValueError(
            f"{where} holds another model or optimizer: {min(wrong)} ({len(wrong)} differences)."
            " Resume with the config it was saved with, or start from its weights with --config.init_from in a new --workdir."
        )


def _show(facts: tuple[list[int], str]) -> str:
    shape, dtype = facts
    return f"{dtype}[{','.join(map(str, shape))}]"


def split_feed(feed_state: Any) -> tuple[dict[str, Any], Any]:
    """Takes a feed's state apart into arrays and JSON.

    Args:
      feed_state: nested dicts and lists of arrays, numbers, strings, booleans and None.

    Returns:
      The arrays by name, and the same nesting with {"array": name} where each was.

    Raises:
      TypeError: something else is in there.
    """
    arrays: dict[str, Any] = {}

    def take(name: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): take(f"{name}.{key}" if name else str(key), inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [take(f"{name}.{i}", inner) for i, inner in enumerate(value)]
        if isinstance(value, np.ndarray | np.generic | jax.Array):
            arrays[name] = value if isinstance(value, jax.Array) else np.array(value)
            return {"array": name}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(
            f"feed.state() has a {type(value).__name__} at {name!r}. Give numbers, strings, arrays, and dicts and lists of them."
        )

    return arrays, take("", feed_state)


def join_feed(arrays: Mapping[str, Any], nested: Any) -> Any:
    """The inverse of `split_feed`; tuples come back as lists."""
    if isinstance(nested, Mapping):
        if set(nested) == {"array"} and isinstance(nested["array"], str):  # a table of a feed's own may have that key
            return arrays[nested["array"]]
        return {key: join_feed(arrays, inner) for key, inner in nested.items()}
    if isinstance(nested, list):
        return [join_feed(arrays, inner) for inner in nested]
    return nested
