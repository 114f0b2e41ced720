"""A sweep in a report: its runs side by side, what each key did, and the scaling laws of their losses."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jaxllm.evaluation import scaling
from jaxllm.models import counts
from jaxllm.stages import setup
from jaxllm.stages.page import Series, curves, scatter, table

RECORD = "sweep.json"  # what `python -m launch.sweep` writes: {"arguments", "metric", "mode", "runs", "points": [{"name", "settings"}]}
SHOWN = 12  # curves in one picture
TOKENS = ("parameters N", "tokens D")


class Point(NamedTuple):
    """A run of a sweep.

    Attributes:
      name: its folder.
      settings: the keys that are swept, as they were given.
      state: what became of it, in words.
      record: its config.json, empty where it has none.
      metrics: of metrics.jsonl.
      evals: of evals.jsonl.
    """

    name: str
    settings: Mapping[str, str]
    state: str
    record: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    evals: Sequence[Mapping[str, Any]]

    @property
    def label(self) -> str:
        """The point in one line."""
        return f"{self.name} " + ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in self.settings.items())

    def series(self, metric: str) -> Series:
        """Steps and finite values of KEY of metrics.jsonl, or of SET/KEY of evals.jsonl."""
        name, slash, key = metric.rpartition("/")
        records = [r for r in self.evals if r["name"] == name] if slash else self.metrics
        found = {r["step"]: r[key] for r in records if isinstance(r.get(key), int | float) and math.isfinite(r[key])}
        return list(found), list(found.values())

    def last(self, metric: str) -> float | None:
        """Its last value."""
        return float(values[-1]) if (values := self.series(metric)[1]) else None

    def size(self) -> tuple[int, int] | None:
        """Parameters, and tokens of one update; None where the run has not begun."""
        if not self.record:
            return None
        config = ConfigDict(self.record["config"])
        shape = setup.model_config(config, self.record.get("vocab_size"))
        return counts.parameters(shape), config.batch_size * config.sequence_length


def is_sweep(folder: epath.Path) -> bool:
    """Whether a folder holds a sweep, and not a run."""
    return (folder / RECORD).exists()


def read(folder: epath.Path, read_jsonl: Any) -> tuple[dict[str, Any], list[Point]]:
    """A sweep and its points."""
    sweep = json.loads((folder / RECORD).read_bytes())
    points = []
    for point in sweep["points"]:
        place, state = epath.Path(sweep.get("runs") or folder) / point["name"], folder / "points" / f"{point['name']}.json"
        record = json.loads((place / "config.json").read_bytes()) if (place / "config.json").exists() else {}
        became = json.loads(state.read_bytes()) if state.exists() else {}
        words = became.get("state", "not done") + (f" at step {became['at']}" if "at" in became else "")
        evals = [r for r in read_jsonl(place / "evals.jsonl") if "/" not in r["name"]]
        points.append(Point(point["name"], point["settings"], words, record, read_jsonl(place / "metrics.jsonl"), evals))
    return sweep, points


def metric_of(sweep: Mapping[str, Any], points: Sequence[Point]) -> str:
    """What the runs are compared by: the sweep's metric, and instead of the plain loss that of the first held-out set that all have."""
    begun = [point for point in points if point.metrics or point.evals]
    shared = [
        name for name in dict.fromkeys(r["name"] for point in begun for r in point.evals) if all(p.last(f"{name}/loss") for p in begun)
    ]
    return f"{shared[0]}/loss" if sweep["metric"] == "loss" and shared else sweep["metric"]


