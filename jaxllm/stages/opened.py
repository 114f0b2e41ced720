"""Weights that are there already: a run's own, those it starts from, and the frozen base under its adapters."""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from jaxllm.data.tokenizer_kinds import Tokenizer
from jaxllm.data.tokenizers import make_tokenizer
from jaxllm.interop import folders, huggingface, peft_folders, places, settings, tokenizer_files
from jaxllm.models import heads
from jaxllm.models.adapted import Adapted
from jaxllm.parallel import hosts, rules
from jaxllm.stages import recipes, setup, tuning, workdir
from jaxllm.stages.config import resolve
from jaxllm.stages.init_from import Source, fill
from jaxllm.stages.keys import TRAINS
from jaxllm.stages.recipe import Beside
from jaxllm.training import loading, manifest

EDGE = 1 << 20  # bytes at either end of a file of weights that its identity looks at


def open_model(folder: str, mesh: Any, step: int | None = None, config: ConfigDict | None = None) -> tuple[Any, Any, int]:
    """The trained model of a work directory: its Model, its parameters (the moving average if it kept one), its step.

    Args:
      folder: the work directory.
      mesh: where the parameters shall lie.
      step: which checkpoint; None: the newest whole one.
      config: the run's own with some keys changed, another dtype or kernel say; None: the run's own.

    Raises:
      ValueError: not a work directory, or no whole checkpoint in it.
    """
    record = workdir.read(folder)
    config = config or resolve(record["config"])
    place = epath.Path(folder) / "checkpoints"
    found = newest_whole(place, step)
    model = setup.model(config, record.get("vocab_size"))
    averaged = any(name.startswith("state/ema/") for name in found.arrays)
    dtype = "float32" if averaged else model.param_dtype  # the average's own, as training scores it
    model = dataclasses.replace(model, scan_layers=found.metadata["scan_layers"], param_dtype=dtype)
    tuned = tuning.make(config, model, beside=beside(record, config, model))
    trained = loading.load_part(place, found, tuned.abstract(config, mesh), "state/ema" if averaged else "state/params")
    if tuned.method is None:
        return model, trained, found.step
    if found.metadata["base"] != source(config, tuned)["base"]:
        raise ValueError(
            f"{folder} holds {config.peft.name} adapters of {config.init_from}, whose weights are others by now. Bring the old ones back."
        )
    return model, tuned.whole(trained, frozen(config, mesh, tuned, record["tokenizer"])), found.step


def beside(record: Mapping[str, Any], config: ConfigDict, model: Any) -> Beside:
    """What the stage of a run's record has beside its model: a head, say. A run that is opened needs no reference."""
    if record["stage"] not in TRAINS:
        return Beside()
    return recipes.recipe_of(config, record["stage"]).beside(config, model)._replace(reference=False)


def open_tokenizer(folder: str, task: str | None = None) -> Tokenizer:
    """The tokenizer of a run; where the run tuned soft prompts, it opens every text with one.

    Args:
      folder: the work directory.
      task: whose soft prompt, where there are several: the name of a source.

    Raises:
      ValueError: there are several and none is named, or another; see `workdir.own_tokenizer`.
    """
    tokenizer, record = workdir.own_tokenizer(folder), workdir.read(folder)
    config = resolve(record["config"])
    soft = tuning.make(config, setup.model(config, record.get("vocab_size"))).soft() if config.peft.name or config.peft.init_from else None
    if soft is not None:
        names = record["tasks"]
        if (task is None and soft.num_tasks > 1) or (task is not None and task not in names):
            asked = "Which soft prompt?" if task is None else f"Unknown peft.task={task!r}."
            raise ValueError(f"{asked} {folder} has one for each of: {', '.join(names)}. Set peft.task to one of them.")
        tokenizer.opening = tuple(soft.ids(names.index(task) if task else 0).tolist())
    return tokenizer


def newest_whole(folder: Any, step: int | None) -> Any:
    """The manifest of the newest whole checkpoint, or of the one asked for; broken ones are named and passed over. Writes nothing.

    Raises:
      ValueError: there is none.
    """
    there = loading.steps(folder)
    if step is not None and there and step not in there:
        raise ValueError(f"There is no checkpoint of step {step} in {folder}. There are: {', '.join(map(str, there))}.")
    found, _ = loading.newest_whole(folder, None if step is None else [step])
    if found is None:
        known = f"There are: {', '.join(map(str, there))}." if there else "There are none yet."
        raise ValueError(f"No whole checkpoint{'' if step is None else f' of step {step}'} in {folder}. {known}")
    return found


def open_source(source: str, mesh: Any, model: Any) -> Source:
    """What a run starts from; adapters are merged into their base.

    Args:
      source: a work directory, or a Hugging Face folder.
      mesh: where the parameters shall lie.
      model: the run's own; a Hugging Face folder must be of the same model, its vocabulary aside, and is read into the run's dtype.

    Raises:
      ValueError: see `open_model`, `folders.open_folder`, `huggingface.load`; or a Hugging Face folder of another model.
    """
    if not folders.is_one(source):
        there, params, step = open_model(source, mesh)
        record = workdir.read(source)
        if isinstance(params, Adapted):
            method = tuning.make(resolve(record["config"]), there).method
            with jax.set_mesh(mesh):
                params = jax.jit(method.merge)(*params)
        params = {name: tree for name, tree in params.items() if name != heads.NAME}
        return Source(there, params, f"{source}, step {step}", record.get("tokenizer"))
    folder = folders.open_folder(source)
    family, shape = places.read_config(folder)
    check_same(model.config, shape, source)
    there = dataclasses.replace(model, config=shape)
    spec = tokenizer_files.spec(folder.path)
    fingerprint = None if spec is None else make_tokenizer(spec).fingerprint
    return Source(there, huggingface.load(folder, family, there, mesh, say=hosts.say), f"{source} ({family})", fingerprint)


