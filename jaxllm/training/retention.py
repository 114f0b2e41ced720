"""Which checkpoints stay: the last few, and the best by a metric. And how one goes: never leaving a half that looks whole."""

import math
import shutil
import time
from collections.abc import Iterable, Mapping

from etils import epath

from jaxllm.training import manifest as manifests

Best = tuple[str, str]  # (metric, "min" | "max")


def check_best(best: Best) -> None:
    """Raises ValueError unless the second part is a direction."""
    if best[1] not in ("min", "max"):
        raise ValueError(f"checkpoint.best={best!r}: the second part is 'min' or 'max'.")


def best_step(metrics: Mapping[int, Mapping[str, float]], best: Best) -> int | None:
    """The step with the best finite value of the metric, the earliest of equals; None when no checkpoint has it.

    Args:
      metrics: step -> metrics of that checkpoint.
      best: the metric's name and whether less or more is better.
    """
    name, direction = best
    sign = 1 if direction == "min" else -1
    known = {step: sign * values[name] for step, values in metrics.items() if math.isfinite(values.get(name, math.nan))}
    return min(known, key=lambda step: (known[step], step)) if known else None


def to_delete(metrics: Mapping[int, Mapping[str, float]], keep: int, best: Best | None = None) -> list[int]:
    """The steps to delete when the last `keep` and the best one stay, oldest first."""
    stay = set(sorted(metrics)[-keep:])
    if best is not None and (step := best_step(metrics, best)) is not None:
        stay.add(step)
    return sorted(set(metrics) - stay)


def delete(folder: epath.Path, chosen: Iterable[int]) -> None:
    """Deletes checkpoints, each one's manifest first: killed in between, it is a half-written one and not a broken one."""
    for step in chosen:
        (folder / str(step) / manifests.NAME).unlink(missing_ok=True)
        remove(folder / str(step))


def remove(path: epath.Path) -> None:
    """Removes a folder, also while a dying save still writes into it."""
    for attempt in range(20):
        if not path.exists():
            return
        if manifests.is_local(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.rmtree(missing_ok=True)
        time.sleep(0.05 * attempt)


def leftovers(folder: epath.Path) -> list[epath.Path]:
    """Folders that a killed or failed save left behind: Orbax's temporary ones, and steps without a manifest."""
    found = []
    for path in folder.iterdir():
        unfinished = path.name.isdigit() and not (path / manifests.NAME).exists()
        if unfinished or ".orbax-checkpoint-tmp" in path.name:
            found.append(path)
    return sorted(found)
