"""Weights of a Hugging Face folder onto a mesh, and back into a folder: one tensor at a time, never two copies of a model."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxllm.interop import names, safetensors, settings, views
from jaxllm.interop.folders import CONFIG, INDEX, WEIGHTS, Folder
from jaxllm.interop.views import Weight
from jaxllm.models.config import ModelConfig
from jaxllm.models.model import Model
from jaxllm.parallel import rules

DTYPES = tuple(safetensors.CODES)  # that weights are written in
CHUNK = 1 << 22  # numbers looked at together for NaN
SHARD_BYTES = 5_000_000_000  # of a file, as transformers has it

Tell = Callable[[int], None]  # is told how many bytes were done


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
    prefix = next((prefix for prefix in known.prefixes if f"{prefix}{known.embedding}" in there), known.prefixes[0])
    head = next((head for head in known.heads if head in there), known.heads[0])
    table = names.table(family, _shapes(config), config.num_layers, prefix, head)
    _check_tied(folder, config, f"{prefix}{known.embedding}", head)
    if missing := [name for name in table if name not in there]:
        raise ValueError(
            f"{folder.path} lacks the weight {missing[0]!r} ({len(missing)} of {len(table)} missing). Is config.json another model's?"
        )
    rest = [name for name in there if name not in table and not (name == head and config.tied_embeddings)]
    others = [name for name in rest if any(re.fullmatch(pattern, name) for pattern in known.others)]
    left = [name for name in rest if name not in others and not any(re.fullmatch(pattern, name) for pattern in known.buffers)]
    if left:
        raise ValueError(
            f"{folder.path} has the weight {left[0]!r}, for which a {family} model of this config.json has no place ({len(left)} left over)."
            " Is config.json another model's, or are these adapters to be merged first?"
        )
    if others:
        say(
            f"Only the text model is read: {len(others)} tensors are left out ({', '.join(sorted({name.split('.')[0] for name in others}))})."
        )
    letters = views.sizes(config)
    for name, weight in table.items():
        if (shape := views.shape(weight, letters)) != there[name].shape:
            raise ValueError(
                f"{folder.path}: weight {name!r} is {there[name].shape}, and config.json makes it {shape}. They are of two models."
            )
    return {ours: Place(name, weight, part) for name, weight in table.items() for part, ours in enumerate(weight.ours)}


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


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Our parameters, layers one by one, by name."""
    abstract = Model(config, scan_layers=False).abstract()
    return {rules.path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}


def load(
    folder: Folder, family: str, model: Model, mesh: Any, tell: Tell = lambda done: None, say: Callable[[str], None] = lambda line: None
) -> Any:
    """The parameters of a model, each read from the file straight into its shards.

    The largest come first: what is read into lies beside those already there, and at the end that is little.

    Args:
      folder: the folder.
      family: see `read_config`.
      model: with the folder's config; its `param_dtype` and `scan_layers` are what is made.
      mesh: where the parameters shall lie.
      tell: progress, in bytes of our arrays.
      say: takes lines for people.

    Raises:
      ValueError: see `places`; or a number that is NaN or infinite.
    """
    where, letters = places(folder, family, model.config, say), views.sizes(model.config)
    shapes = model.abstract()
    shardings = rules.shardings(model.axes(), mesh, shapes)
    leaves = {rules.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    lies = {rules.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shardings)}
    arrays = {}
    for name in sorted(leaves, key=lambda name: -math.prod(leaves[name].shape)):
        single = layers_of(name, model.config)
        read = partial(_read, folder, [where[each] for each in single], name != single[0], letters, leaves[name].dtype)
        arrays[name] = jax.make_array_from_callback(leaves[name].shape, lies[name], partial(read, leaves[name].shape))
        arrays[name].block_until_ready()  # before the next is read
        tell(arrays[name].nbytes)
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[rules.path_name(path)], shapes)


def layers_of(name: str, config: ModelConfig) -> list[str]:
    """The names, layers one by one, of what is in one of a model's arrays: itself, or the layers stacked in it."""
    scanned = re.fullmatch(r"layers/scanned/(\d+)/(.*)", name)
    if not scanned:
        return [name]
    place, rest = int(scanned[1]), scanned[2]
    return [f"layers/{repeat * len(config.layer_pattern) + place}/{rest}" for repeat in range(config.num_repeats)]