def section(folder: epath.Path, read_jsonl: Any) -> str:
    """The sweep: a table, curves, what each key did, scaling laws."""
    sweep, points = read(folder, read_jsonl)
    metric, sign = metric_of(sweep, points), -1 if sweep["mode"] == "max" else 1
    order = sorted(points, key=lambda point: math.inf if point.last(metric) is None else sign * point.last(metric))  # type: ignore[operator]
    known = [point for point in order if point.last(metric) is not None]
    keys = list(dict.fromkeys(key for point in points for key in point.settings))
    parts = [f"<h2>{html.escape(folder.name)}: {len(points)} runs by {html.escape(metric)}</h2>"]
    head = ["run", *keys, metric, "train loss", "step", *TOKENS, "tokens per second", ""]
    parts += [table([_row(point, keys, metric) for point in order], head)]
    if not known:
        return "\n".join([*parts, f"<p>No run has a value of {html.escape(metric)} yet.</p>"])
    shown = {point.label: point.series(metric) for point in known[:SHOWN]}
    best = f", the best {SHOWN} of {len(known)}" if len(known) > SHOWN else ""
    parts += [f"<h3>{html.escape(metric)}{best}</h3>", curves(shown, metric)]
    parts += importance(known, keys, metric) if len(known) > 2 else []
    if sweep["mode"] == "min" and metric.rpartition("/")[2] == "loss":
        parts += laws(known, metric)
    return "\n".join(parts)


def _row(point: Point, keys: Sequence[str], metric: str) -> list[Any]:
    size, steps = point.size(), max((r["step"] for r in point.metrics), default=0)
    speed = [r["tokens_per_second"] for r in point.metrics if isinstance(r.get("tokens_per_second"), int | float)]
    values = [point.last(metric), point.last("loss")]
    found = [*("" if value is None else value for value in values), steps, *((size[0], size[1] * steps) if size else ("", ""))]
    return [point.name, *(point.settings.get(key, "") for key in keys), *found, float(np.median(speed)) if speed else "", point.state]


def explained(texts: Sequence[str], values: Sequence[float]) -> float:
    """The share of the variance of the values that one key explains by itself, corrected for its freedom, from 0 to 1.

    A key with few values: the variance between their groups (omega-squared's kin, epsilon-squared: Kelley, 1935). A number with more
    than half as many values as there are runs: a parabola in it, or in its logarithm where it is above 0, by the adjusted R squared.

    Args:
      texts: the key's value in each run.
      values: what the runs reached.
    """
    y, n = np.asarray(values, np.float64), len(values)
    total = float(np.sum((y - y.mean()) ** 2))
    groups = {text: [i for i in range(n) if texts[i] == text] for text in texts}
    if total == 0 or len(groups) == 1:
        return 0.0
    numbers = _numbers(texts)
    if 2 * len(groups) <= n or numbers is None:
        left, freedom = sum(float(np.sum((y[rows] - y[rows].mean()) ** 2)) for rows in groups.values()), len(groups)
    else:
        x = np.log(numbers) if min(numbers) > 0 else np.asarray(numbers)
        basis = np.vander((x - x.mean()) / (x.std() or 1.0), 3)
        left, freedom = float(np.sum((y - basis @ np.linalg.lstsq(basis, y, rcond=None)[0]) ** 2)), 3
    return max(0.0, 1 - left / (n - freedom) / (total / (n - 1))) if n > freedom else 0.0


def _numbers(texts: Sequence[str]) -> list[float] | None:
    try:
        return [float(text) for text in texts]
    except ValueError:
        return None


def importance(known: Sequence[Point], keys: Sequence[str], metric: str) -> list[str]:
    """How much of the difference between the runs each key explains, and a picture of each that is a number."""
    values, rows, pictures = [float(point.last(metric) or 0.0) for point in known], [], []
    for key in keys:
        texts = [str(point.settings.get(key, "")) for point in known]
        rows.append([key, explained(texts, values), known[0].settings.get(key, "")])
        numbers = _numbers(texts)
        if numbers is not None and len(set(numbers)) > 1:
            pictures.append(
                scatter({"": (numbers, values)}, {}, (key, metric), (min(numbers) > 0 and max(numbers) / min(numbers) > 5, False))
            )
    note = "Each key by itself: the share of the variance between runs, corrected for chance; 0 also where there are too few runs to say."
    head = ["key", "explains", "best run's value"]
    return ["<h3>What the keys did</h3>", table(sorted(rows, key=lambda row: -row[1]), head), f"<p>{note}</p>", *pictures]


