"""A tensor of theirs seen as an array of ours, without a copy: the same view reads on import and is written through on export."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxllm.models.config import ModelConfig

Sizes = Mapping[str, int]


class Weight(NamedTuple):
    """One tensor of theirs, and the arrays of ours that are in it.

    Attributes:
      ours: names of ours, in the order in which they lie in the tensor.
      patterns: for each, how the tensor's dims become ours: "(n h) d -> d n h". A bracket is one dim of theirs; the letters are those of
        `sizes`. Where "*" stands, the arrays lie between one another, as many as there are; without it they follow one another along
        the first dim.
    """

    ours: tuple[str, ...]
    patterns: tuple[str, ...]


def sizes(config: ModelConfig) -> dict[str, int]:
    """The letters of the patterns: the legend's, in lower case, and p for learned positions."""
    return {
        "d": config.width,
        "f": config.mlp_width,
        "h": config.head_size,
        "k": config.num_groups,
        "n": config.num_heads,
        "p": config.max_positions,
        "v": config.vocab_size,
    }


def _letters(pattern: str) -> tuple[list[list[str]], list[str]]:
    """The letters of each dim of theirs, and those of ours."""
    left, _, right = pattern.partition("->")
    return [re.findall(r"[a-z*]", dim) for dim in re.findall(r"\([^)]*\)|[a-z*]", left)], right.split()


def _shape(pattern: str, sizes: Sizes) -> tuple[int, ...]:
    return tuple(math.prod(sizes[letter] for letter in dim) for dim in _letters(pattern)[0])


def shape(weight: Weight, sizes: Sizes) -> tuple[int, ...]:
    """The shape of the whole tensor."""
    if "*" in weight.patterns[0]:
        return _shape(weight.patterns[0], {**sizes, "*": len(weight.ours)})
    parts = [_shape(pattern, sizes) for pattern in weight.patterns]
    return (sum(part[0] for part in parts), *parts[0][1:])


def view(tensor: np.ndarray, weight: Weight, part: int, sizes: Sizes) -> np.ndarray:
    """The array number `part` of ours in a tensor of theirs; what is assigned to the view is written into the tensor."""
    sizes, pattern = {**sizes, "*": len(weight.ours)}, weight.patterns[part]
    if "*" not in pattern and len(weight.ours) > 1:
        lengths = [_shape(each, sizes)[0] for each in weight.patterns]
        start = sum(lengths[:part])
        tensor = tensor[start : start + lengths[part]]
    dims, ours = _letters(pattern)
    theirs = [letter for dim in dims for letter in dim]
    split = np.reshape(tensor, [sizes[letter] for letter in theirs], copy=False)
    picked = split[tuple(part if letter == "*" else slice(None) for letter in theirs)]
    kept = [letter for letter in theirs if letter != "*"]
    return picked.transpose([kept.index(letter) for letter in ours])
