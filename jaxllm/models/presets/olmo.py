"""OLMo 2 (arXiv 2501.00656): norms on what a part puts out, queries and keys normalised over the whole projection."""

from jaxllm.models.config import ModelConfig


def _olmo2(num_layers: int, width: int, num_heads: int, mlp_width: int, num_kv_heads: int | None = None) -> ModelConfig:
    return ModelConfig(
        vocab_size=100352,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        mlp_width=mlp_width,
        max_positions=4096,
        norm_epsilon=1e-6,
        norm_placement="output",
        qk_norm="projection",
        rope_theta=500_000.0,
    )


OLMO2 = {
    "olmo2-1b": _olmo2(16, 2048, 16, 8192),
    "olmo2-7b": _olmo2(32, 4096, 32, 11008),
    "olmo2-13b": _olmo2(40, 5120, 40, 13824),
    "olmo2-32b": _olmo2(64, 5120, 40, 27648, num_kv_heads=8),
}