def losses(known: Sequence[Point], metric: str, along: bool) -> list[tuple[int, int, float]]:
    """(N, D, loss), the least for each N and D: of the ends of the runs, or of every value behind the warmup."""
    found: dict[tuple[int, int], float] = {}
    for point in known:
        size = point.size()
        if size is None:
            continue
        steps, values = point.series(metric)
        first = point.record["config"]["schedule"]["warmup"] or 0
        chosen = list(zip(steps, values, strict=True))
        for step, value in [(s, v) for s, v in chosen if s > max(first, 0)] if along else chosen[-1:]:
            if step and value > 0:
                key = (size[0], int(step) * size[1])
                found[key] = min(value, found.get(key, math.inf))
    return [(N, D, value) for (N, D), value in sorted(found.items())]


def laws(known: Sequence[Point], metric: str) -> list[str]:
    """The laws that the losses of these runs allow: numbers with intervals, the best N and D for three budgets, a picture."""
    parts, ends, along = ["<h3>Scaling laws</h3>"], losses(known, metric, False), losses(known, metric, True)
    for name, law in scaling.LAWS.items():
        points, source, why = ends, "the ends of the runs, the best of each size and length", _why(name, ends)
        if why and not _why(name, along):
            points, why = along, None
            source = "every value behind the warmup, the best of each size and length (too few runs end apart for a law of their ends)"
        title = f"<h4>{name[0].upper()}{name[1:]}: {html.escape(law.formula)}</h4>"
        if why:
            parts += [title, f"<p>Not fitted: {why}. Sweep over the size (depth) and the length (steps) too.</p>"]
            continue
        fitted = scaling.fit(name, *(list(column) for column in zip(*points, strict=True)))
        rows = [[key, fitted.numbers[key], _interval(*fitted.intervals[key]), scaling.PUBLISHED[name][key]] for key in law.names]
        note = f"Fitted to {len(points)} losses: {source}. Residual of log L: {fitted.error:.2g} (root mean square)."
        parts += [title, table(rows, ["", "fitted", "95 % interval", "published"]), f"<p>{note}</p>", _picture(fitted, points)]
        if idle := fitted.idle():
            parts += [f"<p>In these runs the loss does not fall with {' and '.join(idle)}: no best size for a budget can be told.</p>"]
            continue
        parts += ["<p>For a budget of C = 6 N D operations, the best:</p>", _optima(fitted, points)]
    cautions = (
        "Intervals: bootstrap over the points, as if independent; losses of one run at several steps are not: they are too narrow then."
        " Where a schedule decays, losses before its end are higher than those of a run that ends there. N counts embeddings (Kaplan's"
        " does not). Beyond the sizes that were run a law is a guess."
    )
    return [*parts, f"<p>{cautions}</p>"]


def _why(name: str, points: Sequence[tuple[int, int, float]]) -> str | None:
    return scaling.too_few(name, [N for N, _, _ in points], [D for _, D, _ in points])


def _interval(low: float, high: float) -> str:
    return f"{low:.4g} to {high:.4g}"


def _optima(fitted: scaling.Fitted, points: Sequence[tuple[int, int, float]]) -> str:
    """The best N and D for the largest run's operations, and for ten and a hundred times as many; guesses are called so."""
    rows, sizes = [], [N for N, _, _ in points]
    for times in (1, 10, 100):
        budget = times * scaling.FLOPS * max(N * D for N, D, _ in points)
        best = fitted.best(budget)
        cells = [f"{best[key][0]:.4g} ({_interval(*best[key][1:])})" for key in ("N", "D", "loss")]
        rows.append([f"{budget:.3g}", *cells, "" if min(sizes) <= best["N"][0] <= max(sizes) else "outside the sizes that were run"])
    return table(rows, ["C", *TOKENS, "loss", ""])


def _picture(fitted: scaling.Fitted, points: Sequence[tuple[int, int, float]]) -> str:
    """Loss over tokens for each size, as it was and as the law has it."""
    sizes: dict[int, list[tuple[int, float]]] = {}
    for N, D, value in points:
        sizes.setdefault(N, []).append((D, value))
    grid = np.geomspace(min(D for _, D, _ in points), max(D for _, D, _ in points), 60)
    dots = {f"N = {N:,}": tuple(zip(*of, strict=True)) for N, of in sizes.items()}
    lines = {f"N = {N:,}": (grid, fitted.law.loss(fitted.numbers, float(N), grid)) for N in sizes}
    return scatter(dots, lines, (TOKENS[1], "loss"), (True, True))  # type: ignore[arg-type]
