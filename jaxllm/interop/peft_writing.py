"""LoRA, rsLoRA, DoRA and IA3 into a folder that Hugging Face's PEFT loads."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxllm.interop import huggingface, peft_tensors, safetensors, views
from jaxllm.interop.huggingface import Arrays
from jaxllm.interop.peft_folders import CONFIG, FINGERPRINT, WEIGHTS
from jaxllm.interop.peft_tensors import ENDS, PREFIX, Module
from jaxllm.interop.views import Weight
from jaxllm.models.adapters import Ia3
from jaxllm.models.lora import DoraMethod, LoraMethod, RsloraMethod
from jaxllm.models.method import Peft
from jaxllm.models.model import Params

KINDS: dict[type[Peft], str] = {LoraMethod: "LORA", RsloraMethod: "LORA", DoraMethod: "LORA", Ia3: "IA3"}

Tensors = dict[str, np.ndarray]


class Made(NamedTuple):
    """What a folder will hold: the entries of its config that are this method's own, and its tensors."""

    config: dict[str, Any]
    tensors: Tensors


def save(
    folder: Path,
    family: str,
    method: Peft,
    adapters: Params,
    dtype: str = "float32",
    base: str | None = None,
    fingerprint: str | None = None,
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors; `peft.PeftModel.from_pretrained` loads the folder.

    Where layers of ours with different As are one layer of theirs, As and Bs stand side by side there, at a multiple of the rank: the sum
    is the same.

    Args:
      folder: there, and empty.
      family: the base's, a key of `names.NAMES`.
      method: that made the adapters.
      adapters: their tree.
      dtype: of the tensors, one of `huggingface.DTYPES`.
      base: what the base is called, a path or a name on the hub.
      fingerprint: of the base, for `peft_folders.open_adapters`.

    Raises:
      ValueError: a method that the format has no place for, an unknown dtype, or a number that is not finite.
    """
    kind = KINDS.get(type(method))
    if kind is None:
        known = ", ".join(each.__name__.removesuffix("Method").lower() for each in KINDS)
        raise ValueError(f"{type(method).__name__} has no place in a PEFT folder. Write adapters of: {known}; or merge them into the base.")
    if dtype not in huggingface.DTYPES:
        raise ValueError(f"Unknown dtype {dtype!r}. Choose one of: {', '.join(huggingface.DTYPES)}.")
    arrays, config = Arrays(method.model.config, adapters), method.model.config
    modules = list(peft_tensors.modules(family, config).values())
    made = (
        _lora(method, modules, arrays, views.sizes(config))
        if isinstance(method, LoraMethod)
        else _ia3(modules, arrays, views.sizes(config))
    )
    body = {"peft_type": kind, "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True} | made.config
    body["fan_in_fan_out"] = any(module.is_transposed for module in modules)
    (folder / CONFIG).write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    with np.errstate(over="ignore"):  # what overflows is refused by name
        tensors = {f"{PREFIX}{name}": array.astype(dtype) for name, array in sorted(made.tensors.items())}
    for name, array in tensors.items():
        huggingface.check_finite(array, f"Tensor {name!r}")
    said = {FINGERPRINT: fingerprint} if fingerprint else {}
    shapes = {name: array.shape for name, array in tensors.items()}
    safetensors.write(folder / WEIGHTS, shapes, dtype, tensors.values(), said)


def _lora(method: LoraMethod, modules: list[Module], arrays: Arrays, letters: Mapping[str, int]) -> Made:
    adapted = [module for module in modules if any(f"{ours}/lora/a" in arrays for ours in module.ours)]
    ends = dict.fromkeys(module.end for module in adapted)
    times = {end: max(_distinct(module, arrays) for module in adapted if module.end == end) for end in ends}  # of the rank
    grown = {end: many for end, many in times.items() if many > 1}
    is_rslora, rank = isinstance(method, RsloraMethod), method.rank
    config = {
        "r": rank,
        "lora_alpha": method.alpha,
        "lora_dropout": method.dropout,
        "use_rslora": is_rslora,
        "use_dora": isinstance(method, DoraMethod),
        "target_modules": list(ends),
        "rank_pattern": {end: rank * many for end, many in grown.items()},
        "alpha_pattern": {end: method.alpha * (math.sqrt(many) if is_rslora else many) for end, many in grown.items()},
        "bias": "none",
        "init_lora_weights": True,
    }
    tensors: Tensors = {}
    for module in adapted:
        a, b = _side_by_side(module, arrays, letters, rank, times[module.end])
        tensors |= {f"{module.name}.{ENDS['a']}": a, f"{module.name}.{ENDS['b']}": b}
        if isinstance(method, DoraMethod):
            tensors[f"{module.name}.{ENDS['magnitude']}"] = _magnitude(module, arrays, letters)
    return Made(config, tensors)


def _distinct(module: Module, arrays: Arrays) -> int:
    """How many As a layer of theirs needs: one if all of ours in it have the same."""
    found = [arrays[f"{ours}/lora/a"] for ours in module.ours if f"{ours}/lora/a" in arrays]
    return 1 if all(np.array_equal(found[0], each) for each in found[1:]) else len(module.ours)


def _side_by_side(module: Module, arrays: Arrays, letters: Mapping[str, int], rank: int, many: int) -> tuple[np.ndarray, np.ndarray]:
    """A and B of a layer of theirs; with several As, each of ours has its own r columns of B, and zeros elsewhere."""
    sizes = {**letters, "r": rank * many}
    a, b = (np.zeros(views.shape(row, sizes), np.float32) for row in (module.a, module.b))
    for part, ours in enumerate(module.ours):
        if f"{ours}/lora/a" in arrays:
            own = slice(part * rank, (part + 1) * rank) if many > 1 else slice(None)
            views.view(a, module.a, 0, sizes)[..., own] = arrays[f"{ours}/lora/a"]
            views.view(b, module.b, part, sizes)[own] = arrays[f"{ours}/lora/b"]
    return a, b


def _magnitude(module: Module, arrays: Arrays, letters: Mapping[str, int]) -> np.ndarray:
    whole = np.zeros(views.shape(module.outer, letters), np.float32)
    for part, ours in enumerate(module.ours):
        if f"{ours}/lora/magnitude" not in arrays:
            raise ValueError(
                f"{module.name} is one layer, and this DoRA adapts only a part of it, not {ours}. Train with peft.targets of all its parts:"
                f" {', '.join(each.split('/')[-1] for each in module.ours)}; or merge it into the base."
            )
        views.view(whole, module.outer, part, letters)[...] = arrays[f"{ours}/lora/magnitude"]
    return whole


def _ia3(modules: list[Module], arrays: Arrays, letters: Mapping[str, int]) -> Made:
    """Parts of a fused layer that are not scaled are ones."""
    tensors: Tensors = {}
    sides: dict[str, str] = {}
    for module in modules:
        own = {part: ours for part, ours in enumerate(module.ours) if f"{ours}/ia3/value" in arrays}
        if not own:
            continue
        side = sides[module.end] = Ia3.SIDES[next(iter(own.values())).split("/")[-1]]
        row: Weight = module.inner if side == "in" else module.outer
        whole = np.ones(views.shape(row, letters), np.float32)
        for part, ours in own.items():
            views.view(whole, row, part, letters)[...] = arrays[f"{ours}/ia3/value"]
        tensors[f"{module.name}.{ENDS['value']}"] = whole[None] if side == "in" else whole[:, None]
    feed_forward = [end for end, side in sides.items() if side == "in"]
    return Made({"target_modules": list(sides), "feedforward_modules": feed_forward, "init_ia3_weights": True}, tensors)
