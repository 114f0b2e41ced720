"""What every stage needs, made from a config: processes, mesh, data, model, optimizer; each by its own room's maker."""

import dataclasses
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxllm.parallel.mesh import AXES
from jaxllm.stages.config import model_fields

ONEDNN_FLAGS = "--xla_cpu_use_onednn=true --xla_cpu_experimental_onednn_custom_call=true"
ACCELERATORS = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")  # packages that bring another backend
ONEDNN_STEPS = 200  # from here on `onednn: auto` pays: the second switch keeps compiled programs out of the persistent cache


def on_cpu() -> bool:
    """Whether JAX is going to run on the CPU; asked before it starts."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] == "cpu"
    return not any(importlib.util.find_spec(name) for name in ACCELERATORS)


def backend_flags(config: ConfigDict, trains: bool = True) -> str:
    """Sets what must stand before JAX starts; returns a few words for the start-up line.

    Raises:
      ValueError: an unknown value of `onednn`.
    """
    if config.onednn not in ("auto", "on", "off"):
        raise ValueError(f"Unknown onednn={config.onednn!r}. Choose one of: auto, on, off.")
    if not on_cpu():
        return ""
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags = os.environ.get("XLA_FLAGS", "")
    wanted = config.onednn == "on" or (config.onednn == "auto" and trains and config.steps >= ONEDNN_STEPS)
    if wanted and "onednn" not in flags:
        flags = f"{ONEDNN_FLAGS} {flags}"
    if "device_count" in flags and "collective_call_terminate" not in flags:  # faked devices wait for one another on few cores
        flags += " --xla_cpu_collective_call_terminate_timeout_seconds=600"
    os.environ["XLA_FLAGS"] = flags.strip()
    return "oneDNN" if "onednn" in flags else "no oneDNN"


def keep_compiled_programs() -> None:
    """Keeps compiled programs between runs, unless the user has said where or has said no."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and jax.config.jax_compilation_cache_dir is None:
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(home / "jaxllm" / f"jax-{jax.__version__}"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # A program with oneDNN's calls cannot be kept; JAX would say so at length each time.
    warnings.filterwarnings("ignore", message="Error writing persistent compilation cache entry")


def mesh_sizes(config: ConfigDict) -> dict[str, int]:
    """The mesh axes of a config."""
    return {axis: config.parallel[axis] for axis in AXES}


def reading_mesh(config: ConfigDict) -> Any:
    """The mesh for stages that only read a run: its own where that fits the devices at hand, else all of them along `fsdp` (and said)."""
    from jaxllm.parallel import hosts
    from jaxllm.parallel.mesh import make_mesh

    try:
        return make_mesh(mesh_sizes(config))
    except ValueError as error:
        hosts.say(f"{error} All devices go to fsdp.")
        return make_mesh()


def compute_dtype(config: ConfigDict) -> str:
    """`model.dtype`, with auto resolved: bfloat16 where the hardware has it, float32 on a CPU."""
    if config.model.dtype != "auto":
        return config.model.dtype
    import jax

    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def model_config(config: ConfigDict, vocab_size: int | None = None) -> Any:
    """The ModelConfig: a preset with the fields beside it, or the fields alone.

    Args:
      config: the run's config.
      vocab_size: ids of the tokenizer; fills `model.vocab_size` where neither the config nor a preset says it.

    Raises:
      ValueError: an unknown preset or field, a field missing, or a tokenizer larger than the vocabulary.
    """
    from jaxllm.models.config import ModelConfig
    from jaxllm.models.presets import preset

    names = [name.removeprefix("model.") for name in model_fields()]
    given = {k: v.to_dict() if isinstance(v, ConfigDict) else v for k, v in config.model.items() if k in names}
    if config.model.preset:
        base = preset(config.model.preset)
        shape = base.replace(**given) if given else base
    else:
        if "vocab_size" not in given and vocab_size is not None:
            given["vocab_size"] = vocab_size
        required = [f.name for f in dataclasses.fields(ModelConfig) if f.default is dataclasses.MISSING and f.name not in given]
        if required:
            raise ValueError(
                f"The config names no model.preset, and model.{required[0]} is missing. Give a preset, `depth`, or every size."
            )
        shape = ModelConfig(**given)
    if vocab_size is not None and vocab_size > shape.vocab_size:
        raise ValueError(
            f"The tokenizer has {vocab_size} ids, the model only {shape.vocab_size}. Set model.vocab_size to at least {vocab_size},"
            " or take a smaller tokenizer."
        )
    return shape


def vocabulary(config: ConfigDict) -> int | None:
    """How many ids the tokenizer of a config will have, as far as the config says it."""
    kind = config.data.tokenizer.get("kind")
    if kind == "bytes":
        from jaxllm.data.tokenizers import ByteTokenizer

        return ByteTokenizer.vocab_size
    return config.data.tokenizer.get("vocab_size")


def model(config: ConfigDict, vocab_size: int | None = None) -> Any:
    """The Model of a config (see `model_config`)."""
    from jaxllm.models.model import Model

    return Model(
        model_config(config, vocab_size or vocabulary(config)),
        dtype=compute_dtype(config),
        param_dtype=config.model.param_dtype,
        remat=config.remat,
        scan_layers=config.model.scan_layers,
        attention=config.model.attention,
        context=config.model.context,
        logprobs_chunk=config.model.logprobs_chunk or None,
    )


def has_dropout(model: Any) -> bool:
    """Whether the forward of training draws random numbers."""
    shape = model.config
    return any((shape.residual_dropout, shape.attention_dropout, shape.embedding_dropout))


def forward(model: Any, params: Any, batch: Mapping[str, Any], *, kind: str = "causal", rng: Any = None) -> Any:
    """The hidden states [B, T, D] of a batch."""
    return model.apply(
        params,
        batch["tokens"],
        segments=batch["segments"],
        positions=batch["positions"],
        kind=kind,
        prefix=batch.get("prefix"),
        rng=rng,
        rows=batch["row"],
    )


def optimizer(config: ConfigDict, axes: Any) -> Any:
    """The optimizer with its schedule, from `optimizer.*` and `schedule.*`."""
    from jaxllm.training.optimizers import make_optimizer
    from jaxllm.training.schedules import make_schedule

    section, shape = config.optimizer, config.schedule
    extra = {name: shape[name] for name in ("final", "decay") if shape[name] is not None}
    schedule = make_schedule(shape.name, section.learning_rate, steps=config.steps, warmup=shape.warmup, **extra)
    options = {name: section[name] for name in ("b1", "b2", "eps", "momentum") if section[name] is not None}
    if section.mu_dtype is not None:
        options["momentum_dtype"] = section.mu_dtype
    return make_optimizer(
        section.name,
        schedule,
        axes=axes,
        weight_decay=section.weight_decay,
        decay=list(section.decay) or None,
        freeze=list(section.freeze),
        **options,
        **section.options.to_dict(),
    )


DATA_KEYS = ("train", "eval", "tokenizer", "prepared", "eval_fraction", "dedup", "filters", "max_bad_share", "workers", "stage_to", "cache")


def data_settings(config: ConfigDict) -> dict[str, Any]:
    """The part of a config that `prepare` reads, without what was left empty."""
    section = config.data.to_dict()
    wanted = {key: section[key] for key in DATA_KEYS if section[key] not in (None, [], {})}
    if wanted.get("prepared") and not wanted.get("train"):  # made elsewhere: its own record says how
        return {key: wanted[key] for key in ("prepared", "stage_to", "cache") if key in wanted}
    return wanted


def data(config: ConfigDict) -> Any:
    """The prepared token files of a config: opened where they are, made where they are not (and said)."""
    from jaxllm.parallel import hosts
    from jaxllm.stages.prepare import prepare

    return prepare(data_settings(config), say=hosts.say)


def placement(config: ConfigDict, mesh: Any) -> Callable[[Mapping[str, Any], Any], dict[str, Any]]:
    """A function from this process's rows to global arrays on the mesh; along T in the order that balances the context axis."""
    from jax.sharding import NamedSharding

    from jaxllm.ops.attention import zigzag_order
    from jaxllm.parallel import rules
    from jaxllm.parallel.rows import make_global

    order = zigzag_order(config.sequence_length, mesh.shape["context"])
    shardings = {n: NamedSharding(mesh, rules.spec(("batch", "sequence")[:n], rules.COMPUTE)) for n in (1, 2)}

    def place(rows: Mapping[str, Any], indices: Any) -> dict[str, Any]:
        permuted = {name: array[:, order] if array.ndim == 2 and mesh.shape["context"] > 1 else array for name, array in rows.items()}
        return {name: make_global(array, shardings[array.ndim], config.batch_size) for name, array in permuted.items()}

    return place


def own_rows(config: ConfigDict, mesh: Any) -> Any:
    """Which rows of the global batch this process reads."""
    from jax.sharding import NamedSharding

    from jaxllm.parallel import rules
    from jaxllm.parallel.rows import rows_needed

    return rows_needed(NamedSharding(mesh, rules.spec(("batch",), rules.COMPUTE)), config.batch_size)


def reader(config: ConfigDict, prepared: Any) -> Any:
    """The rows of the training split: a pure function of the step."""
    from jaxllm.data.pipeline import Reader
    from jaxllm.data.remote import is_remote

    streams = prepared.streams("train")
    return Reader(
        streams,
        sequence_length=config.sequence_length,
        batch_size=config.batch_size,
        seed=config.seed,
        weights=source_weights(config, list(streams)),
        threads=16 if is_remote(prepared.folder) else 1,
    )


def feed(config: ConfigDict, mesh: Any, rows: Any) -> Any:
    """The endless batches of a reader, on the mesh."""
    from jaxllm.data.pipeline import Feed

    return Feed(rows, placement(config, mesh), rows=own_rows(config, mesh), prefetch=config.data.prefetch)


def source_weights(config: ConfigDict, names: list[str]) -> dict[str, float] | None:
    """Source name -> weight, where the config gives any; None: each source in proportion to its size.

    Raises:
      ValueError: only some sources have a weight.
    """
    from jaxllm.data.sources import make_sources

    entries = [dict(entry) for entry in config.data.train]
    given = [entry for entry in entries if entry.get("weight") is not None]
    if not given:
        return None
    if len(given) < len(entries):
        bare = next(entry["path"] for entry in entries if entry.get("weight") is None)
        raise ValueError(f"data.train: {bare!r} has no weight and others have. Give every source a weight, or none.")
    weights = {source.name: float(entry["weight"]) for source, entry in zip(make_sources(entries, "data.train"), entries, strict=True)}
    return {name: weights[name] for name in names}


def eval_batches(config: ConfigDict, mesh: Any, stream: Any) -> Iterator[Any]:
    """The batches of a validation set, each window once."""
    from jaxllm.data.pipeline import EvalReader

    size = {"sequence_length": config.sequence_length, "batch_size": config.batch_size}
    reader = EvalReader(stream, **size, max_batches=config.eval.batches or None)
    place, rows = placement(config, mesh), own_rows(config, mesh)
    return (place(reader.rows(step, rows), rows) for step in range(reader.num_batches))
