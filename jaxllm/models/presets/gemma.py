"""Gemma 2 (arXiv 2408.00118) and the text side of Gemma 3 (arXiv 2503.19786)."""

from typing import Any

from jaxllm.models.config import ModelConfig

_SHARED: dict[str, Any] = {
    "norm_epsilon": 1e-6,
    "norm_plus_one": True,
    "norm_placement": "sandwich",
    "activation": "gelu_tanh",
    "tied_embeddings": True,
    "scale_embeddings": True,
}


def _gemma2(
    num_layers: int, width: int, num_heads: int, num_kv_heads: int, mlp_width: int, head_dim: int = 256, scalar: int = 256
) -> ModelConfig:
    return ModelConfig(
        vocab_size=256000,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        mlp_width=mlp_width,
        max_positions=8192,
        layer_pattern=("local", "global"),
        window=4096,
        attention_scale=scalar**-0.5,
        attention_softcap=50.0,
        logit_softcap=30.0,
        **_SHARED,
    )


def _gemma3(num_layers: int, width: int, num_heads: int, num_kv_heads: int, mlp_width: int, **more: Any) -> ModelConfig:
    return ModelConfig(
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        mlp_width=mlp_width,
        layer_pattern=("local",) * 5 + ("global",),
        qk_norm="head",
        rope_theta=1_000_000.0,
        local_rope_theta=10_000.0,
        **_SHARED,
        **{"head_dim": 256, "attention_scale": 256**-0.5, **more},
    )


_TEXT: dict[str, Any] = {"vocab_size": 262144, "max_positions": 32768, "window": 512}
_LARGE: dict[str, Any] = {
    "vocab_size": 262208,
    "max_positions": 131072,
    "window": 1024,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}

GEMMA2 = {
    "gemma2-2b": _gemma2(26, 2304, 8, 4, 9216),
    "gemma2-9b": _gemma2(42, 3584, 16, 8, 14336),
    "gemma2-27b": _gemma2(46, 4608, 32, 16, 36864, head_dim=128, scalar=144),
}
GEMMA3 = {
    "gemma3-270m": _gemma3(18, 640, 4, 1, 2048, **_TEXT),
    "gemma3-1b": _gemma3(26, 1152, 4, 1, 6912, **_TEXT),
    "gemma3-4b": _gemma3(34, 2560, 8, 4, 10240, **_LARGE),
    "gemma3-12b": _gemma3(48, 3840, 16, 8, 15360, **_LARGE),
    "gemma3-27b": _gemma3(62, 5376, 32, 16, 21504, head_dim=128, attention_scale=168**-0.5, **_LARGE),
}
