"""Weights of a Hugging Face folder onto a mesh, and back into a folder: one tensor at a time, never two copies of a model."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxllm.interop import names, safetensors, settings, views
from jaxllm.interop.folders import CONFIG, INDEX, WEIGHTS, Folder
from jaxllm.interop.places import Place, layers_of, places, shapes_of
from jaxllm.interop.views import Weight
from jaxllm.models.config import ModelConfig
from jaxllm.models.model import Model
from jaxllm.ops.quantize import is_quantized
from jaxllm.parallel import rules

DTYPES = tuple(safetensors.CODES)  # that weights are written in
ALIGNMENT = 64  # bytes
CHUNK = 1 << 22  # numbers looked at together for NaN
SHARD_BYTES = 5_000_000_000  # of a file, as transformers has it

Tell = Callable[[int], None]  # is told how many bytes were done


def load(
    folder: Folder,
    family: str,
    model: Model,
    mesh: Any,
    tell: Tell = lambda done: None,
    say: Callable[[str], None] = lambda line: None,
    then: Callable[[str, jax.Array], Any] = lambda name, array: array,
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
      then: what is kept of each array, by name; made before the next is read. `quantized.quantize_leaf` makes a quantised base that never
        lay there whole.

    Raises:
      ValueError: see `places`; or a number that is NaN or infinite.
    """
    where, letters = places(folder, family, model.config, say), views.sizes(model.config)
    shapes = model.abstract()
    shardings = rules.shardings(model.axes(), mesh, shapes)
    leaves = {rules.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    lies = {rules.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shardings)}
    arrays: dict[str, Any] = {}
    for name, leaf in leaves.items():
        single = layers_of(name, model.config)
        read = partial(_read, folder, [where[each] for each in single], name != single[0], letters, leaf.dtype)
        shards = [
            jax.device_put(read(leaf.shape, index), device, may_alias=True)  # a CPU's device takes the memory itself
            for device, index in lies[name].addressable_devices_indices_map(leaf.shape).items()
        ]
        arrays[name] = jax.make_array_from_single_device_arrays(leaf.shape, lies[name], shards)
        arrays[name].block_until_ready()  # before the next is read
        tell(arrays[name].nbytes)
        arrays[name] = jax.block_until_ready(then(name, arrays[name]))
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[rules.path_name(path)], shapes)


def _read(folder: Folder, parts: list[Place], stacked: bool, letters: Mapping, dtype: Any, shape: tuple, index: tuple) -> np.ndarray:
    """One shard of one of our arrays: `index` of `shape`."""
    index = tuple(slice(*each.indices(size)) for each, size in zip(index, shape, strict=True))
    out = aligned([each.stop - each.start for each in index], dtype)
    layers = out if stacked else out[None]
    for into, place in zip(layers, parts[index[0]] if stacked else parts, strict=True):
        tensor = safetensors.mapped(folder.tensors[place.name])
        into[...] = views.view(tensor, place.weight, place.part, letters)[index[1:] if stacked else index]
        check_finite(into, f"{folder.tensors[place.name].file}: weight {place.name!r}")
    return out


def aligned(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Fresh memory that begins where XLA wants it to, so that a CPU's device need not copy it."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


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
      ValueError: the family cannot say what this model is, an unknown dtype, a quantised base, or a number that is not finite in it.
    """
    if dtype not in DTYPES:
        raise ValueError(f"Unknown dtype {dtype!r}. Choose one of: {', '.join(DTYPES)}.")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_quantized):
        if is_quantized(leaf):
            raise ValueError(
                f"{rules.path_name(path)} is quantised, and weights are written whole: give what `quantize.whole` makes of them."
            )
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # null, where transformers would put the family's own
    body = settings.write(family, config) | {"dtype": dtype, "torch_dtype": dtype} | ids | dict(more or {})
    (folder / CONFIG).write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    table, letters = names.table(family, shapes_of(config), config.num_layers), views.sizes(config)
    shapes = {name: views.shape(weight, letters) for name, weight in table.items()}
    files = shards(shapes, np.dtype(dtype).itemsize, shard_bytes)
    for file, tensors in files.items():
        made = _made({name: table[name] for name in tensors}, letters, Arrays(config, params), dtype, tell)
        safetensors.write(folder / file, {name: shapes[name] for name in tensors}, dtype, made)
    if len(files) > 1:
        size = sum(math.prod(shape) for shape in shapes.values()) * np.dtype(dtype).itemsize
        index = {"metadata": {"total_size": size}, "weight_map": {name: file for file, tensors in files.items() for name in tensors}}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def shards(shapes: Mapping[str, tuple[int, ...]], itemsize: int, shard_bytes: int) -> dict[str, list[str]]:
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
    """A model's parameters, or its adapters, by the names of single layers, as numpy arrays."""

    def __init__(self, config: ModelConfig, params: Any):
        self._places = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            name = rules.path_name(path)
            singles = layers_of(name, config)
            for repeat, single in enumerate(singles):
                self._places[single] = (leaf, None if single == name else repeat)

    def __contains__(self, name: str) -> bool:
        return name in self._places

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
