"""Tables of names: the row that was asked for, or an error that names the choices and the nearest."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Row = TypeVar("Row")
WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a word"}  # what an option is, by the type of its default


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
    options = {name: parameter.default for name, parameter in inspect.signature(maker).parameters.items() if name not in fixed}
    for name, value in given.items():
        if name not in options:
            raise ValueError(f"{what} has no option {name!r}. Its options: {', '.join(options) or 'none'}.{nearest(name, options)}")
        kind = type(options[name])
        whole = type(value) is int and kind is float  # a whole number is a number, True is neither
        if kind in WORDS and value is not None and type(value) is not kind and not whole:
            raise ValueError(f"{what} has {name}={value!r}, which is not {WORDS[kind]} (default: {options[name]!r}).")


def nearest(name: str, names: Any) -> str:
    """' Did you mean ...?', or nothing."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
