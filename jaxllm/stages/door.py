"""The command line of every stage that trains: its config is checked, compared with none of the compiler's flags, or run."""

from argparse import Namespace
from collections.abc import Sequence

from jaxllm.stages import canary, origin, programs, train
from jaxllm.stages.config import load
from jaxllm.stages.recipe import Recipe


def main(recipe: Recipe, args: Namespace, overrides: Sequence[str]) -> int:
    """`jaxllm STAGE --config F --workdir D [--check] [--canary N]`; returns the exit code."""
    config = origin.complete(load(args.config, overrides), args.workdir)
    if config.stage not in (None, recipe.name):
        raise ValueError(
            f"{args.config} is a config for `jaxllm {config.stage}`, not for `jaxllm {recipe.name}`. Run it there, or leave out its stage."
        )
    if args.check:
        return programs.check(config, recipe, args.devices)
    if args.canary is not None:
        return canary.canary(config, recipe, args.canary)
    return train.run(recipe, config, args.workdir)
