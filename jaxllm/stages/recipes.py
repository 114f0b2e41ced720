"""The stages that train, by name."""

from importlib import import_module

from ml_collections import ConfigDict

from jaxllm.stages.keys import TRAINS
from jaxllm.stages.recipe import Recipe


def recipe_of(config: ConfigDict, stage: str | None = None) -> Recipe:
    """The recipe of the stage that a config is for.

    Args:
      config: resolved.
      stage: what a run was; None: as the config says, else pretrain.

    Raises:
      ValueError: an unknown stage.
    """
    name = stage or config.stage or "pretrain"
    if name not in TRAINS:
        raise ValueError(f"stage={name!r} trains nothing. Choose one of: {', '.join(TRAINS)}.")
    return import_module(f"jaxllm.stages.{name}").RECIPE
