"""Tasks and judges in a report: tables and pictures of scores with their intervals."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxllm.rollouts.overoptimisation import watched
from jaxllm.stages.page import beside, curves, dots, table
from jaxllm.stages.scores import COUNTS, judged_rows
from jaxllm.tasks.catalog import TASKS

Record = Mapping[str, Any]
BESIDE = {"step", "rows", "unscored", "shots", *COUNTS}  # numbers of a task's record that are no scores


def task_records(evals: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of each task, in the order they were written; a set of text of the same name is none, it has a loss."""
    found: dict[str, list[Record]] = {}
    for record in evals:
        if record["name"] in TASKS and metric(record["name"]) in record and "loss" not in record:
            found.setdefault(record["name"], []).append(record)
    return found


def metric(name: str) -> str:
    """What models are compared by in a task."""
    return TASKS[name].task.METRIC


def judged(evals: Sequence[Record]) -> list[Record]:
    """The records of what judges said."""
    return [record for record in evals if record["name"] in ("win_rate", "judge") and "judge" in record]


def tasks(asked: Mapping[str, Sequence[Record]]) -> list[str]:
    """The tasks as a table, a picture of the last scores, and one of those that were asked at several steps; nothing without tasks."""
    if not asked:
        return []
    last = {name: records[-1] for name, records in asked.items()}
    rows = [row for name, record in last.items() for row in _rows(name, record)]
    looked = any("contaminated" in record for record in last.values())
    head = ["task", "metric", "score", "95 % interval", *(["on rows not in training"] if looked else []), "step", "rows", "unscored"]
    head += ["rows in training"] if looked else []
    parts = ["<h3>Tasks</h3>", table([row if looked else [*row[:4], *row[5:8]] for row in rows], head)]
    scored = {name: ends for name, record in last.items() if (ends := interval(record, metric(name)))}
    if scored:
        parts += [dots(scored, "score (accuracy, exact match, pass@1, ROUGE-L) with its 95 % interval")]
    return parts + _over_steps(asked)


def _rows(name: str, record: Record) -> list[list[Any]]:
    """A row for each metric of a task's record, the one that models are compared by first."""
    names = [key for key, value in record.items() if isinstance(value, int | float) and key not in BESIDE]
    names = [key for key in names if not key.endswith(("_low", "_high")) and not key.startswith("clean_")]
    share = record.get("contaminated", "")
    seen = "too short" if share is None else f"{share:.1%} of {record['rows_judged']:,}" if share != "" else ""
    return [
        [name, key, float(record[key]), _between(record, key), _shown(record, f"clean_{key}"), record["step"]]
        + [_whole(record.get(count)) for count in ("rows", "unscored")]
        + [seen]
        for key in sorted(names, key=lambda key: key != metric(name))
    ]


def _shown(record: Record, key: str) -> str:
    if record.get(key) is None or not record["contaminated"]:
        return ""
    return f"{record[key]:.4g} ({_between(record, key)}; {record['rows_clean']:,} rows)"


def _between(record: Record, key: str) -> str:
    found = interval(record, key)
    return f"{found[1]:.3f} to {found[2]:.3f}" if found else ""


def _whole(count: Any) -> Any:
    return "" if count is None else int(count)


def interval(record: Record, key: str) -> tuple[float, float, float] | None:
    """A score with the ends of its interval; None where it has none."""
    found = tuple(record.get(name) for name in (key, f"{key}_low", f"{key}_high"))
    return found if all(isinstance(x, int | float) and math.isfinite(x) for x in found) else None  # type: ignore[return-value]


def _over_steps(asked: Mapping[str, Sequence[Record]]) -> list[str]:
    """A picture of the scores over steps, of tasks that have them; of several records of one step the last."""
    series, ends = {}, {}
    for name, records in asked.items():
        of = {record["step"]: found for record in records if (found := interval(record, metric(name)))}
        if len(of) > 1:
            middles, lows, highs = zip(*(of[step] for step in sorted(of)), strict=True)
            series[name], ends[name] = (sorted(of), middles), (lows, highs)
    return ["<h3>Tasks over the steps</h3>", curves(series, "score", intervals=ends)] if series else []


def judges(records: Sequence[Record]) -> list[str]:
    """A table of each comparison and of each judge beside people, the last of each."""
    last = {(r["name"], r["judge"], r.get("first"), r.get("second"), r.get("labels")): r for r in records}
    parts = []
    for record in last.values():
        won = f"{record.get('first')} against {record.get('second')}, judged by {record['judge']}"
        title = won if record["name"] == "win_rate" else f"{record['judge']} beside the people of {record.get('labels')}"
        parts += [table(judged_rows(record), [title, "", "95 % interval"])]
    return ["<h3>Answers before a judge</h3>", *parts] if parts else []


def over_optimisation(metrics: Sequence[Record], rewards: Sequence[Any]) -> list[str]:
    """What was trained for beside what was held out, over the steps and over the distance from the start; nothing where nothing was.

    Args:
      metrics: of a run of policy optimisation.
      rewards: its `rl.rewards`.
    """
    seen = watched(rewards)
    columns: dict[str, list[Any]] = {name: [record.get(f"reward_{name}") for record in metrics] for name in (*seen.weights, *seen.held_out)}
    known = [i for i in range(len(metrics)) if all(isinstance(values[i], int | float) for values in columns.values())]
    if not seen.weights or not seen.held_out or not known:
        return []
    proxy = [sum(weight * columns[name][i] for name, weight in seen.weights.items()) for i in known]
    held = {
        f"{name} ({'held out' if sign > 0 else 'disagreement'})": [columns[name][i] for i in known] for name, sign in seen.held_out.items()
    }

    def picture(label: str, xs: Sequence[float], order: Sequence[int]) -> str:
        pick = lambda values: [values[i] for i in order]  # noqa: E731
        gold = {name: (pick(xs), pick(values)) for name, values in held.items()}
        return beside({"proxy": (pick(xs), pick(proxy))}, gold, (label, "proxy: what is trained for", "gold: what is held out"))

    parts = ["<h3>Proxy and gold</h3>", picture("step", [metrics[i]["step"] for i in known], range(len(known)))]
    apart = [metrics[i].get("kl_sequence") for i in known]
    far = [math.sqrt(max(x, 0.0)) if isinstance(x, int | float) else math.nan for x in apart]
    order = sorted((i for i in range(len(far)) if math.isfinite(far[i])), key=lambda i: far[i])
    return [*parts, picture("square root of the KL from the start (nats a completion)", far, order)] if len(order) > 1 else parts


def stages(asked: Mapping[str, Mapping[str, Sequence[Record]]]) -> list[str]:
    """The last score of each run in every task that several runs were asked: run -> task -> its records."""
    parts = list[str]()
    for name in dict.fromkeys(task for of in asked.values() for task in of):
        last = {run: of[name][-1] for run, of in asked.items() if name in of}
        if len(last) < 2:
            continue
        rows = [
            [run, float(record[metric(name)]), _between(record, metric(name)), _whole(record.get("rows"))] for run, record in last.items()
        ]
        scored = {run: ends for run, record in last.items() if (ends := interval(record, metric(name)))}
        parts += [f"<h3>{name}, run by run</h3>", table(rows, ["run", metric(name), "95 % interval", "rows"])]
        parts += [dots(scored, f"{metric(name)} with its 95 % interval")] if scored else []
    return parts
