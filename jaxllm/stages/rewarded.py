"""The reward of a config: its components, reward models among them, and the rule that joins them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxllm.losses.terms import check_choice
from jaxllm.rollouts import components
from jaxllm.rollouts.overoptimisation import DISAGREEMENT
from jaxllm.rollouts.rewards import Component, Rewards, Score, make
from jaxllm.stages import opened, scored
from jaxllm.stages.prompted import Asked

REDUCED: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # of an ensemble
    "mean": lambda x: x.mean(1),
    "worst": lambda x: x.min(1),
    "mean_minus_std": lambda x: x.mean(1) - x.std(1),
    DISAGREEMENT: lambda x: x.std(1),  # to be logged, with a weight of 0
}
MODEL = "model"  # the kind of reward that is a reward model


def model_score(path: str, mesh: Any, of: str = "mean", rule: str | None = None) -> Score:
    """The scores of a reward model; missing where it cannot read an answer.

    Args:
      path: its work directory.
      mesh: where it shall lie.
      of: what becomes of an ensemble's members, of `REDUCED`.
      rule: that a model of verdicts is asked about.
    """
    check_choice("'of' of a reward model", of, REDUCED)
    model = scored.open_reward(path, mesh)
    return lambda answers: REDUCED[of](model.ensemble([(a.prompt, a.text) for a in answers], rule)).tolist()


def rewards_of(config: ConfigDict, asked: Asked | None, mesh: Any = None) -> Rewards:
    """The reward of a config.

    Args:
      config: resolved.
      asked: what is asked; None: only the names of its components matter.
      mesh: of the run, for reward models.

    Raises:
      ValueError: an unknown kind, or nothing that could be a reward.
    """
    section, task = config.rl, asked.task if asked else None
    longest = asked.max_new_tokens if asked else config.rollout.max_new_tokens or 1
    known: dict[str, Any] = {**components.KINDS, "overlong": lambda buffer: components.overlong(buffer, longest)}
    known["task"] = lambda metric=None: components.task(_task(asked), metric)
    known[MODEL] = lambda path, of="mean", rule=None: model_score(path, mesh, of, rule)
    learns = {"multiplier": section.multiplier, "rate": section.multiplier_rate}
    entries = list(section.rewards) or (["task"] if config.rollout.task else ["exact"])
    if asked is None:
        return Rewards(_named(entries), section.reward_rule, **learns)
    if not section.rewards and task is None and not any("answer" in row for row in asked.rows):
        raise ValueError(f"{asked.name} has no answers to compare with, and rl.rewards is empty. Name one: [{{'kind': 'function', ...}}].")
    return Rewards(make(entries, known, everywhere=[MODEL]), section.reward_rule, **learns)


def _task(asked: Asked | None) -> Any:
    if asked is None or asked.task is None:
        raise ValueError(
            "rl.rewards has the kind 'task', and the prompts are of a file. Name a task: rollout.task=NAME=FILE; or use exact."
        )
    return asked.task


def _named(entries: Sequence[Any]) -> list[Component]:
    """Components that say their names, weights and bounds, and score nothing."""
    known: dict[str, Any] = dict.fromkeys([*components.KINDS, MODEL], None)
    tables = [{"kind": entry} if isinstance(entry, str) else dict(entry) for entry in entries]
    for table in tables:
        check_choice("kind of reward", str(table.get("kind")), known)
    bare = [{name: value for name, value in table.items() if name in ("kind", "name", "weight", "at_least", "at_most")} for table in tables]
    return make(bare, dict.fromkeys(known, lambda: lambda answers: []))


def models_in(config: ConfigDict) -> list[str]:
    """What tells the reward models of a config from any others."""
    entries = [dict(entry) for entry in config.rl.rewards if not isinstance(entry, str)]
    return [opened.identity(entry["path"]) for entry in entries if entry.get("kind") == MODEL and entry.get("path")]
