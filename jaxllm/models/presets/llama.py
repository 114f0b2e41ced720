"""Llama 2, 3, 3.1 and 3.2 (arXiv 2307.09288, 2407.21783), and what is built like them: Mistral 7B, Phi-3-mini and SmolLM2.

Mistral 7B: arXiv 2310.06825. Phi-3: arXiv 2404.14219. SmolLM2: arXiv 2502.02737.
"""

from typing import Any

from jaxllm.models.config import ModelConfig


def _llama2(num_layers: int, width: int, num_heads: int, mlp_width: int, num_kv_heads: int | None = None) -> ModelConfig:
    return ModelConfig(
        vocab_size=32000,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        mlp_width=mlp_width,
        max_positions=4096,
    )


def _llama3(num_layers: int, width: int, num_heads: int, mlp_width: int, **more: Any) -> ModelConfig:
    return ModelConfig(
        vocab_size=128256,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        num_kv_heads=8,
        mlp_width=mlp_width,
        rope_theta=500_000.0,
        **{"max_positions": 8192, **more},
    )


def _long(factor: float) -> dict[str, Any]:
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return {"max_positions": 131072, "rope_scaling": scaling}


LLAMA = {
    "llama2-7b": _llama2(32, 4096, 32, 11008),
    "llama2-13b": _llama2(40, 5120, 40, 13824),
    "llama2-70b": _llama2(80, 8192, 64, 28672, num_kv_heads=8),
    "llama3-8b": _llama3(32, 4096, 32, 14336),
    "llama3-70b": _llama3(80, 8192, 64, 28672),
    "llama3.1-8b": _llama3(32, 4096, 32, 14336, **_long(8.0)),
    "llama3.1-70b": _llama3(80, 8192, 64, 28672, **_long(8.0)),
    "llama3.1-405b": _llama3(126, 16384, 128, 53248, **_long(8.0)),
    "llama3.2-1b": _llama3(16, 2048, 32, 8192, tied_embeddings=True, **_long(32.0)),
    "llama3.2-3b": _llama3(28, 3072, 24, 8192, tied_embeddings=True, **_long(32.0)),
}

_MISTRAL = _llama3(32, 4096, 32, 14336, max_positions=32768).replace(vocab_size=32000, rope_theta=10_000.0)
MISTRAL = {
    "mistral-7b": _MISTRAL.replace(layer_pattern=("local",), window=4096),  # v0.1, the one of the paper
    "mistral-7b-v0.3": _MISTRAL.replace(vocab_size=32768, rope_theta=1_000_000.0),
}

PHI = {"phi3-mini": _llama2(32, 3072, 32, 8192).replace(vocab_size=32064, layer_pattern=("local",), window=2047)}  # the 4k model

_SMOL = _llama2(30, 576, 9, 1536, num_kv_heads=3).replace(vocab_size=49152, max_positions=8192, rope_theta=100_000.0, tied_embeddings=True)
SMOLLM = {
    "smollm2-135m": _SMOL,
    "smollm2-360m": _SMOL.replace(num_layers=32, width=960, num_heads=15, num_kv_heads=5, mlp_width=2560),
    "smollm2-1.7b": _SMOL.replace(num_layers=24, width=2048, num_heads=32, num_kv_heads=32, mlp_width=8192, rope_theta=130_000.0),
}
