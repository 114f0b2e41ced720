"""A Hugging Face model folder, looked at before it is read: its config.json, and which tensor lies in which of its files."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from jaxllm.interop import safetensors
from jaxllm.interop.safetensors import Tensor

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MAX_JSON = 64 << 20  # bytes of a config or an index
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth", "model.ckpt", "model.pt")
AS_SAFETENSORS = "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW) of transformers writes model.safetensors"


class Folder(NamedTuple):
    """What is in a folder: config.json as it stands, and name -> where that tensor lies."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.size for tensor in self.tensors.values())


def is_one(folder: str | os.PathLike[str]) -> bool:
    """Whether this folder's config.json is that of a Hugging Face model (a jaxllm work directory has one too, of another kind)."""
    try:
        config = read_json(Path(folder) / CONFIG)
    except (OSError, ValueError):
        return False
    return "model_type" in config and not {"stage", "config"} <= config.keys()


def read_json(path: Any) -> dict[str, Any]:
    """A JSON object from a file of others, here or remote.

    Raises:
      ValueError: it is too large, no JSON object, or holds a key twice.
    """
    with path.open("rb") as file:
        text = file.read(MAX_JSON + 1)
    if len(text) > MAX_JSON:
        raise ValueError(f"{path} has more than {MAX_JSON:,} bytes, which no such file needs. {safetensors.DAMAGED}")
    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=safetensors.unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({str(error)[:200]}). {safetensors.DAMAGED}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not a table. {safetensors.DAMAGED}")
    return found


def open_folder(folder: str | os.PathLike[str]) -> Folder:
    """Reads config.json and the headers of all weight files; no weight is read yet.

    Raises:
      ValueError: no such folder, no config.json, no safetensors (pickles are never opened), or what `files_of` and
        `safetensors.read_header` refuse.
    """
    path = Path(folder)
    if "://" in os.fspath(folder):
        raise ValueError(f"{folder} is not on this machine. Copy it to a disk first (gcloud storage cp -r, aws s3 cp --recursive).")
    if not (path / CONFIG).is_file():
        raise ValueError(
            f"{folder} is not a Hugging Face folder: it has no {CONFIG}. Give the folder itself, not a file in it or above it."
        )
    config = read_json(path / CONFIG)
    tensors: dict[str, Tensor] = {}
    for file, listed in files_of(path).items():
        found = safetensors.read_header(file)
        _check_listed(file, set(found), listed)
        tensors |= found
    return Folder(path, config, tensors)


def _check_listed(file: Path, found: set[str], listed: set[str] | None) -> None:
    """Refuses a file that does not hold exactly what the index says."""
    wrong = sorted(found ^ listed) if listed is not None else []
    if wrong:
        what = "is in it and not in the index" if wrong[0] in found else "is in the index and not in it"
        raise ValueError(f"{file}: tensor {wrong[0]!r} {what} ({len(wrong)} such). Fetch the folder again: its files are of two models.")


def files_of(path: Path) -> dict[Path, set[str] | None]:
    """The weight files of a folder, each with the names the index puts there (None: there is no index).

    Raises:
      ValueError: no safetensors, both kinds of them, a file that is missing, or one that the index seeks outside the folder.
    """
    index, single = path / INDEX, path / WEIGHTS
    if index.is_file() and single.is_file():
        raise ValueError(f"{path} has {WEIGHTS} and {INDEX}: which are the weights? Remove one of them.")
    if not index.is_file() and not single.is_file():
        pickle = next((name for name in PICKLES if (path / name).is_file()), None)
        why = f" It has {pickle}, a pickle, which can run any code and is never opened." if pickle else ""
        raise ValueError(f"{path} has neither {WEIGHTS} nor {INDEX}.{why} {AS_SAFETENSORS}.")
    if not index.is_file():
        return {inside(path, WEIGHTS): None}
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index} has no weight_map from tensors to files. {safetensors.DAMAGED}")
    files: dict[Path, set[str] | None] = {inside(path, name): set() for name in sorted(set(places.values()))}
    for tensor, name in places.items():
        listed = files[path / name]
        assert listed is not None
        listed.add(tensor)
    return files


def inside(folder: Path, name: str) -> Path:
    """The file of this name, if it is a file of this very folder.

    A link may lead to the blobs of the Hugging Face cache that the folder is part of, and nowhere else.

    Raises:
      ValueError: the name or a link leads out of the folder, or there is no such file.
    """
    path = folder / name
    if name != os.path.basename(name) or name in ("", ".", "..") or "\\" in name or "\0" in name:
        raise ValueError(
            f"{folder}: its index names the file {name!r}, which is not a plain name of a file in that folder. {safetensors.DAMAGED}"
        )
    if not path.exists():
        raise ValueError(f"{folder} lacks its file {name}. Fetch it again: the copy was not finished.")
    real, home = path.resolve(), folder.resolve()
    if real.parent not in (home, home.parent.parent / "blobs"):
        raise ValueError(f"{path} is a link that leads out of its folder, to {real}. Copy the file itself into the folder.")
    if not real.is_file():
        raise ValueError(f"{path} is not a file. Fetch the folder again.")
    return path
