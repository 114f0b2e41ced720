"""Options of what a config builds by kind: rewards and tools."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def check_options(what: str, maker: Callable, options: Mapping[str, Any], others: Sequence[str], given: Sequence[str] = ()) -> None:
    """Refuses options that a maker has not, and the lack of one that it needs.

    Args:
      what: for whom, as a message begins.
      maker: its parameters are the options.
      options: as they were given.
      others: options that all kinds have.
      given: parameters that are filled in elsewhere.

    Raises:
      ValueError: names the option and those there are.
    """
    known = inspect.signature(maker).parameters
    wrong = [option for option in options if option not in known]
    wrong += [p.name for p in known.values() if p.default is p.empty and p.name not in options]
    if wrong:
        problem = "does not know" if wrong[0] in options else "needs"
        own = ", ".join(option for option in known if option not in given) or "none"
        raise ValueError(f"{what} {problem} {wrong[0]!r}. Its own options: {own}; those of all: {', '.join(others)}.")
