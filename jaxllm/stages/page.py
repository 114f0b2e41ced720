"""The parts of a self-contained HTML page: tables and pictures."""

import html
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

Series = tuple[Sequence[float], Sequence[float]]  # steps, values
STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
td, th { border-bottom: 1px solid var(--line); padding: .25rem .75rem; text-align: right; }
td:first-child, th:first-child { text-align: left; }
pre { background: #8881; padding: .75rem; overflow-x: auto; white-space: pre-wrap; }
.prompt { opacity: .6; } figure { margin: 1rem 0; } svg { max-width: 100%; height: auto; background: white; border-radius: 4px; }
"""


def table(rows: Sequence[Sequence[Any]], head: Sequence[str]) -> str:
    """An HTML table; numbers are shown with four significant digits."""

    def cell(value: Any, tag: str = "td") -> str:
        shown = f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        return f"<{tag}>{html.escape(shown)}</{tag}>"

    lines = ["".join(cell(h, "th") for h in head), *("".join(cell(c) for c in row) for row in rows)]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def curves(
    series: Mapping[str, Series],
    label: str,
    guides: Mapping[str, float] | None = None,
    log: bool = False,
    intervals: Mapping[str, Series] | None = None,
) -> str:
    """One picture (SVG) of several curves over steps, with horizontal guide lines, and error bars from low to high of some series."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, (steps, values) in series.items():
        (line,) = axes.plot(steps, values, marker="." if len(steps) < 40 else None, label=name, linewidth=1.4)
        if intervals and name in intervals:
            axes.vlines(steps, *intervals[name], color=line.get_color(), linewidth=1, alpha=0.6)
    for name, value in (guides or {}).items():
        axes.axhline(value, linestyle="--", linewidth=1, color="grey", label=name)
    axes.set(xlabel="step", ylabel=label, yscale="log" if log else "linear")
    axes.grid(alpha=0.3)
    if len(series) + len(guides or {}) > 1:
        axes.legend(frameon=False)
    return _svg(figure)


def scatter(points: Mapping[str, Series], lines: Mapping[str, Series], labels: tuple[str, str], log: tuple[bool, bool]) -> str:
    """One picture (SVG) of points, with lines of the same name in the same colour; `labels` and `log` are of x and y."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(dict.fromkeys([*points, *lines])):
        if name in points:
            axes.plot(*points[name], "o", color=f"C{number}", markersize=4, label=name)
        if name in lines:
            axes.plot(*lines[name], color=f"C{number}", linewidth=1.2, label=None if name in points else name)
    axes.set(xlabel=labels[0], ylabel=labels[1], xscale="log" if log[0] else "linear", yscale="log" if log[1] else "linear")
    axes.grid(alpha=0.3)
    if len(points) + len(lines) > 1:
        axes.legend(frameon=False)
    return _svg(figure)


def beside(
    left: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    right: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    labels: tuple[str, str, str],
) -> str:
    """One picture (SVG) of curves with two scales, dashed where they are read on the right; `labels` are of x, left and right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    other, number = axes.twinx(), 0
    for place, series, style in ((axes, left, "-"), (other, right, "--")):
        for name, (xs, ys) in series.items():
            place.plot(xs, ys, style, marker="." if len(xs) < 40 else None, label=name, linewidth=1.4, color=f"C{number}")
            number += 1
    axes.set(xlabel=labels[0], ylabel=labels[1])
    other.set(ylabel=labels[2])
    axes.grid(alpha=0.3)
    figure.legend(frameon=False, loc="outside upper center", ncols=4)
    return _svg(figure)


def dots(scores: Mapping[str, tuple[float, float, float]], label: str) -> str:
    """One picture (SVG) of scores from 0 to 1, one below the other, with error bars: name -> (score, low, high)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.0 + 0.3 * len(scores)), layout="constrained")
    axes, places = figure.subplots(), range(len(scores))
    middles, lows, highs = zip(*scores.values(), strict=True)
    axes.hlines(places, lows, highs, linewidth=2, alpha=0.6)
    axes.plot(middles, places, "o", markersize=5)
    axes.set(xlim=(-0.02, 1.02), xlabel=label, yticks=list(places), yticklabels=list(scores), ylim=(len(scores) - 0.5, -0.5))
    axes.grid(alpha=0.3)
    return _svg(figure)


def bars(sizes: Mapping[str, float], marks: Mapping[str, float], unit: str) -> str:
    """One picture (SVG): a bar made of parts, largest first, with lines to hold it against."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.9), layout="constrained")
    axes, left = figure.subplots(), 0.0
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        axes.barh([0], [size], left=left, label=f"{name}: {size:,.3g} {unit}", edgecolor="white", linewidth=0.6)
        left += size
    for style, (name, value) in zip((":", "--", "-"), marks.items(), strict=False):
        axes.axvline(value, color="black", linestyle=style, linewidth=1.4, label=f"{name}: {value:,.3g} {unit}")
    axes.set(xlim=(0, max(*marks.values(), left) * 1.02), yticks=[], xlabel=unit)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.35))
    return _svg(figure)


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return f"<figure>{svg[svg.index('<svg') :]}</figure>"


def write(output: os.PathLike | str, title: str, body: str) -> str:
    """Writes the page; returns where it is."""
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    epath.Path(output).parent.mkdir(parents=True, exist_ok=True)
    epath.Path(output).write_bytes(f'<!doctype html><html lang="en">{head}{body}</html>'.encode())
    return os.fspath(output)
