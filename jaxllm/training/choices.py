"""Tables of names: the row that was asked for, or an error that names the choices and the nearest."""

import difflib
import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

Row = TypeVar("Row")
KINDS: dict[type, type] = {bool: bool, int: numbers.Integral, float: numbers.Real, str: str}  # numpy's numbers are numbers
WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a word"}  # what an option is, by the type of its default


def is_kind(value: Any, kind: type) -> bool:
    """Whether a value is of the kind: a whole number is a number, True is neither, and a number must be finite."""
    if kind is not bool and isinstance(value, bool):
        return False
    return isinstance(value, KINDS[kind]) and (kind is not float or math.isfinite(value))  # type: ignore[arg-type]


def choose(table: Mapping[str, Row], name: str, what: str) -> Row:
    """The row called `name`.

    Raises:
      ValueError: no such row.
    """
    if name in table:
        return table[name]
    raise ValueError(f"Unknown {what} {name!r}. Choose one of: {', '.join(table)}.{nearest(name, table)}")


def check_options(maker: Callable, given: Mapping[str, Any], what: str, fixed: tuple[str, ...] = ()) -> None:
    """Refuses an option that the maker does not take, and a value of another kind than the option's default.

    Args:
      maker: a function whose keyword arguments are the options.
      given: option -> value.
      what: names the maker in the error.
      fixed: arguments of the maker that are not options.

    Raises:
      ValueError: an unknown option, or such a value.
    """
    options = {name: parameter for name, parameter in inspect.signature(maker).parameters.items() if name not in fixed}
    for name, value in given.items():
        if name not in options:
            raise ValueError(f"{what} has no option {name!r}. Its options: {', '.join(options) or 'none'}.{nearest(name, options)}")
        default, no_value = options[name].default, type(None) in get_args(options[name].annotation)
        kind = type(default) if default is not None else str if name.endswith("dtype") else None
        if kind in KINDS and not (value is None and (default is None or no_value)) and not is_kind(value, kind):
            raise ValueError(f"{what} has {name}={value!r}, which is not {WORDS[kind]} (default: {default!r}).")


def nearest(name: str, names: Any) -> str:
    """' Did you mean ...?', or nothing."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