def _read(folder: Folder, parts: list[Place], stacked: bool, letters: Mapping, dtype: Any, shape: tuple, index: tuple) -> np.ndarray:
    """One shard of one of our arrays: `index` of `shape`."""
    index = tuple(slice(*each.indices(size)) for each, size in zip(index, shape, strict=True))
    out = np.empty([each.stop - each.start for each in index], dtype)
    layers = out if stacked else out[None]
    for into, place in zip(layers, parts[index[0]] if stacked else parts, strict=True):
        tensor = safetensors.mapped(folder.tensors[place.name])
        into[...] = views.view(tensor, place.weight, place.part, letters)[index[1:] if stacked else index]
        check_finite(into, f"{folder.tensors[place.name].file}: weight {place.name!r}")
    return out


def check_finite(array: np.ndarray, what: str) -> None:
    """Refuses numbers that no model can be computed with.

    Raises:
      ValueError: names what they are in.
    """
    flat = array.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        good = np.isfinite(flat[start : start + CHUNK])
        if not good.all():
            bad = flat[start : start + CHUNK][~good][0]
            raise ValueError(
                f"{what} has {bad} among its numbers. The model is broken, or does not fit {array.dtype}: take another copy or dtype."
            )


def save(
    folder: Path,
    family: str,
    config: ModelConfig,
    params: Any,
    dtype: str,
    more: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
    tell: Tell = lambda done: None,
) -> None:
    """Writes config.json and the weights of a model; `transformers` loads the folder.

    Args:
      folder: there, and empty.
      family: a key of `names.NAMES`.
      config: of the model.
      params: its parameters, in either layout of the layers.
      dtype: of the weights, one of `DTYPES`.
      more: further entries of config.json, ids of special tokens say.
      shard_bytes: the most that one file holds, unless a single tensor is larger.
      tell: progress, in bytes written.

    Raises:
      ValueError: the family cannot say what this model is, an unknown dtype, or a number that is not finite in it.
    """
    if dtype not in DTYPES:
        raise ValueError(f"Unknown dtype {dtype!r}. Choose one of: {', '.join(DTYPES)}.")
    body = settings.write(family, config) | {"dtype": dtype, "torch_dtype": dtype} | dict(more or {})
    (folder / CONFIG).write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    table, letters = names.table(family, _shapes(config), config.num_layers), views.sizes(config)
    shapes = {name: views.shape(weight, letters) for name, weight in table.items()}
    files = _files(shapes, np.dtype(dtype).itemsize, shard_bytes)
    for file, tensors in files.items():
        made = _made({name: table[name] for name in tensors}, letters, Arrays(config, params), dtype, tell)
        safetensors.write(folder / file, {name: shapes[name] for name in tensors}, dtype, made)
    if len(files) > 1:
        size = sum(math.prod(shape) for shape in shapes.values()) * np.dtype(dtype).itemsize
        index = {"metadata": {"total_size": size}, "weight_map": {name: file for file, tensors in files.items() for name in tensors}}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _files(shapes: Mapping[str, tuple[int, ...]], itemsize: int, shard_bytes: int) -> dict[str, list[str]]:
    """File name -> its tensors, in the order of the model."""
    groups: list[list[str]] = [[]]
    room = shard_bytes
    for name, shape in shapes.items():
        size = math.prod(shape) * itemsize
        if groups[-1] and size > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(name)
        room -= size
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)}


class Arrays:
    """A model's parameters by the names of single layers, as numpy arrays."""

    def __init__(self, config: ModelConfig, params: Any):
        self._places = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            name = rules.path_name(path)
            singles = layers_of(name, config)
            for repeat, single in enumerate(singles):
                self._places[single] = (leaf, None if single == name else repeat)

    def __getitem__(self, name: str) -> np.ndarray:
        leaf, repeat = self._places[name]
        if repeat is None:
            return np.asarray(leaf)
        alone = len(leaf.devices()) == 1  # then numpy sees it where it lies; else one layer is gathered
        return np.asarray(leaf)[repeat] if alone else np.asarray(leaf[repeat])


def _made(table: Mapping[str, Weight], letters: Mapping, arrays: Arrays, dtype: str, tell: Tell) -> Iterator[np.ndarray]:
    """The tensors of a table, one after the other."""
    for name, weight in table.items():
        tensor = np.empty(views.shape(weight, letters), dtype)
        for part, ours in enumerate(weight.ours):
            with np.errstate(over="ignore"):  # what overflows is refused in the next line, by name
                views.view(tensor, weight, part, letters)[...] = arrays[ours]
        check_finite(tensor, f"Weight {name!r}")
        tell(tensor.nbytes)
        yield tensor
