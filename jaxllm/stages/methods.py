"""What a config of policy optimisation asks for: its method, with what it says otherwise, and what follows from that."""

import inspect
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from jaxllm.losses.kl import ESTIMATORS
from jaxllm.losses.policy import DENOMINATORS, LEVELS, SURROGATES
from jaxllm.losses.terms import check_choice
from jaxllm.rollouts.advantages import SCALES, group_relative
from jaxllm.rollouts.credit import Shape
from jaxllm.rollouts.methods import METHODS, Method
from jaxllm.rollouts.options import check_number
from jaxllm.rollouts.rules import RULES
from jaxllm.rollouts.shaping import MISSING_END
from jaxllm.stages.rl_keys import RL

KL_PLACES = ("reward", "loss", "none")
CONTROLLERS = ("fixed", "adaptive")
GROUPED = ("group_relative", "leave_one_out", "group_mean", "best")  # advantages that compare samples of one prompt
NEEDS_CRITIC = "gae"
RESAMPLES = 3  # times, where a method drops groups of equal rewards


def method_of(config: ConfigDict) -> Method:
    """The method of a config, with what the config says otherwise.

    Raises:
      ValueError: a name that no table has, options of another method, or too few samples of a prompt.
    """
    section = config.rl
    check_choice("rl.method", section.method, METHODS)
    method = METHODS[section.method]
    said = {"kl": section.kl, "level": section.level, "over": section.over, "whiten": section.whiten}
    method = method._replace(**{name: value for name, value in said.items() if value is not None})
    for name, choices in (("kl", KL_PLACES), ("level", LEVELS), ("over", DENOMINATORS)):
        check_choice(f"rl.{name}", getattr(method, name), choices)
    if section.scale and method.advantages != "group_relative":
        raise ValueError(f"rl.scale={section.scale.to_dict()} is of advantages by group, and rl.method={section.method!r} has others.")
    if method.advantages in GROUPED and config.rollout.samples_per_prompt < 2:
        raise ValueError(
            f"rl.method={section.method!r} compares samples of one prompt, and rollout.samples_per_prompt="
            f"{config.rollout.samples_per_prompt}. Give 2 or more, or choose reinforce, reinforce_plus_plus or remax."
        )
    if method.surrogate == "reinforce" and not section.importance_cap and (updates(config) > 1 or is_stale(config)):
        raise ValueError(
            f"rl.method={section.method!r} has no ratio, so its samples serve one update of the policy that drew them, and here a rollout"
            f" is {updates(config)} (rollout.lag={config.rollout.lag}, rollout.replay={config.rollout.replay}). Set batch_size to"
            " rollout.prompts * rollout.samples_per_prompt, rollout.epochs to 1 and no lag or replay, or rl.importance_cap to 2, say."
        )
    given = {"options": section.options.to_dict(), "scale": section.scale.to_dict()}
    taken: dict[str, Callable[..., Any]] = {"options": SURROGATES[method.surrogate], "scale": group_relative}
    for key, options in given.items():
        known = [p.name for p in inspect.signature(taken[key]).parameters.values() if p.kind is p.KEYWORD_ONLY]
        if wrong := [name for name in options if name not in known]:
            raise ValueError(
                f"rl.{key}.{wrong[0]} is no option of rl.method={section.method!r}. Choose from: {', '.join(known) or 'none'}."
            )
    return method._replace(options={**method.options, **given["options"]}, scale={**method.scale, **given["scale"]})


def updates(config: ConfigDict) -> int:
    """How many updates a rollout serves.

    Raises:
      ValueError: rows do not divide.
    """
    section, fresh = config.rollout, config.batch_size - replayed(config)
    rows = section.prompts * section.samples_per_prompt
    if rows % fresh:
        raise ValueError(
            f"rollout.prompts={section.prompts} x rollout.samples_per_prompt={section.samples_per_prompt} = {rows} completions do not"
            f" divide into batches of batch_size={config.batch_size}{f' with {fresh} new ones each' if replayed(config) else ''}. Choose a"
            f" number that divides {rows}."
        )
    if replayed(config) > rows:
        raise ValueError(
            f"rollout.replay_share={section.replay_share} of batch_size={config.batch_size} draws {replayed(config)} completions, none of"
            f" them twice, and a rollout has {rows}. Give a smaller share, or larger rollouts."
        )
    return rows * section.epochs // fresh


