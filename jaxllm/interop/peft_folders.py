"""LoRA, rsLoRA, DoRA and IA3 out of the folders of Hugging Face's PEFT: adapter_config.json and adapter_model.safetensors."""

import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxllm.interop import folders, huggingface, peft_tensors, safetensors, views
from jaxllm.interop.given import Given
from jaxllm.interop.peft_tensors import ENDS, Module
from jaxllm.interop.places import layers_of
from jaxllm.interop.safetensors import Tensor
from jaxllm.models import peft
from jaxllm.models.adapters import Ia3
from jaxllm.models.method import Peft
from jaxllm.models.model import Model, Params
from jaxllm.parallel import rules

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
FINGERPRINT = "base_fingerprint"  # in the metadata of the weights' file, where peft does not look
INITS = (True, False, None, "gaussian", "orthogonal", "eva")  # that leave the base's own weights as they are
HARMLESS = {  # that change nothing, or nothing that the tensors do not say themselves
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "megatron_core", "peft_version", "revision", "task_type"),
    *("ensure_weight_tying", "exclude_modules", "fan_in_fan_out", "feedforward_modules", "layers_pattern", "layers_to_transform"),
    *("init_ia3_weights", "qalora_group_size", "rank_pattern", "target_modules"),
}

Arrays = dict[str, np.ndarray]


class AdapterFolder(NamedTuple):
    """What is in a folder: adapter_config.json, where its tensors lie, and the fingerprint of their base, if one was written."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    fingerprint: str | None


def is_one(folder: str | os.PathLike[str]) -> bool:
    """Whether this is a folder of PEFT's."""
    return (Path(folder) / CONFIG).is_file()


def open_adapters(folder: str | os.PathLike[str], base: str | None = None, fingerprint: str | None = None) -> AdapterFolder:
    """Reads adapter_config.json and the header of the weights.

    Args:
      folder: on this machine.
      base: what the model is called that the adapters shall stand beside, a path or a name on the hub; None: anything is fine.
      fingerprint: that model's, as `save` was given it; only compared where the folder has one.

    Raises:
      ValueError: no such folder, pickles, or adapters of another base.
    """
    path = Path(folder)
    if not is_one(folder):
        raise ValueError(f"{folder} is not a folder of adapters: it has no {CONFIG}. Give the folder that peft's save_pretrained wrote.")
    if not (path / WEIGHTS).is_file():
        why = f" {PICKLE} is a pickle, which can run any code and is never opened." if (path / PICKLE).is_file() else ""
        raise ValueError(f"{folder} has no {WEIGHTS}.{why} save_pretrained(FOLDER, safe_serialization=True) of peft writes it.")
    config, file = folders.read_json(path / CONFIG), folders.inside(path, WEIGHTS)
    opened = AdapterFolder(path, config, safetensors.read_header(file), safetensors.read_metadata(file).get(FINGERPRINT))
    _check_base(opened, base, fingerprint)
    return opened


def _check_base(folder: AdapterFolder, base: str | None, fingerprint: str | None) -> None:
    made_for = folder.config.get("base_model_name_or_path")
    if fingerprint and folder.fingerprint and fingerprint != folder.fingerprint:
        raise ValueError(f"{folder.path}: adapters of another base ({made_for}, {folder.fingerprint}), not of {base} ({fingerprint}).")
    if base and made_for and _last(base) != _last(str(made_for)) and not (fingerprint and folder.fingerprint):
        raise ValueError(
            f"{folder.path}: adapters of the base {made_for!r}, not of {base!r}. Take that base; or, if it is the same under another name,"
            f" write the new name into base_model_name_or_path of {CONFIG}."
        )


def _last(name: str) -> str:
    return name.rstrip("/\\").replace("\\", "/").split("/")[-1].lower()


class Found(NamedTuple):
    """A folder's adapters as ours: a method, and its arrays by the names of single layers ("layers/0/attention/query/lora/a")."""

    method: Peft
    arrays: Arrays


