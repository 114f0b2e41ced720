"""What a config leaves to `init_from`: the model's shape and the tokenizer, of a work directory or a Hugging Face folder."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from jaxllm.data.tokenizers import make_tokenizer
from jaxllm.interop import folders, settings, tokenizer_files
from jaxllm.models.config import ModelConfig
from jaxllm.stages import setup, workdir
from jaxllm.stages.config import resolve
from jaxllm.stages.inputs import FILES

SHAPE = ("num_layers", "width", "num_heads", "mlp_width")  # a config with one of these says the model's shape itself


def complete(config: ConfigDict, folder: str | os.PathLike[str] | None = None) -> ConfigDict:
    """The config with what it leaves to `init_from` written out; as it is, if it leaves nothing.

    Args:
      config: resolved.
      folder: the run's work directory: what was taken when it began stands in its own record.

    Raises:
      ValueError: `init_from` is neither a work directory nor a Hugging Face folder.
    """
    if not config.init_from:
        return config
    resumed = folder is not None and (epath.Path(folder) / workdir.NAME).exists()
    source = str(folder) if resumed else config.init_from
    if not folders.is_one(source):
        workdir.read(source)  # says so if it is none
    config = config.copy_and_resolve_references()
    with config.unlocked():
        if config.model.preset is None and not any(name in config.model for name in SHAPE):
            for name, value in fields(shape(source)).items():
                if name not in config.model:
                    config.model[name] = value
        if config.data.tokenizer is None and not config.data.prepared and (spec := tokenizer(source)) is not None:
            config.data.tokenizer = ConfigDict(spec)
    return config.lock()


def shape(source: str) -> ModelConfig:
    """The ModelConfig of what a run starts from."""
    if folders.is_one(source):
        path = Path(source) / folders.CONFIG
        return settings.read(folders.read_json(path), str(path))[1]
    record = workdir.read(source)
    return setup.model_config(resolve(record["config"]), record.get("vocab_size"))


def fields(config: ModelConfig) -> dict[str, Any]:
    """A ModelConfig as the keys beside `model.preset` say it."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return values | {"rope_scaling": config.rope_scaling_dict, "layer_pattern": list(config.layer_pattern)}


def tokenizer(source: str) -> Mapping[str, str] | None:
    """What `data.tokenizer` has to be for the tokenizer of what a run starts from; None if there is none."""
    if folders.is_one(source):
        return tokenizer_files.spec(Path(os.path.abspath(source)))
    kind = workdir.own_tokenizer(source).kind
    return {"kind": kind} | ({"path": f"{source}/{workdir.TOKENIZER}/{FILES[kind]}"} if kind in FILES else {})


def keep(source: str, folder: str | os.PathLike[str], fingerprint: str) -> None:
    """Puts what a Hugging Face folder said of its model (family, chat template, generation settings) into a run that starts from it.

    Not where the run has another tokenizer: template and settings are about the tokens of the old one.

    Args:
      source: the run's `init_from`, which may be gone by the time it is resumed.
      folder: the run's work directory.
      fingerprint: of the run's tokenizer.
    """
    target = epath.Path(folder) / workdir.ORIGIN
    kept = epath.Path(source) if folders.is_one(source) else epath.Path(source) / workdir.ORIGIN
    if target.exists() or not kept.exists():
        return
    spec = tokenizer(source)
    if spec is not None and make_tokenizer(spec).fingerprint == fingerprint:
        tokenizer_files.keep(kept, target)
