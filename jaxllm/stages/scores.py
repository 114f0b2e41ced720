"""Scores as tables on the terminal: of tasks, of answers before a judge, of a judge beside people."""

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jaxllm.evaluation.suite import Result
from jaxllm.parallel import hosts

COUNTS = ("contaminated", "rows_judged", "rows_clean")  # what stands in columns, not as metrics
WIDTH = 160  # columns of a table that goes into a file or a pipe: nothing is folded


def show(results: Sequence[Result], title: str) -> None:
    """A table of scores on standard error."""
    if not hosts.is_first():
        return
    from rich.console import Console
    from rich.table import Table

    looked = any("contaminated" in result.metrics for result in results)
    table = Table(title=title, title_justify="left", box=None)
    for column in ("task", "metric", "score", "95 % interval", "rows", *(("in training",) if looked else ()), "unscored", "shots"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for result in results:
        share = result.metrics.get("contaminated", math.nan)
        for name, value in result.metrics.items():
            if name in COUNTS or name.endswith(("_low", "_high")):
                continue
            if (clean := name.startswith("clean_")) and not share:  # it is the score itself
                continue
            ends = [result.metrics.get(f"{name}_{end}") for end in ("low", "high")]
            between = "" if None in ends else f"{ends[0]:.4f} to {ends[1]:.4f}"
            seen = (("0" if clean else f"{share:.1%}" if math.isfinite(share) else "too short"),) if looked else ()
            rows = int(result.metrics["rows_clean"]) if clean else result.rows
            table.add_row(result.name, name, f"{value:.4f}", between, f"{rows:,}", *seen, str(result.unscored), str(result.shots))
    Console(stderr=True, width=None if sys.stderr.isatty() else WIDTH).print(table)


JUDGED = {  # field of a record -> in words; with an interval where the record has one
    "win_rate": "the first wins",
    "length_controlled": "the same, were all answers of equal length",
    "ties": "ties",
    "first_length": "characters of a first answer",
    "second_length": "characters of a second answer",
    "agreement": "judge and most people say the same",
    "decided": "the same, where most people do not say tie",
    "kappa": "the judge's kappa (Cohen)",
    "people": "two people say the same",
    "people_kappa": "the people's kappa (Fleiss)",
    "disagreement": "verdict changes with the order",
    "shown_first": "preference for what is shown first",
    "pairs": "pairs",
    "unjudged": "pairs not judged (in no share above)",
    "undecided": "pairs on which people are split",
}


def judged_rows(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What a judge's record says: in words, the number, its interval."""
    rows = []
    for name, words in JUDGED.items():
        if name in record:
            value, ends = record[name], [record.get(f"{name}_{end}") for end in ("low", "high")]
            shown = "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"
            rows.append((words, shown, "" if None in ends else f"{ends[0]:.4f} to {ends[1]:.4f}"))
    return rows


def show_judged(record: Mapping[str, Any], title: str) -> None:
    """A table of what a judge said on standard error."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None)
    for column in ("", "", "95 % interval"):
        table.add_column(column, justify="left" if not table.columns else "right")
    for row in judged_rows(record):
        table.add_row(*row)
    Console(stderr=True, width=None if sys.stderr.isatty() else WIDTH).print(table)


@contextlib.contextmanager
def bar(what: str, total: int, done: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, where that is a terminal; gives what is told of more that is done."""
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, disable=not sys.stderr.isatty() or not hosts.is_first(), transient=True)
    progress.console.stderr = True
    with progress:
        line = progress.add_task(what, total=total, completed=done)
        yield lambda count: progress.advance(line, count)
