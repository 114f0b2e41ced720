"""Tables of names: the row that was asked for, or an error that names the choices and the nearest."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Row = TypeVar("Row")


def choose(table: Mapping[str, Row], name: str, what: str) -> Row:
    """The row called `name`.

    Raises:
      ValueError: no such row.
    """
    if name in table:
        return table[name]
    raise ValueError(f"Unknown {what} {name!r}. Choose one of: {', '.join(table)}.{nearest(name, table)}")


def check_options(maker: Callable, given: Mapping[str, Any], what: str, fixed: tuple[str, ...] = ()) -> None:
    """Refuses an option that the maker does not take.

    Args:
      maker: a function whose keyword arguments are the options.
      given: option -> value.
      what: names the maker in the error.
      fixed: arguments of the maker that are not options.

    Raises:
      ValueError: an unknown option.
    """
    options = [name for name in inspect.signature(maker).parameters if name not in fixed]
    for name in given:
        if name not in options:
            raise ValueError(f"{what} has no option {name!r}. Its options: {', '.join(options) or 'none'}.{nearest(name, options)}")


def nearest(name: str, names: Any) -> str:
    """' Did you mean ...?', or nothing."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
