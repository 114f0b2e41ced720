"""Reading checkpoints: which are there, whether one is whole, and its arrays onto any mesh. Takes no lock and writes nothing."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from jaxllm.parallel import hosts
from jaxllm.training import manifest as manifests
from jaxllm.training.manifest import BrokenCheckpoint, Manifest
from jaxllm.training.trees import as_dict, check_same, from_dict, join_feed, names_and_shapes


class Restored(NamedTuple):
    """What comes back from a checkpoint."""

    state: Any
    feed_state: Any
    metadata: Mapping[str, Any]
    step: int


def open_folder(folder: str | os.PathLike[str]) -> epath.Path:
    """The folder as an absolute path, or as the gs:// address it is."""
    path = epath.Path(folder)
    return epath.Path(os.path.abspath(folder)) if manifests.is_local(path) else path


def steps(folder: str | os.PathLike[str]) -> list[int]:
    """The steps of which there is a folder, oldest first, whole or not."""
    path = open_folder(folder)
    return sorted(int(child.name) for child in path.iterdir() if child.name.isdigit()) if path.exists() else []


def whole(folder: str | os.PathLike[str], step: int) -> Manifest:
    """Reads every byte of a checkpoint and compares it with its manifest; several processes share the work and agree.

    Raises:
      BrokenCheckpoint: what is wrong with it.
      ValueError: another format version.
    """
    path, key = open_folder(folder) / str(step), hosts.fresh("whole")
    broken, manifest = None, None
    try:
        manifest = manifests.read(path)
        share = dict(list(manifest.files.items())[jax.process_index() :: jax.process_count()])
        broken = manifests.trouble(path, share)
    except BrokenCheckpoint as found:
        broken = str(found)
    verdicts = [verdict for verdict in hosts.collect(f"{key}/parts", broken) if verdict]
    broken = hosts.tell(f"{key}/verdict", verdicts[0] if verdicts else None)
    if broken or manifest is None:
        raise BrokenCheckpoint(broken or "could not be read by every process")
    return manifest


def newest_whole(
    folder: str | os.PathLike[str], candidates: Sequence[int] | None = None, say: Callable[[str], None] = hosts.say
) -> tuple[Manifest | None, list[int]]:
    """Finds the newest checkpoint of which every byte is as it was written; names those that are not, and passes them over.

    Args:
      folder: the checkpoints folder.
      candidates: the steps to look at; None: all that have a manifest (a save may be under way).
      say: where lines for the user go.

    Returns:
      Its manifest (None when there are no candidates), and the steps passed over.

    Raises:
      ValueError: there are candidates and none is whole, or one is of another format version.
    """
    if candidates is None:
        complete = [step for step in steps(folder) if (open_folder(folder) / str(step) / manifests.NAME).exists()]
        candidates = hosts.tell(hosts.fresh("candidates"), complete)
    broken: list[int] = []
    for step in sorted(candidates, reverse=True):
        try:
            return whole(folder, step), broken
        except BrokenCheckpoint as trouble:
            say(f"Checkpoint {step} {trouble}. It is passed over.")
            broken.append(step)
    if broken:
        raise ValueError(f"No whole checkpoint in {folder}: tried {broken}. Delete that folder to start from the beginning.")
    return None, broken


def load(folder: str | os.PathLike[str], manifest: Manifest, abstract: Any) -> Restored:
    """Loads state and feed of a checkpoint that `whole` found whole.

    Args:
      folder: the checkpoints folder.
      manifest: of the checkpoint to load.
      abstract: a tree like the saved state, of arrays or ShapeDtypeStructs with shardings: where the arrays shall lie.

    Raises:
      ValueError: the state is built otherwise than the saved one.
    """
    path = open_folder(folder) / str(manifest.step)
    wanted: dict[str, Any] = {"state": as_dict(jax.tree.map(_abstract, abstract))}
    arrays = {name: facts for name, facts in manifest.arrays.items() if name.startswith("feed/")}
    check_same({k: v for k, v in manifest.arrays.items() if k not in arrays}, names_and_shapes(wanted), f"Checkpoint {path}")
    if arrays:
        wanted["feed"] = {name.removeprefix("feed/"): np.empty(shape, dtype) for name, (shape, dtype) in arrays.items()}
    loaded = ocp.load(path, wanted)
    feed_state = join_feed(loaded.get("feed", {}), manifest.feed)
    return Restored(from_dict(abstract, loaded["state"]), feed_state, manifest.metadata, manifest.step)


def load_part(folder: str | os.PathLike[str], manifest: Manifest, abstract: Any, prefix: str = "state/params") -> Any:
    """Loads some arrays of a checkpoint, cast to the dtypes asked for: for `init_from`, evaluation and sampling.

    Args:
      folder: the checkpoints folder.
      manifest: of the checkpoint to load; its `arrays` say what there is.
      abstract: a tree of ShapeDtypeStructs with shardings; its names, below the prefix, must be in the checkpoint with these shapes.
      prefix: the part of the checkpoint that `abstract` is like.

    Raises:
      ValueError: an array is not there, or of another shape.
    """
    path = open_folder(folder) / str(manifest.step)
    wanted: Any = as_dict(jax.tree.map(_abstract, abstract))
    for name, (shape, _) in names_and_shapes(wanted).items():
        saved = manifest.arrays.get(f"{prefix}/{name}")
        if saved is None or list(saved[0]) != shape:
            raise ValueError(f"Checkpoint {path} has {saved and saved[0]} for {prefix}/{name} where {shape} is wanted.")
    for part in reversed(prefix.split("/")):
        wanted = {part: wanted}
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        loaded = ocp.load(path, wanted)
    for part in prefix.split("/"):
        loaded = loaded[part]
    return from_dict(abstract, loaded)


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
