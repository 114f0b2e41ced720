"""Parts of a config.json that several families share: activations, switches, which layers see a window, the scale of attention."""

from collections.abc import Callable
from typing import Any

from jaxllm.interop.given import Given, Part
from jaxllm.models.config import ModelConfig

ACTIVATIONS = {  # theirs -> ours
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


def activation(key: str, default: str) -> Part:
    def read(given: Given) -> dict[str, Any]:
        theirs = given.get(key, default) or default
        if theirs not in ACTIVATIONS:
            raise given.refusal(key, theirs, f"jaxllm computes: {', '.join(ACTIVATIONS)}")
        return {"activation": ACTIVATIONS[theirs]}

    def write(config: ModelConfig) -> dict[str, Any]:
        names = [theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation]
        return {key: default if default in names else names[0]}

    return Part(read, write)


def switch(key: str, default: bool, *fields: str) -> Part:
    """One of their switches for several of our fields."""

    def read(given: Given) -> dict[str, Any]:
        return dict.fromkeys(fields, bool(given.get(key, default)))

    return Part(read, lambda config: {key: bool(getattr(config, fields[0]))})


def shortest(kinds: list[str]) -> tuple[str, ...]:
    """The shortest pattern that these kinds of layers repeat."""
    repeats = (size for size in range(1, len(kinds) + 1) if all(kind == kinds[i % size] for i, kind in enumerate(kinds)))
    return tuple(kinds[: next(repeats)])


def window(default: int | None) -> Part:
    """`sliding_window` for all layers; null: none."""

    def read(given: Given) -> dict[str, Any]:
        window = given.get("sliding_window", default)
        return {} if window is None else {"layer_pattern": ("local",), "window": window}

    return Part(read, lambda config: {"sliding_window": config.window})


KINDS = {"full_attention": "global", "sliding_attention": "local"}
THEIRS = {ours: theirs for theirs, ours in KINDS.items()}


def _layers(given: Given, window: int | None, default: Callable[[int], str]) -> dict[str, Any]:
    """`layer_types`, or where it is left out what `default` says of each layer."""
    num_layers = given.get("num_hidden_layers")
    types = given.get("layer_types", None) or [THEIRS[default(layer)] for layer in range(num_layers)]
    unknown = [kind for kind in types if kind not in KINDS]
    if unknown or len(types) != num_layers:
        raise given.refusal(
            "layer_types", unknown[0] if unknown else types, f"each of the {num_layers} layers is one of: {', '.join(KINDS)}"
        )
    pattern = shortest([KINDS[kind] for kind in types])
    if "local" in pattern and window is None:
        raise given.refusal("sliding_window", None, "layer_types has layers of sliding_attention, which need its size")
    return {"layer_pattern": pattern, "window": window if "local" in pattern else None}


def _types(config: ModelConfig) -> list[str]:
    return [THEIRS[config.layer_kind(layer)] for layer in range(config.num_layers)]


def _read_qwen_layers(given: Given) -> dict[str, Any]:
    window, first = given.get("sliding_window", 4096), given.get("max_window_layers", 28)
    window = window if given.get("use_sliding_window", False) else None
    return _layers(given, window, lambda layer: "local" if window is not None and layer >= first else "global")


def _write_qwen_layers(config: ModelConfig) -> dict[str, Any]:
    kinds = _types(config)
    first = kinds.index(THEIRS["local"]) if THEIRS["local"] in kinds else config.num_layers
    used = config.window is not None
    return {"use_sliding_window": used, "sliding_window": config.window, "max_window_layers": first, "layer_types": kinds}


def every(period: Callable[[Given], int]) -> Part:
    """Layers of which every `period`-th sees everything, unless `layer_types` says otherwise."""

    def read(given: Given) -> dict[str, Any]:
        every = period(given)
        return _layers(given, given.get("sliding_window", 4096), lambda layer: "global" if (layer + 1) % every == 0 else "local")

    return Part(read, lambda config: {"sliding_window": config.window, "layer_types": _types(config)})


def gemma3_period(given: Given) -> int:
    return given.get("sliding_window_pattern", None) or given.get("_sliding_window_pattern", 6)


def _read_scale(given: Given) -> dict[str, Any]:
    return {"attention_scale": given.get("query_pre_attn_scalar", 256) ** -0.5}


SCALE = Part(_read_scale, lambda config: {"query_pre_attn_scalar": round((config.attention_scale or config.head_size**-0.5) ** -2)})
QWEN_LAYERS = Part(_read_qwen_layers, _write_qwen_layers)
