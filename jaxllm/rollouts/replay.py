"""Rollouts that outlive their moment: made ahead of their turn, and drawn from again after it. Which rows is a function of (seed, step)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxllm.data.mixtures import shuffle_key, shuffled
from jaxllm.rollouts.making import Buffer

STATISTIC = "stat_"  # before the names of what rows say of their samples
OF_NOW = ("stat_kl_coefficient",)  # statistics that are of the update, not of the sample


class Kept(NamedTuple):
    """A rollout in a feed.

    Attributes:
      number: rollouts are served in this order.
      made: the step whose weights made it.
      buffer: its rows.
    """

    number: int
    made: int
    buffer: Buffer

    @property
    def state(self) -> dict[str, Any]:
        """As a checkpoint keeps it; `of_state` reads it."""
        return {"number": self.number, "made": self.made, "buffer": dict(self.buffer)}


def of_state(saved: Mapping[str, Any]) -> Kept:
    """The inverse of `Kept.state`."""
    return Kept(int(saved["number"]), int(saved["made"]), {name: np.asarray(values) for name, values in saved["buffer"].items()})


def aged(rows: Buffer, kept: Kept, step: int) -> Buffer:
    """Rows of a rollout that say how many updates its weights are behind."""
    return {**rows, f"{STATISTIC}age": np.full(len(rows["tokens"]), step - kept.made, np.float32)}


def mixed(rows: Buffer, earlier: Sequence[Kept], count: int, *, seed: int, step: int) -> Buffer:
    """Rows of the present rollout, and `count` more that are drawn from earlier ones, none of them twice.

    Of the statistics, which tell how the policy does now, the drawn ones say their age and nothing else.

    Args:
      rows: of the present one, from `aged`.
      earlier: rollouts of one size, at least one.
      count: how many to draw.
      seed: of the run.
      step: of the run.
    """
    size = len(earlier[0].buffer["tokens"])
    key = np.full(count, shuffle_key(seed, "replay", step), np.uint64)
    which, places = np.divmod(shuffled(np.arange(count, dtype=np.int64), np.full(count, size * len(earlier)), key), size)
    parts = [rows]
    for number, kept in enumerate(earlier):
        chosen = places[which == number]
        part = aged({name: values[chosen] for name, values in kept.buffer.items()}, kept, step)
        silent = [name for name in part if name.startswith(STATISTIC) and name != f"{STATISTIC}age"]
        part |= {name: np.full(len(chosen), rows[name][0] if name in OF_NOW else np.nan, np.float32) for name in silent}
        parts.append(part)
    return {name: np.concatenate([part[name] for part in parts]) for name in rows}
