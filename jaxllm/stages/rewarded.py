"""The reward of a config: its components, reward models among them, and the rule that joins them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxllm.data.comparisons import prefixes
from jaxllm.losses.terms import check_choice
from jaxllm.rollouts import components
from jaxllm.rollouts.overoptimisation import DISAGREEMENT
from jaxllm.rollouts.rewards import Answer, Component, Named, Rewards, Score, make, named
from jaxllm.rollouts.shaping import missing_end
from jaxllm.stages import opened, scored
from jaxllm.stages.prompted import Asked, turns_of
from jaxllm.stages.tools import named_in as of_tools

REDUCED: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # of an ensemble
    "mean": lambda x: x.mean(1),
    "worst": lambda x: x.min(1),
    "mean_minus_std": lambda x: x.mean(1) - x.std(1),
    DISAGREEMENT: lambda x: x.std(1),  # to be logged, with a weight of 0
}
MODEL = "model"  # the kind of reward that is a reward model


STEPS: dict[str, Callable[[np.ndarray], float]] = {"worst": np.min, "mean": np.mean}  # of the steps of an answer


def model_score(path: str, mesh: Any, of: str = "mean", rule: str | None = None, chat: bool = False, steps: str | None = None) -> Score:
    """The scores of a reward model; missing where it cannot read an answer.

    Args:
      path: its work directory.
      mesh: where it shall lie.
      of: what becomes of an ensemble's members, of `REDUCED`.
      rule: that a model of verdicts is asked about.
      chat: whether rows with "messages" were asked as these turns.
      steps: of a process reward model, what becomes of the scores of an answer's steps, of `STEPS`; None: the whole answer is scored.
    """
    model = scored.open_reward(path, mesh)

    def score(answers: Sequence[Answer]) -> list[float]:
        asked = [turns_of(a.row, a.prompt) if chat else a.prompt for a in answers]
        texts = [prefixes(a.text) if steps else [a.text] for a in answers]
        pairs = [(one, text) for one, own in zip(asked, texts, strict=True) for text in own]
        found = iter(REDUCED[of](model.ensemble(pairs, rule)) if pairs else ())
        each = [np.array([next(found) for _ in own] or [np.nan]) for own in texts]
        return [float(STEPS[steps](own) if steps else own[0]) for own in each]

    return score


def makers_of(config: ConfigDict, asked: Asked | None, mesh: Any) -> dict[str, Callable[..., Score]]:
    """kind of reward -> what makes it from its options; arguments as of `rewards_of`."""
    longest = asked.max_new_tokens if asked else config.rollout.max_new_tokens or 1

    def overlong(buffer: int) -> Score:
        return components.overlong(buffer, longest)

    def task(metric: str | None = None) -> Score:
        return components.task(_task(asked), metric)

    def model(path: str, of: str = "mean", rule: str | None = None, steps: str | None = None) -> Score:
        return model_score(path, mesh, of, rule, config.rollout.chat, steps)

    known: dict[str, Any] = dict(components.KINDS)
    return known | {"overlong": overlong, "task": task, MODEL: model}


def named_in(config: ConfigDict) -> list[Named]:
    """The components of a config, of which nothing is made yet (ValueError: see `rewards.named`)."""
    entries = list(config.rl.rewards) or (["task"] if config.rollout.task else ["exact"])
    return named(entries, makers_of(config, None, None))


def check(config: ConfigDict) -> None:
    """Refuses rewards that cannot be made, before anything is opened.

    Raises:
      ValueError: see `rewards.named` and `Rewards`; or a reward for tools that are not there, a task's for rows of a file.
    """
    tools = [tool.name for tool in of_tools(config)]
    for one in named_in(config):
        if one.kind == MODEL:
            check_choice(f"'of' of the reward {one.name!r}", one.options.get("of", "mean"), REDUCED)
            if (steps := one.options.get("steps")) is not None:
                check_choice(f"'steps' of the reward {one.name!r}", steps, STEPS)
        if one.kind == "tools" and not tools:
            raise ValueError(f"Reward {one.name!r} is for calls of tools, and rollout.tools is empty. Name one there, or leave it out.")
        if one.kind == "tools" and one.options.get("tool"):
            check_choice(f"tool of the reward {one.name!r}", one.options["tool"], tools)
        if one.kind == "task" and not config.rollout.task:
            raise ValueError(TASKLESS)
    rewards_of(config, None)


def rewards_of(config: ConfigDict, asked: Asked | None, mesh: Any = None) -> Rewards:
    """The reward of a config.

    Args:
      config: resolved.
      asked: what is asked; None: only the names of its components matter.
      mesh: of the run, for reward models.

    Raises:
      ValueError: see `check`, or nothing that could be a reward.
    """
    section, entries = config.rl, named_in(config)
    how: dict[str, Any] = {"multiplier": section.multiplier, "rate": section.multiplier_rate}
    if section.missing_end is not None:
        how["no_end"] = functools.partial(missing_end, value=section.missing_end, how=section.missing_end_how)
    if asked is None:
        silent = [Component(one.name, lambda answers: [], one.weight, bound=one.bound) for one in entries]
        return Rewards(silent, section.reward_rule, **how)
    if not section.rewards and asked.task is None and not any("answer" in row for row in asked.rows):
        raise ValueError(f"{asked.name} has no answers to compare with, and rl.rewards is empty. Name one: [{{'kind': 'function', ...}}].")
    return Rewards(make(entries, makers_of(config, asked, mesh), everywhere=[MODEL]), section.reward_rule, **how)


TASKLESS = "rl.rewards has the kind 'task', and the prompts are of a file. Name a task: rollout.task=NAME=FILE; or use exact."


def _task(asked: Asked | None) -> Any:
    if asked is None or asked.task is None:
        raise ValueError(TASKLESS)
    return asked.task


def models_in(config: ConfigDict) -> list[str]:
    """What tells the reward models of a config from any others.

    Raises:
      ValueError: a path at which there is none.
    """
    return [_identity(one.name, one.options["path"]) for one in named_in(config) if one.kind == MODEL]


def _identity(name: str, path: str) -> str:
    if not scored.is_one(path):
        raise ValueError(
            f"rl.rewards {name!r}: {path} is not a work directory of `jaxllm reward`. Train a reward model there (jaxllm reward --config"
            f" FILE --workdir {path}), or give the path of one."
        )
    try:
        return opened.identity(path)
    except ValueError as error:
        raise ValueError(f"rl.rewards {name!r}: {error} Go on with `jaxllm reward` until its first checkpoint is written.") from None
