"""Qwen 2.5 (arXiv 2412.15115) and the dense Qwen 3 (arXiv 2505.09388), base models."""

from typing import Any

from jaxllm.models.config import ModelConfig


def _qwen25(
    num_layers: int, width: int, num_heads: int, num_kv_heads: int, mlp_width: int, vocab_size: int = 152064, **more
) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        mlp_width=mlp_width,
        qkv_bias=True,
        rope_theta=1_000_000.0,
        **{"max_positions": 131072, "norm_epsilon": 1e-5, **more},
    )


def _qwen3(num_layers: int, width: int, num_heads: int, mlp_width: int, tied: bool) -> ModelConfig:
    return ModelConfig(
        vocab_size=151936,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        num_kv_heads=8,
        head_dim=128,
        mlp_width=mlp_width,
        max_positions=32768,
        norm_epsilon=1e-6,
        qk_norm="head",
        rope_theta=1_000_000.0,
        tied_embeddings=tied,
    )


_SMALL: dict[str, Any] = {"vocab_size": 151936, "tied_embeddings": True, "norm_epsilon": 1e-6}
QWEN25 = {
    "qwen2.5-0.5b": _qwen25(24, 896, 14, 2, 4864, max_positions=32768, **_SMALL),
    "qwen2.5-1.5b": _qwen25(28, 1536, 12, 2, 8960, **_SMALL),
    "qwen2.5-3b": _qwen25(36, 2048, 16, 2, 11008, max_positions=32768, **_SMALL),
    "qwen2.5-7b": _qwen25(28, 3584, 28, 4, 18944, norm_epsilon=1e-6),
    "qwen2.5-14b": _qwen25(48, 5120, 40, 8, 13824),
    "qwen2.5-32b": _qwen25(64, 5120, 40, 8, 27648),
    "qwen2.5-72b": _qwen25(80, 8192, 64, 8, 29568),
}
QWEN3 = {
    "qwen3-0.6b": _qwen3(28, 1024, 16, 3072, tied=True),
    "qwen3-1.7b": _qwen3(28, 2048, 16, 6144, tied=True),
    "qwen3-4b": _qwen3(36, 2560, 32, 9728, tied=True),
    "qwen3-8b": _qwen3(36, 4096, 32, 12288, tied=False),
    "qwen3-14b": _qwen3(40, 5120, 40, 17408, tied=False),
    "qwen3-32b": _qwen3(64, 5120, 64, 25600, tied=False),
}
