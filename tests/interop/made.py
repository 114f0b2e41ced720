"""Folders as transformers writes them, made of the golden files and written by safetensors' own library."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from jaxllm.models.presets import preset
from tests.oracle import families
from tests.oracle.make_golden import FOLDERS, SEED

GOLDEN: dict[str, Any] = json.loads(FOLDERS.read_text())


def weights(name: str, dtype: Any = np.float32) -> families.Arrays:
    """The golden model's tensors by transformers' names."""
    drawn = families.random_weights(GOLDEN[name]["tensors"], preset(name), SEED)
    return {key: value.astype(dtype) for key, value in drawn.items()}


def folder(name: str, path: Path, *, tensors: families.Arrays | None = None, **config: Any) -> Path:
    """Writes a golden folder, with other tensors or other entries of config.json where they are given."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(GOLDEN[name]["config"] | config))
    save_file(weights(name) if tensors is None else tensors, path / "model.safetensors", {"format": "pt"})
    return path


def sharded(path: Path, parts: int = 3) -> Path:
    """Cuts the one file of a folder into several with an index, as transformers does with large models."""
    from safetensors.numpy import load_file

    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    places = {name: f"model-{i % parts + 1:05}-of-{parts:05}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == file}, path / file, {"format": "pt"})
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": places}))
    return path