def read(folder: AdapterFolder, family: str, model: Model) -> Found:
    """The adapters of a folder, for a model.

    Fused layers come apart exactly. Where ranks or factors differ between layers, ranks are filled up with zeros and factors go into B.

    Args:
      folder: from `open_adapters`.
      family: the base's, a key of `names.NAMES`.
      model: of the base.

    Raises:
      ValueError: settings, layers or tensors that jaxllm has no place for, or of the shape of another base.
    """
    where, given = str(folder.path / CONFIG), Given(folder.config, str(folder.path / CONFIG))
    kind = given.get("peft_type", None)
    if kind not in ("LORA", "IA3"):
        raise given.refusal("peft_type", kind, "jaxllm reads: LORA, IA3")
    layers = peft_tensors.found(str(folder.path / WEIGHTS), family, model.config, folder.tensors)
    if not layers:
        raise ValueError(f"{folder.path / WEIGHTS} holds no adapters. Write it again.")
    found = _read_lora(given, layers, model) if kind == "LORA" else _read_ia3(where, layers, model)
    given.check_all_read(HARMLESS)
    for name, array in found.arrays.items():
        huggingface.check_finite(array, f"{folder.path / WEIGHTS}: {name}")
    return found


def _lora_settings(given: Given) -> dict[str, Any]:
    """Checks what the tensors do not say, and returns it."""
    for key, fine in {"bias": ("none",), "init_lora_weights": INITS}.items():
        if (value := given.get(key, fine[0])) not in fine:
            raise given.refusal(key, value, f"jaxllm reads: {', '.join(map(str, fine))}")
    names = ("lora_alpha", "lora_dropout", "use_rslora", "use_dora", "alpha_pattern")
    said = {name: given.get(name, default) for name, default in zip(names, (8, 0.0, False, False, {}), strict=True)}
    given.get("r", None)  # every A says its own
    for pattern in said["alpha_pattern"] or {}:
        if not re.fullmatch(r"\^?[\w.]+", pattern):  # an expression from outside may take for ever
            raise given.refusal("alpha_pattern", pattern, "jaxllm reads names of layers there, and no expressions")
    return said


def _alpha(said: Mapping[str, Any], module: str) -> float:
    """The first pattern that the layer's name is, or ends with, has it (peft's `get_pattern_key`)."""
    for pattern, alpha in (said["alpha_pattern"] or {}).items():
        name = pattern.removeprefix("^")
        if module == name or module.endswith(f".{name}"):
            return alpha
    return said["lora_alpha"]


def _read_lora(given: Given, layers: Mapping[Module, Mapping[str, Tensor]], model: Model) -> Found:
    said, letters = _lora_settings(given), views.sizes(model.config)
    wanted = {"a", "b", "magnitude"} if said["use_dora"] else {"a", "b"}
    factors, ranks = {}, {}
    for module, tensors in layers.items():
        if set(tensors) != wanted:
            name = ENDS[min(wanted ^ set(tensors))]
            raise ValueError(
                f"{given.where}: {module.name} should have {_ends(wanted)}, and {name} is missing or too much. Write it again."
            )
        r = ranks[module.name] = tensors["a"].shape[0] if tensors["a"].shape else 0
        for field, row in {"a": module.a, "b": module.b, "magnitude": module.outer}.items():
            if field in wanted:
                _check_shape(tensors[field], views.shape(row, {**letters, "r": r}))
        factors[module.name] = _alpha(said, module.name) / (math.sqrt(r) if said["use_rslora"] else r)
    rank, scale = max(ranks.values()), max(factors.values()) or 1.0
    arrays = {}
    for module, tensors in layers.items():
        size, ratio = {**letters, "r": ranks[module.name]}, np.float32(factors[module.name] / scale)
        a, b = (_floats(tensors[field]) for field in ("a", "b"))
        for part, ours in enumerate(module.ours):
            arrays[f"{ours}/lora/a"] = _filled(views.view(a, module.a, 0, size), rank, -1)
            arrays[f"{ours}/lora/b"] = _filled(views.view(b, module.b, part, size) * ratio, rank, 0)
            if said["use_dora"]:
                arrays[f"{ours}/lora/magnitude"] = views.view(_floats(tensors["magnitude"]), module.outer, part, letters)
    name = "dora" if said["use_dora"] else "rslora" if said["use_rslora"] else "lora"
    alpha = scale * (math.sqrt(rank) if name == "rslora" else rank)
    targets = tuple(dict.fromkeys(ours.split("/")[-1] for module in layers for ours in module.ours))
    options = {"rank": rank, "alpha": float(alpha), "dropout": float(said["lora_dropout"]), "targets": targets}
    return Found(peft.make(model, name, **options), arrays)