def replayed(config: ConfigDict) -> int:
    """Rows of a batch that are drawn from earlier rollouts.

    Raises:
      ValueError: a share that is no number of rows, or of no rollouts.
    """
    section = config.rollout
    share, rows = section.replay_share, section.replay_share * config.batch_size
    if min(section.lag, section.replay) < 0:
        raise ValueError(
            f"rollout.lag={section.lag} and rollout.replay={section.replay} are numbers of steps and rollouts. Give 0 or more."
        )
    if bool(section.replay) != bool(share):
        raise ValueError(f"rollout.replay={section.replay} and rollout.replay_share={share}: give both, or neither.")
    if not 0 <= share < 1 or abs(rows - round(rows)) > 1e-6:
        raise ValueError(
            f"rollout.replay_share={share} of batch_size={config.batch_size} is {rows:g} rows. Give a share from 0 to below 1 that is a"
            " whole number of rows: 0.25, say."
        )
    return round(rows)


def is_stale(config: ConfigDict) -> bool:
    """Whether samples are trained on that an older policy drew."""
    return config.rollout.lag > 0 or config.rollout.replay > 0


def tries(config: ConfigDict) -> int:
    """How often a prompt whose samples all have one reward gives way to the next.

    Raises:
      ValueError: no number of times; samples that are not compared.
    """
    method, said = method_of(config), config.rollout.resample
    if said is not None and said < 0:
        raise ValueError(f"rollout.resample={said} is not a number of times. Give 0 or more; 3 is usual.")
    if said and method.advantages not in GROUPED:
        raise ValueError(
            f"rollout.resample={said} is for samples of one prompt that are compared, and rl.method={config.rl.method!r} compares none."
            " Leave it out, or choose dapo or grpo."
        )
    return said if said is not None else RESAMPLES if method.drop_uninformative else 0


def has_critic(config: ConfigDict) -> bool:
    """Whether the method has one."""
    return method_of(config).advantages == NEEDS_CRITIC


def place_of_kl(config: ConfigDict) -> str:
    """Where the KL goes: "reward", "loss", or "none"."""
    return method_of(config).kl if config.rl.kl_coefficient else "none"


def compares(config: ConfigDict) -> bool:
    """Whether the reference is read."""
    return place_of_kl(config) != "none"


def rescores(config: ConfigDict) -> bool:
    """Whether the training graph looks at samples before the first update on them."""
    return (
        has_critic(config)
        or updates(config) > 1
        or is_stale(config)
        or place_of_kl(config) == "reward"
        or (compares(config) and config.rl.kl_controller == "adaptive")
    )


def estimator_of(config: ConfigDict) -> str:
    """Of the KL."""
    return config.rl.kl_estimator or ("k1" if place_of_kl(config) == "reward" else "k3")


def shape_of(config: ConfigDict) -> Shape:
    """What is done to rewards."""
    section = config.rl
    names = ("discount", "decay", "mask_truncated", "whiten_rewards", "normalise_returns")
    return Shape(estimator=estimator_of(config), **{name: section[name] for name in names})


