"""`init_from`: the weights of another run as a start, whole or in part, renamed, with a resized vocabulary; shown in a table."""

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxllm.parallel import hosts, rules

SHOWN = 12  # rows of the table that are printed, the rest is counted


def flat(tree: Any) -> dict[str, Any]:
    """Parameter name -> array."""
    return {rules.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def renames(pairs: Sequence[str]) -> dict[str, str]:
    """'here=there' pairs as a table.

    Raises:
      ValueError: a pair without '=', or a regex that is none.
    """
    table = {}
    for pair in pairs:
        here, equals, there = pair.partition("=")
        try:
            re.compile(here)
        except re.error as error:
            raise ValueError(f"init_rename: {here!r} is not a regular expression ({error}).") from None
        if not equals:
            raise ValueError(f"init_rename: {pair!r} has no '='. Write 'name here=name there'.")
        table[here] = there
    return table


def source_name(name: str, table: Mapping[str, str]) -> str:
    """The name in the source of one of our parameters: the first regex that matches it whole is applied."""
    for pattern, target in table.items():
        if re.fullmatch(pattern, name):
            return re.sub(f"^(?:{pattern})$", target, name)
    return name


def overlay(mine: jax.Array, theirs: jax.Array) -> jax.Array:
    """Their values where both have them, mine elsewhere: along every dim the first rows are shared."""
    shared = tuple(slice(0, min(a, b)) for a, b in zip(mine.shape, theirs.shape, strict=True))
    return mine.at[shared].set(theirs[shared].astype(mine.dtype))


def merge(
    mine: Mapping[str, Any], theirs: Mapping[str, Any], axes: Mapping[str, Any], table: Mapping[str, str], skip: Sequence[str]
) -> tuple[dict, list]:
    """Fills my parameters from theirs by name.

    Args:
      mine: name -> fresh array.
      theirs: name -> array of the source.
      axes: name -> logical axes of mine; only a "vocab" dim may differ in size.
      table: regex of my name -> name there.
      skip: regexes of my names that stay fresh.

    Returns:
      name -> array, and one row (name, what happened) for each name of mine, then of theirs that nobody asked for.

    Raises:
      ValueError: shapes that differ in another dim than the vocabulary.
    """
    for pattern in (*table, *skip):
        if not any(re.fullmatch(pattern, name) for name in mine):
            raise ValueError(f"init_from: {pattern!r} matches no parameter here. They are called: {', '.join(list(mine)[:6])}, ...")
    merged, rows, used = {}, [], set()
    for name, array in mine.items():
        source = source_name(name, table)
        merged[name] = array
        if any(re.fullmatch(pattern, name) for pattern in skip):
            used.add(source)
            rows.append((name, "fresh (init_skip)"))
            continue
        if source not in theirs:
            rows.append((name, f"fresh: no {source} there"))
            continue
        used.add(source)
        there = theirs[source]
        differ = [d for d, (a, b) in enumerate(zip(array.shape, there.shape, strict=False)) if a != b]
        if len(array.shape) != len(there.shape) or any(axes[name][d] != "vocab" for d in differ):
            raise ValueError(
                f"init_from: {name} is {array.shape} here and {source} is {there.shape} there. Only the vocabulary may differ in size;"
                f" leave it out with init_skip=['{name}'], or rename it with init_rename."
            )
        merged[name] = overlay(array, there) if differ else there.astype(array.dtype)
        resized = f", vocabulary {there.shape[differ[0]]} -> {array.shape[differ[0]]}" if differ else ""
        rows.append((name, "loaded" + (f" from {source}" if source != name else "") + resized))
    rows += [(name, "not used") for name in theirs if name not in used]
    return merged, rows


class Source(NamedTuple):
    """What a run starts from."""

    model: Any
    params: Any
    called: str
    tokenizer: str | None  # its fingerprint


def fill(config: ConfigDict, mesh: Any, model: Any, source: Source, tokenizer: str) -> Any:
    """Fresh parameters, filled from a source where names and shapes agree; prints what came from where.

    Args:
      config: of this run.
      mesh: where the parameters shall lie.
      model: this run's.
      source: what `init_from` names.
      tokenizer: the fingerprint of this run's; that the source had another one is shown, and is the user's to judge.

    Raises:
      ValueError: nothing whose name agrees, or shapes that do not.
    """
    there, theirs, called, other = source
    rows: list[tuple[str, str]] = []
    if other != tokenizer:
        rows.append(("tokenizer", "ANOTHER there: rows of the vocabulary were learnt for other tokens (init_skip leaves them out)"))
    if there == model and not config.init_rename and not config.init_skip:  # each in its place already: no second copy
        loads = [(name, "loaded") for name in flat(there.relayout(there.abstract(), False))]
        show([*rows, *loads], f"Weights from {called}: {len(loads)} of {len(loads)} parameters")
        return theirs
    alone = dataclasses.replace(model, scan_layers=False)
    axes = alone.axes()
    shardings = rules.shardings(axes, mesh, alone.abstract())
    with jax.set_mesh(mesh):
        fresh = jax.jit(lambda: alone.init(jax.random.key(config.seed)), out_shardings=shardings)()
        names = {name: jnp.asarray(array) for name, array in flat(there.relayout(theirs, False)).items()}
        is_axes = lambda x: isinstance(x, tuple)  # noqa: E731
        flat_axes = {rules.path_name(p): a for p, a in jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_axes)}
        merged, fates = merge(flat(fresh), names, flat_axes, renames(config.init_rename), list(config.init_skip))
        loaded = sum(what.startswith("loaded") for _, what in fates)
        if not loaded:
            raise ValueError(
                f"init_from: no parameter of {config.init_from} has a name of this model. Its names: {', '.join(list(names)[:6])}, ..."
            )
        show([*rows, *fates], f"Weights from {called}: {loaded} of {len(flat(fresh))} parameters")
        leaves = [jax.device_put(merged[rules.path_name(p)], s) for p, s in jax.tree_util.tree_leaves_with_path(shardings)]
        tree = jax.tree.unflatten(jax.tree.structure(shardings), leaves)
        return model.relayout(tree, model.scan_layers)


def show(rows: Sequence[tuple[str, str]], title: str) -> None:
    """The table of what came from where: whatever is not plainly loaded first."""
    if not hosts.is_first():
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None)
    table.add_column("parameter")
    table.add_column("")
    ordered = sorted(rows, key=lambda row: row[1] == "loaded")
    for row in ordered[:SHOWN]:
        table.add_row(*row)
    if len(rows) > SHOWN:
        table.add_row(f"and {len(rows) - SHOWN} more", "loaded" if ordered[SHOWN][1] == "loaded" else "")
    Console(file=sys.stderr).print(table)