def _ends(fields: Iterable[str]) -> str:
    return " and ".join(ENDS[field] for field in sorted(fields))


def _check_shape(tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(
            f"{tensor.file}: tensor {tensor.name!r} is {tensor.shape}, and this base makes it {shape}. They are adapters of another base."
        )


def _floats(tensor: Tensor) -> np.ndarray:
    return np.asarray(safetensors.mapped(tensor), np.float32)


def _filled(array: np.ndarray, rank: int, dim: int) -> np.ndarray:
    """With zeros up to this rank."""
    more = [(0, 0)] * array.ndim
    more[dim] = (0, rank - array.shape[dim])
    return np.pad(array, more)


def _read_ia3(where: str, layers: Mapping[Module, Mapping[str, Tensor]], model: Model) -> Found:
    """Vectors at other places than the paper's (keys, values, the MLP's inner activations) must be ones."""
    letters, arrays = views.sizes(model.config), {}
    for module, tensors in layers.items():
        if set(tensors) != {"value"}:
            raise ValueError(f"{where}: {module.name} should have {ENDS['value']} alone. Write it again.")
        tensor = tensors["value"]
        side, row = ("in", module.inner) if tensor.shape[:1] == (1,) else ("out", module.outer)
        (size,) = views.shape(row, letters)
        _check_shape(tensor, (1, size) if side == "in" else (size, 1))
        for part, ours in enumerate(module.ours if side == "out" else module.ours[:1]):
            value = views.view(_floats(tensor).reshape(-1), row, part, letters)
            if Ia3.SIDES.get(ours.split("/")[-1]) == side:
                arrays[f"{ours}/ia3/value"] = value
            elif (value != 1).any():
                places = ", ".join(f"{name} ({side})" for name, side in Ia3.SIDES.items())
                raise ValueError(f"{tensor.file}: {module.name} scales {ours} ({side}), and jaxllm's ia3 has only: {places}.")
    return Found(peft.make(model, "ia3"), arrays)


def place(found: Found, mesh: Any) -> Params:
    """The adapters' tree on a mesh, float32. What the folder had no adapter for does nothing.

    Raises:
      ValueError: a DoRA that not every layer has: its magnitude would have to be the base's own.
    """
    method, model = found.method, found.method.model
    abstract = method.abstract()
    lies = rules.shardings(method.axes(), mesh, abstract)

    def one(path, leaf, there):
        name = rules.path_name(path)
        single = layers_of(name, model.config)
        stacked = name != single[0]
        parts = [_or_idle(each, found.arrays, leaf.shape[1:] if stacked else leaf.shape) for each in single]
        array = np.stack(parts) if stacked else parts[0]
        assert array.shape == leaf.shape, (name, array.shape, leaf.shape)
        return jax.device_put(np.ascontiguousarray(array, leaf.dtype), there)

    return jax.tree_util.tree_map_with_path(one, abstract, lies)


def _or_idle(name: str, arrays: Arrays, shape: tuple[int, ...]) -> np.ndarray:
    if name in arrays:
        return arrays[name]
    if name.endswith("/magnitude"):
        module = name.removesuffix("/lora/magnitude")
        raise ValueError(f"This DoRA adapts {module.split('/')[-1]} in some layers and not in {module}. jaxllm's adapts it in all or none.")
    return np.full(shape, float(name.endswith("/ia3/value")), np.float32)
