"""Which documents are not worth training on: the file filters of the Codex paper, each an option with its threshold."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

# Chen et al. 2021 (arXiv:2107.03374), §3.1: out go files "which were likely auto-generated, had average line length greater than 100, had
# maximum line length greater than 1000, or contained a small percentage of alphanumeric characters". The paper gives no number for the
# last; a quarter is ours.
CODEX: dict[str, float] = {"average_line_length": 100, "max_line_length": 1000, "alphanumeric_share": 0.25, "generated": 1}

GENERATED = re.compile(
    r"auto-?\s?generated|automatically generated|generated (automatically|by)|do not (edit|modify)|@generated|file (was|is) generated",
    re.IGNORECASE,
)
GENERATED_LINES = 5  # a marker counts in the first lines only: further down it is talked about


def _average_line_length(text: str, limit: float) -> bool:
    return len(text) / (text.count("\n") + 1) > limit


def _max_line_length(text: str, limit: float) -> bool:
    return max(map(len, text.splitlines()), default=0) > limit


def _alphanumeric_share(text: str, limit: float) -> bool:
    return sum(map(str.isalnum, text)) < limit * len(text)


def _generated(text: str, limit: float) -> bool:
    return bool(limit) and GENERATED.search("\n".join(text[:4000].splitlines()[:GENERATED_LINES])) is not None


FILTERS: dict[str, Callable[[str, float], bool]] = {
    "average_line_length": _average_line_length,
    "max_line_length": _max_line_length,
    "alphanumeric_share": _alphanumeric_share,
    "generated": _generated,
}


def make_filters(said: str | Mapping[str, Any] | None) -> dict[str, float]:
    """The filters to apply, with their thresholds.

    Args:
      said: None or "none", "codex" (all four), or a mapping from filter to threshold (None or False: off; for `generated`, True).

    Raises:
      ValueError: an unknown name, or a threshold that is no number.
    """
    if not said or said == "none":
        return {}
    if said == "codex":
        return dict(CODEX)
    if not isinstance(said, Mapping):
        raise ValueError(f"Unknown data.filters {said!r}. Choose from: none, codex, or a mapping of {', '.join(FILTERS)}.")
    if unknown := sorted(map(str, set(said) - set(FILTERS))):
        raise ValueError(f"Unknown filter {unknown[0]!r} in data.filters. Choose from: {', '.join(FILTERS)}.")
    if bad := [name for name, limit in said.items() if not _is_limit(name, limit)]:
        raise ValueError(f"data.filters.{bad[0]}={said[bad[0]]!r} is not a number. Codex has {CODEX[bad[0]]:g}.")
    return {name: float(limit) for name, limit in sorted(said.items()) if limit is not None and limit is not False}


def _is_limit(name: str, limit: Any) -> bool:
    if limit is True:
        return name == "generated"
    return limit is None or (isinstance(limit, int | float) and not math.isnan(limit))


def reason_to_drop(text: str, filters: Mapping[str, float]) -> str | None:
    """The first filter that a document fails, or None."""
    return next((name for name, limit in filters.items() if FILTERS[name](text, limit)), None)