def unread(config: ConfigDict) -> dict[str, str]:
    """Keys of `rl` that this config does not read -> what would read them."""
    section, method = config.rl, method_of(config)
    steps = method.advantages in (NEEDS_CRITIC, "to_go")
    read = {
        "kl_estimator": (compares(config), "rl.kl_coefficient"),
        "kl_controller": (compares(config), "rl.kl_coefficient"),
        "kl_corrected": (place_of_kl(config) == "loss", "a KL in the loss (rl.kl=loss, rl.kl_coefficient)"),
        "constant": (method.over == "constant", "rl.over=constant"),
        "level": (method.surrogate != "reinforce", "a method with a ratio"),
        "discount": (steps, "ppo, reinforce or reinforce_plus_plus"),
        "decay": (has_critic(config), "ppo"),
        "value_detached": (has_critic(config), "ppo"),
        "missing_end_how": (section.missing_end is not None, "rl.missing_end"),
        "multiplier": (section.reward_rule == "constraint", "rl.reward_rule=constraint"),
        "multiplier_rate": (section.reward_rule == "constraint", "rl.reward_rule=constraint"),
    }
    return {name: reader for name, (is_read, reader) in read.items() if not is_read}


def check(config: ConfigDict) -> None:
    """Refuses what cannot be trained, before anything is opened.

    Raises:
      ValueError: names the key.
    """
    section = config.rl
    if section.missing_end is not None:
        check_number("rl.missing_end", section.missing_end)
    for name in ("options", "scale"):
        for option, value in section[name].items():
            if option != "scale" and not check_number(f"rl.{name}.{option}", value) >= 0:
                raise ValueError(f"rl.{name}.{option}={value} must be 0 or more.")
    if section.options.get("dual") is not None and not section.options.dual > 1:
        raise ValueError(f"rl.options.dual={section.options.dual} bounds a ratio above 1. Give 3, say, or leave it out.")
    check_choice("rl.kl_estimator", estimator_of(config), ESTIMATORS)
    check_choice("rl.kl_controller", section.kl_controller, CONTROLLERS)
    check_choice("rl.missing_end_how", section.missing_end_how, MISSING_END)
    check_choice("rl.reward_rule", section.reward_rule, RULES)
    if "scale" in section.scale:
        check_choice("rl.scale.scale", section.scale.scale, SCALES)
    method = method_of(config)
    tries(config)
    if section.kl_coefficient and method.kl == "none":
        raise ValueError(
            f"rl.kl_coefficient={section.kl_coefficient} and rl.method={section.method!r} has no KL. Set rl.kl: reward or loss."
        )
    wrong = {("k1", False): "has a gradient of 0 on average", ("k2", True): "has the right gradient as it is"}
    if section.kl_coefficient and method.kl == "loss" and (why := wrong.get((estimator_of(config), section.kl_corrected))):
        raise ValueError(
            f"rl.kl_estimator={estimator_of(config)!r} in the loss with rl.kl_corrected={section.kl_corrected} {why}."
            f" Set rl.kl_corrected={not section.kl_corrected}, or choose k3, or rl.kl=reward."
        )
    if bool(section.ptx_coefficient) != bool(section.ptx_rows):
        raise ValueError(f"rl.ptx_coefficient={section.ptx_coefficient} and rl.ptx_rows={section.ptx_rows}: give both, or neither.")
    if not config.rollout.temperature > 0:
        raise ValueError(f"rollout.temperature={config.rollout.temperature} draws nothing. Give a number above 0; 1 is usual.")
    if config.parallel.context not in (1, -1):
        raise ValueError(f"parallel.context={config.parallel.context} is not supported in rl yet. Set it to 1; use fsdp or tensor.")
    if method.advantages == "greedy" and section.reward_rule in ("normalised_sum", "running_sum"):
        raise ValueError(f"rl.reward_rule={section.reward_rule!r} puts one greedy completion on another scale. Choose sum with remax.")
    if section.normalise_returns and method.advantages in (*GROUPED, "greedy"):
        raise ValueError(f"rl.normalise_returns=True and rl.method={section.method!r} has no returns of tokens. Choose ppo or reinforce.")
    if section.normalise_returns and section.whiten_rewards:
        raise ValueError("rl.normalise_returns=True and rl.whiten_rewards=True divide the same rewards. Choose one.")
    for name, reader in unread(config).items():
        if section[name] != RL[f"rl.{name}"].default:
            raise ValueError(f"rl.{name}={section[name]!r} is not read here: it is for {reader}. Leave it out, or choose that.")
