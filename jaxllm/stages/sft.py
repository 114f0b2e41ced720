"""Instruction tuning: dialogues -> a model that answers; full weights, or a small tree beside a frozen base (`peft.name`)."""

import functools
from argparse import Namespace
from collections.abc import Sequence

from jaxllm.stages import dialogues, door, pretrain
from jaxllm.stages.recipe import Recipe

# Prompts have no weight: their meeting with the vocabulary is left out.
RECIPE = Recipe("sft", functools.partial(pretrain.objective, sparse=True), dialogues.open_data, pretrain.scorer)


def main(args: Namespace, overrides: Sequence[str]) -> int:
    """`jaxllm sft --config F --workdir D`"""
    return door.main(RECIPE, args, overrides)
