"""Which tensors of a PEFT folder hold which arrays of our adapters: the linear layers of a family, and how thin matrices lie in them."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from jaxllm.interop import names
from jaxllm.interop.places import shapes_of
from jaxllm.interop.safetensors import Tensor
from jaxllm.interop.views import Weight
from jaxllm.models.config import ModelConfig
from jaxllm.models.layers import INPUTS
from jaxllm.models.method import nearest

PREFIX = "base_model.model."  # stands before every tensor's name
FIELDS = {  # what ends a tensor's name -> our array; the first of each is written
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",  # of peft before 0.12
    "ia3_l": "value",
}
ENDS = {"a": "lora_A.weight", "b": "lora_B.weight", "magnitude": "lora_magnitude_vector", "value": "ia3_l"}


class Module(NamedTuple):
    """A linear layer of theirs and the Dense modules of ours in it: several where q, k and v, or gate and up, are one.

    Attributes:
      name: "model.layers.0.self_attn.q_proj".
      ours: "layers/0/attention/query", in the order in which they lie in it.
      a, b: of LoRA's matrices, A [r, inputs] which all of ours share, and B [outputs, r].
      outer, inner: of a vector over outputs (a magnitude, IA3's after the layer) and over inputs.
      is_transposed: its weight lies [inputs, outputs], as in GPT-2.
    """

    name: str
    ours: tuple[str, ...]
    a: Weight
    b: Weight
    outer: Weight
    inner: Weight
    is_transposed: bool

    @property
    def end(self) -> str:
        """What it is called in every layer: "self_attn.q_proj"."""
        return re.split(r"\.\d+\.", self.name, maxsplit=1)[1]


def modules(family: str, config: ModelConfig, prefix: str | None = None) -> dict[str, Module]:
    """Every linear layer of the blocks by its name.

    Args:
      family: a key of `names.NAMES`.
      config: of the model.
      prefix: as for `names.table`.
    """
    table = names.table(family, shapes_of(config), config.num_layers, prefix)
    kernels = {name: row for name, row in table.items() if row.ours[0].startswith("layers/") and row.ours[0].endswith("/kernel")}
    return {name.removesuffix(".weight"): _module(name.removesuffix(".weight"), row) for name, row in kernels.items()}


def _module(name: str, kernel: Weight) -> Module:
    """From "(n h) d -> d n h", say: A lies "r d -> d r" and B "(n h) r -> r n h"."""
    ours = tuple(each.removesuffix("/kernel") for each in kernel.ours)
    a, b, outer, inner, transposed = [], [], [], [], False
    for each, pattern in zip(ours, kernel.patterns, strict=True):
        left, right = pattern.split(" -> ")
        first, second = re.findall(r"\([^)]*\)|\S+", left)
        letters, num_inputs = right.split(), INPUTS.get(each.split("/")[-1], 1)
        inputs, outputs = " ".join(letters[:num_inputs]), " ".join(letters[num_inputs:])
        transposed = letters[0] in first
        fan_in, fan_out = (first, second) if transposed else (second, first)
        a.append(f"r {fan_in} -> {inputs} r")
        b.append(f"{fan_out} r -> r {outputs}")
        outer.append(f"{fan_out} -> {outputs}")
        inner.append(f"{fan_in} -> {inputs}")
    one = ours[:1]
    return Module(
        name, ours, Weight(one, (a[0],)), Weight(ours, tuple(b)), Weight(ours, tuple(outer)), Weight(one, (inner[0],)), transposed
    )


def found(where: str, family: str, config: ModelConfig, tensors: Mapping[str, Tensor]) -> dict[Module, dict[str, Tensor]]:
    """The tensors of a file by the layer that they adapt.

    Raises:
      ValueError: a tensor that is no adapter of ours, or of a layer that the model does not have; the nearest is named.
    """
    grouped: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, field = _split(where, name)
        grouped.setdefault(module, {})[field] = tensor
    prefixes = names.NAMES[family].prefixes
    tables = [modules(family, config, prefix) for prefix in prefixes]
    table = max(tables, key=lambda table: len(table.keys() & grouped.keys()))
    unknown = sorted(grouped.keys() - table.keys())
    if unknown:
        raise ValueError(
            f"{where}: the {family} model has no linear layer {unknown[0]!r} ({len(unknown)} of {len(grouped)} adapted ones)."
            f"{nearest(unknown[0], table)} Are these adapters of another base?"
        )
    return {table[name]: fields for name, fields in grouped.items()}


def _split(where: str, name: str) -> tuple[str, str]:
    end = next((end for end in sorted(FIELDS, key=len, reverse=True) if name.endswith(f".{end}")), None)
    if not name.startswith(PREFIX) or end is None:
        raise ValueError(
            f"{where}: tensor {name[:200]!r} is none that jaxllm has a place for. Linear layers' are read: {', '.join(ENDS.values())}."
        )
    return name[len(PREFIX) : -len(end) - 1], FIELDS[end]
