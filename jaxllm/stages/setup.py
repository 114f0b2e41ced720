"""What every stage needs, made from a config: processes, mesh, data, model, optimizer; each by its own room's maker."""

import ctypes
import dataclasses
import importlib.util
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxllm.parallel.mesh import AXES
from jaxllm.stages.config import model_fields

# The third turns off XLA's other library of products, YNN, which is asked first and is slower at these (docs/performance.md).
ONEDNN_FLAGS = "--xla_cpu_use_onednn=true --xla_cpu_experimental_onednn_custom_call=true --xla_cpu_experimental_ynn_fusion_type="
ACCELERATORS = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")  # packages that bring another backend
MMAP_THRESHOLD = -3  # glibc's number of the option M_MMAP_THRESHOLD (malloc.h)
ONEDNN_STEPS = 200  # from here on `onednn: auto` pays: the second switch keeps compiled programs out of the persistent cache
# jax 0.12 starts collectives that do not wait for one another side by side; with 16 threads for 8 devices some never got one.
FAKED_THREADS = "64"


def on_cpu() -> bool:
    """Whether JAX is going to run on the CPU; asked before it starts."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] == "cpu"
    return not any(importlib.util.find_spec(name) for name in ACCELERATORS)


def give_memory_back() -> None:
    """Has glibc map every large block by itself, so that a freed one goes back to the system; elsewhere, and where the user chose, nothing.

    By its default a freed block of up to 32 MiB raises the size from which blocks are mapped, and buffers of the compiled
    program then stay in the process's heap, which no longer shrinks (docs/performance.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt(MMAP_THRESHOLD, 128 * 1024)


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
    give_memory_back()
    flags = os.environ.get("XLA_FLAGS", "")
    wanted = config.onednn == "on" or (config.onednn == "auto" and trains and config.steps >= ONEDNN_STEPS)
    if wanted and "onednn" not in flags:
        flags = f"{ONEDNN_FLAGS} {flags}"
    if "device_count" in flags:  # faked devices wait for one another on few cores, and each collective that waits holds a thread
        os.environ.setdefault("NPROC", FAKED_THREADS)
        if "collective_call_terminate" not in flags:
            flags += " --xla_cpu_collective_call_terminate_timeout_seconds=600"
    os.environ["XLA_FLAGS"] = flags.strip()
    return "oneDNN" if "onednn" in flags else "no oneDNN"


def compiler_options(config: ConfigDict, mesh: Any) -> dict[str, str | int | bool]:
    """What the train step is compiled with on these devices (see `parallel.flags`).

    Raises:
      ValueError: an unknown value of `xla.flags`, options that the compiler does not know or that are known to corrupt results.
    """
    import jax

    from jaxllm.parallel import flags

    if config.xla.flags not in ("fast", "none"):
        raise ValueError(f"Unknown xla.flags={config.xla.flags!r}. Choose one of: fast, none.")
    devices, given = list(mesh.devices.flat), config.xla.options.to_dict()
    for name, value in given.items():
        if not isinstance(value, str | int | float):
            raise ValueError(f"xla.options.{name}={value!r} is not a word, a number, True or False. Give one, or leave the option out.")
    if given:
        nothing = jax.ShapeDtypeStruct((), "float32", sharding=jax.NamedSharding(mesh, jax.P()))
        try:
            jax.jit(lambda x: x, compiler_options=given).lower(nothing).compile()
        except jax.errors.JaxRuntimeError as error:
            raise ValueError(f"xla.options={given}: the compiler for {devices[0].device_kind} says: {error}") from None
    return flags.compiler_options(
        devices[0].device_kind,
        len({getattr(device, "slice_index", 0) for device in devices}),
        offload=config.remat == "offload",
        context=mesh.shape["context"],
        given=given,
        fast=config.xla.flags == "fast",
    )


def keep_compiled_programs() -> None:
    """Keeps compiled programs between runs, unless the user has said where or has said no."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and jax.config.jax_compilation_cache_dir is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
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
    from jaxllm.parallel import rules

    return "float32" if rules.platform() == "cpu" else "bfloat16"


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
    sizes = [field.name for field in dataclasses.fields(ModelConfig) if field.default is dataclasses.MISSING]
    given = {name: value for name, value in given.items() if not (name in sizes and value is None)}  # a size of None is not given
    if config.model.preset:
        base = preset(config.model.preset)
        shape = base.replace(**given) if given else base
    else:
        if "vocab_size" not in given and vocab_size is not None:
            given["vocab_size"] = vocab_size
        required = [name for name in sizes if name not in given]
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
    tokenizer = config.data.tokenizer
    if tokenizer is None and config.data.prepared:  # the folder's own
        return None
    if tokenizer is None or tokenizer.get("kind") == "bytes":
        from jaxllm.data.tokenizer_kinds import ByteTokenizer

        return ByteTokenizer.vocab_size
    return tokenizer.get("vocab_size")


def model(config: ConfigDict, vocab_size: int | None = None) -> Any:
    """The Model of a config (see `model_config`)."""
    from jaxllm.models.model import Model

    return Model(
        model_config(config, vocab_size or vocabulary(config)),
        dtype=compute_dtype(config),
        param_dtype=config.model.param_dtype,
        logits_dtype=config.model.logits_dtype,
        remat=config.remat,
        scan_layers=config.model.scan_layers,
        attention=config.model.attention,
        context=config.model.context,
        logprobs_chunk=config.model.logprobs_chunk or None,
    )


def unrolled(model: Any, params: Any) -> tuple[Any, Any]:
    """The model and its parameters as they decode fastest: on a CPU the layers stand one by one, as a scan would copy a layer's cache at
    every step to look at it."""
    import jax

    from jaxllm.parallel import rules

    if rules.platform() != "cpu" or not model.scan_layers:
        return model, params
    return dataclasses.replace(model, scan_layers=False), jax.jit(lambda tree: model.relayout(tree, False))(params)


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


def optimizer(config: ConfigDict, axes: Any, still: Sequence[str] = ()) -> Any:
    """The optimizer with its schedule, from `optimizer.*` and `schedule.*`; `still`: regexes of what the stage does not train."""
    from jaxllm.training.optimizers import make_optimizer
    from jaxllm.training.schedules import make_schedule
    from jaxllm.training.unfreezing import unfreezing

    section, shape = config.optimizer, config.schedule
    extra = {name: shape[name] for name in ("final", "decay") if shape[name] is not None}
    schedule = make_schedule(shape.name, section.learning_rate, steps=config.steps, warmup=shape.warmup, **extra)
    options = {name: section[name] for name in ("b1", "b2", "eps", "momentum") if section[name] is not None}
    if section.mu_dtype is not None:
        options["momentum_dtype"] = section.mu_dtype
    made = make_optimizer(
        section.name,
        schedule,
        axes=axes,
        weight_decay=section.weight_decay,
        decay=list(section.decay) or None,
        freeze=[*section.freeze, *still],
        **options,
        **section.options.to_dict(),
    )
    return unfreezing(made, section.unfreeze_every) if section.unfreeze_every else made
