"""Options of what a config builds by kind: rewards and tools."""

import difflib
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_type_hints

WORDS = {int: "a whole number", float: "a number", str: "a text"}


def table_of(entry: Any, key: str) -> dict[str, Any]:
    """An entry of a list in a config, a kind or a table, as a table.

    Raises:
      ValueError: it is neither, or says no kind.
    """
    if not isinstance(entry, str | Mapping):
        raise ValueError(f"{key} has the entry {entry!r}. Each is a kind, or a table {{kind, name, ...}}.")
    found = {"kind": entry} if isinstance(entry, str) else dict(entry)
    if "kind" not in found:
        raise ValueError(f"{key} has the entry {found!r}, which has no kind. Each is a kind, or a table {{kind, name, ...}}.")
    return found


def check_options(what: str, maker: Callable, options: Mapping[str, Any], others: Sequence[str], given: Sequence[str] = ()) -> None:
    """Refuses options that a maker has not, the lack of one that it needs, and values of another kind than it says.

    Args:
      what: for whom, as a message begins.
      maker: its parameters are the options; their annotations say what they are.
      options: as they were given.
      others: options that all kinds have.
      given: parameters that are filled in elsewhere.

    Raises:
      ValueError: names the option and those there are, or its value and what it should be.
    """
    known, hints = inspect.signature(maker).parameters, get_type_hints(maker)
    own = [option for option in known if option not in given]
    wrong = [option for option in options if option not in own]
    wrong += [p.name for p in known.values() if p.default is p.empty and p.name in own and p.name not in options]
    if wrong:
        problem = "does not know" if wrong[0] in options else "needs"
        near = difflib.get_close_matches(wrong[0], own, n=1) if wrong[0] in options else []
        raise ValueError(
            f"{what} {problem} {wrong[0]!r}. Its own options: {', '.join(own) or 'none'}; those of all: {', '.join(others)}."
            + (f" Did you mean {near[0]!r}?" if near else "")
        )
    for option, value in options.items():
        if kinds := _kinds(hints.get(option)):
            _check_kind(f"{what}: {option}", value, kinds)


def check_number(what: str, value: Any) -> float:
    """The value as a float.

    Raises:
      ValueError: it is no finite number.
    """
    _check_kind(what, value, (float,))
    return float(value)


def _kinds(hint: Any) -> tuple[type, ...]:
    """The plain kinds that an annotation allows; (): it says nothing that can be looked at."""
    kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return kinds if all(kind in (*WORDS, types.NoneType) for kind in kinds) else ()


def _check_kind(what: str, value: Any, kinds: tuple[type, ...]) -> None:
    taken = tuple((int, float) if kind is float else kind for kind in kinds)
    fits = any(isinstance(value, kind) and not isinstance(value, bool) for kind in taken)
    if not fits or value != value or value in (float("inf"), -float("inf")):
        wanted = " or ".join(WORDS[kind] for kind in kinds if kind in WORDS)
        raise ValueError(f"{what}={value!r} is not {wanted}. Give {wanted}.")
