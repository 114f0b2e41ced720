"""Where each of our parameters lies in the files of a Hugging Face folder; what is missing, left over or of another shape is refused."""

import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jaxllm.interop import names, safetensors, settings, views
from jaxllm.interop.folders import CONFIG, Folder
from jaxllm.interop.views import Weight
from jaxllm.models.config import ModelConfig
from jaxllm.models.model import Model
from jaxllm.parallel import rules


class Place(NamedTuple):
    """Where one of our arrays lies: as part `part` of the tensor `name`."""

    name: str
    weight: Weight
    part: int


def read_config(folder: Folder) -> tuple[str, ModelConfig]:
    """The family and the ModelConfig of a folder, see `settings.read`."""
    return settings.read(folder.config, str(folder.path / CONFIG))


def stored_dtype(folder: Folder, family: str, config: ModelConfig) -> str:
    """The dtype in which a model's parameters keep every bit: bfloat16 if all its weights are, else float32."""
    codes = {folder.tensors[place.name].dtype for place in places(folder, family, config).values()}
    return "bfloat16" if codes == {"BF16"} else "float32"


def places(folder: Folder, family: str, config: ModelConfig, say: Callable[[str], None] = lambda line: None) -> dict[str, Place]:
    """Where each of our parameters (layers one by one) lies in the folder's files.

    Args:
      folder: the folder.
      family: a key of `names.NAMES`.
      config: of the model.
      say: takes the line about parts of a larger model that are left out.

    Raises:
      ValueError: a weight is missing or left over, or has another shape than config.json says.
    """
    known, there = names.NAMES[family], folder.tensors
    if config.num_layers > len(there):
        raise ValueError(f"{folder.path}: config.json says {config.num_layers} layers, and there are {len(there)} weights in all.")
    prefix = next((prefix for prefix in known.prefixes if f"{prefix}{known.embedding}" in there), known.prefixes[0])
    head = next((head for head in known.heads if head in there), known.heads[0])
    table = names.table(family, shapes_of(config), config.num_layers, prefix, head)
    _check_tied(folder, config, f"{prefix}{known.embedding}", head)
    if missing := [name for name in table if name not in there]:
        raise ValueError(
            f"{folder.path} lacks the weight {missing[0]!r} ({len(missing)} of {len(table)} missing). Is config.json another model's?"
        )
    _check_rest(folder, family, {name for name in there if name not in table and not (name == head and config.tied_embeddings)}, say)
    letters = views.sizes(config)
    for name, weight in table.items():
        if (shape := views.shape(weight, letters)) != there[name].shape:
            raise ValueError(
                f"{folder.path}: weight {name!r} is {there[name].shape}, and config.json makes it {shape}. They are of two models."
            )
    return {ours: Place(name, weight, part) for name, weight in table.items() for part, ours in enumerate(weight.ours)}


def _check_rest(folder: Folder, family: str, rest: set[str], say: Callable[[str], None]) -> None:
    """Refuses tensors that nobody reads, but for buffers and the parts of a larger model, which are said."""
    known = names.NAMES[family]
    others = {name for name in rest if any(re.fullmatch(pattern, name) for pattern in known.others)}
    left = sorted(name for name in rest - others if not any(re.fullmatch(pattern, name) for pattern in known.buffers))
    if left:
        raise ValueError(
            f"{folder.path} has the weight {left[0]!r}, for which the {family} of its config.json has no place ({len(left)} left over)."
            " Is config.json another model's, or are these adapters that are to be merged first?"
        )
    if others:
        parts = ", ".join(sorted({name.split(".")[0] for name in others}))
        say(f"Only the text model is read: {len(others)} tensors are left out ({parts}).")


def _check_tied(folder: Folder, config: ModelConfig, embedding: str, head: str) -> None:
    """A head stored beside the embedding it is tied to must be the same numbers."""
    if not config.tied_embeddings or head not in folder.tensors or embedding not in folder.tensors:
        return
    a, b = (safetensors.mapped(folder.tensors[name]) for name in (embedding, head))
    if a.dtype != b.dtype or a.shape != b.shape or not np.array_equal(_bits(a), _bits(b)):
        raise ValueError(
            f"{folder.path}: tie_word_embeddings is true, but {head!r} is not {embedding!r}."
            " Set tie_word_embeddings to false in config.json, or take that tensor out."
        )


def _bits(array: np.ndarray) -> np.ndarray:
    return array.view({2: np.uint16, 4: np.uint32}[array.itemsize])


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Our parameters, layers one by one, by name."""
    abstract = Model(config, scan_layers=False).abstract()
    return {rules.path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}


def layers_of(name: str, config: ModelConfig) -> list[str]:
    """The names, layers one by one, of what is in one of a model's arrays: itself, or the layers stacked in it."""
    scanned = re.fullmatch(r"layers/scanned/(\d+)/(.*)", name)
    if not scanned:
        return [name]
    place, rest = int(scanned[1]), scanned[2]
    return [f"layers/{repeat * len(config.layer_pattern) + place}/{rest}" for repeat in range(config.num_repeats)]
