"""The run of instruction tuning that the benchmarks time: the stage's own rows, objective and update, on the weights of a folder."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxllm.data.example_rows import ExampleReader
from jaxllm.data.examples import Example, ExampleStore, write_examples
from jaxllm.interop import huggingface, places
from jaxllm.interop.folders import open_folder
from jaxllm.models.model import Model
from jaxllm.parallel.mesh import make_mesh
from jaxllm.stages import inputs, programs, setup, sft, tuning
from jaxllm.stages.config import resolve
from jaxllm.training import state as states
from jaxllm.training.step import Step, jit_step

TRAINER = {"name": "adamw", "learning_rate": 1e-5, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0}  # Hugging Face's defaults


class Tuning(NamedTuple):
    """Everything that one update needs; call it under `jax.set_mesh(mesh)`."""

    mesh: Any
    reader: ExampleReader
    feed: Any
    state: Any
    frozen: Any
    update: Step


def read_examples(path: Path) -> ExampleStore:
    """Lines {input_ids, prompt_len} as a store of examples whose prompts have no weight."""

    def one(row: Mapping[str, Any]) -> Example:
        trained = np.arange(len(row["input_ids"])) >= row["prompt_len"]
        trained[0] = False
        return Example(np.asarray(row["input_ids"], np.int32), trained.astype(np.float32), trained.astype(np.int16), ("user", "assistant"))

    rows = (one(json.loads(line)) for line in path.read_text().splitlines())
    return write_examples(Path(tempfile.mkdtemp()) / "examples", rows, vocab_size=32000, fingerprint="W2")


def start(weights: Path, examples: ExampleStore, settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> Tuning:
    """A run of `jaxllm sft` at its first step.

    Args:
      weights: a Hugging Face folder.
      examples: what is trained on.
      settings: keys of a config.
      overrides: others, dotted.
    """
    config = resolve({"optimizer": TRAINER, "schedule": {"name": "constant"}, **settings}, overrides)
    folder = open_folder(weights)
    family, shape = places.read_config(folder)
    how = {name: config.model[name] for name in ("param_dtype", "scan_layers", "attention")}
    model = Model(shape, dtype=setup.compute_dtype(config), remat=config.remat, logprobs_chunk=config.model.logprobs_chunk or None, **how)
    mesh, tuned = make_mesh(), tuning.make(config, model)
    optimizer = setup.optimizer(config, tuned.axes())
    with jax.set_mesh(mesh):
        params, frozen = huggingface.load(folder, family, model, mesh), {}
        if tuned.method is not None:
            frozen = {"base": tuned.stored(params)}
            params = jax.jit(lambda base: tuned.method.init(tuning.key(config), base))(frozen["base"])
        state = states.from_params(params, optimizer, mesh, tuned.axes(), **programs.state_options(config))
        step = programs.make_update(config, tuned, sft.RECIPE.objective(config, model), optimizer)
        update = jit_step(step, state, setup.compiler_options(config, mesh))
    sizes = {"sequence_length": config.sequence_length, "batch_size": config.batch_size}
    reader = ExampleReader({"w2": examples}, **sizes, seed=config.seed, mode=config.data.packing)
    return Tuning(mesh, reader, inputs.feed(config, mesh, reader), state, frozen, update)
