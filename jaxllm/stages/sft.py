"""Instruction tuning: dialogues -> a model that answers; full weights, or a small tree beside a frozen base (`peft.name`)."""

import functools
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxllm.stages import dialogues, door, pretrain, train
from jaxllm.stages.recipe import Recipe

# Prompts have no weight: their meeting with the vocabulary is left out.
RECIPE = Recipe("sft", functools.partial(pretrain.objective, sparse=True), dialogues.open_data, pretrain.scorer)


def programs(config: ConfigDict, mesh: Any) -> dict[str, tuple[Callable, tuple]]:
    """name -> (function, abstract arguments): what this stage compiles."""
    return train.programs(config, mesh, RECIPE)


def main(args: Namespace, overrides: Sequence[str]) -> int:
    """`jaxllm sft --config F --workdir D`"""
    return door.main(RECIPE, args, overrides)