def check_same(mine: Any, theirs: Any, source: str, key: str = "init_from") -> None:
    """Refuses to fill a model with the weights of one that computes otherwise; vocabulary and greatest length may differ.

    Raises:
      ValueError: names the fields, with both values.
    """
    free = ("vocab_size",) if mine.positions == "learned" else ("vocab_size", "max_positions")
    differ = [name for name in settings.differences(mine, theirs) if name not in free]
    if differ:
        shown = "; ".join(f"model.{name} is {getattr(mine, name)!r} here, {getattr(theirs, name)!r} there" for name in differ)
        raise ValueError(
            f"{key}: {source} is another model: {shown}. Set these as they are there, or give no model at all"
            " (--config.model.preset=none) to take its shape."
        )


def initial_weights(config: ConfigDict, mesh: Any, model: Any, tokenizer: str) -> Any:
    """Fresh parameters, filled from `init_from`; see `init_from.fill`.

    Raises:
      ValueError: see `open_source` and `init_from.fill`.
    """
    return fill(config, mesh, model, open_source(config.init_from, mesh, model), tokenizer)


def source(config: ConfigDict, tuned: tuning.Tuned) -> dict[str, str]:
    """What a checkpoint says of the base that its adapters belong to, or of the reference that it was compared with."""
    if tuned.method is None and not tuned.beside.reference:
        return {}
    name = "reference" if tuned.method is None else "base"
    return {name: identity(config.init_from) if config.init_from else f"drawn from seed {config.seed}"}


def identity(folder: str, step: int | None = None) -> str:
    """What tells the weights of a source from those of another, wherever they lie: checksums of a checkpoint, or of the ends of files."""
    if not folders.is_one(folder):
        place = epath.Path(folder) / "checkpoints"
        found = newest_whole(place, None) if step is None else manifest.read(place / str(step))
        return _digest([sorted(found.files.items()), found.metadata.get("base")])
    parts = []
    for path in sorted(Path(folder).glob("*.safetensors")):
        with open(path, "rb") as file:
            first, size = file.read(EDGE), path.stat().st_size
            file.seek(max(size - EDGE, 0))
            parts.append((path.name, size, zlib.crc32(first), zlib.crc32(file.read(EDGE))))
    return _digest(parts)


def _digest(parts: Any) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def frozen(config: ConfigDict, mesh: Any, tuned: tuning.Tuned, tokenizer: str | None) -> dict[str, Any]:
    """What the step reads and never trains: the base under adapters, or the reference, from `init_from` or drawn.

    Args:
      config: of the run.
      mesh: where it shall lie.
      tuned: what is trained.
      tokenizer: the fingerprint of the run's; None: the base is drawn, whatever `init_from` says.
    """
    if tuned.method is None and not tuned.beside.reference:
        return {}
    model = tuned.model
    if config.init_from and tokenizer is not None:
        base = initial_weights(config, mesh, model, tokenizer)
    else:
        base = drawn(config, mesh, model)
    if tuned.method is None:
        return {"reference": base}
    with jax.set_mesh(mesh):
        return {"base": tuned.stored(base)}


def drawn(config: ConfigDict, mesh: Any, model: Any) -> Any:
    """A model's parameters from the seed of a run."""
    places = rules.shardings(model.axes(), mesh, model.abstract())
    with jax.set_mesh(mesh):
        return jax.jit(lambda: model.init(jax.random.key(config.seed)), out_shardings=places)()


def start(config: ConfigDict, mesh: Any, tuned: tuning.Tuned, still: Any, tokenizer: str) -> Any | None:
    """What is trained, at step 0, where it does not begin from nothing."""
    if tuned.method is None:
        if not config.init_from and tuned.beside.begins is None:
            return None
        own = initial_weights(config, mesh, tuned.model, tokenizer) if config.init_from else drawn(config, mesh, tuned.model)
    elif config.peft.init_from:
        base = (config.init_from, identity(config.init_from)) if config.init_from else (None, None)
        own = peft_folders.place(tuning.of_folder(config.peft.init_from, tuned.model, *base), mesh)
    else:
        with jax.set_mesh(mesh):
            own = jax.jit(lambda base: tuned.method.init(tuning.key(config), base))(still["base"])
    with jax.set_mesh(mesh):
        whole = tuned.with_head(config, own)
    if tuned.beside.head is not None and (head := head_of(config.init_from, mesh)) is not None:
        shapes = [jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (head, whole[heads.NAME])]
        if shapes[0] == shapes[1]:
            hosts.say(f"The head, too, is that of {config.init_from}.")
            whole = {**whole, heads.NAME: head}
    if tuned.beside.begins is not None:
        whole = {**whole, heads.NAME: tuned.beside.begins(mesh, tokenizer, whole[heads.NAME])}
    return whole


def head_of(source: str | None, mesh: Any) -> Any | None:
    """The head of a run that has one; None: it has none."""
    if not source or folders.is_one(source) or workdir.read(source)["stage"] not in TRAINS:
        return None
    params = open_model(source, mesh)[1]
    base = params.base if isinstance(params, Adapted) else params
    return base.get(heads.NAME)
