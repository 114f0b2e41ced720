"""GPT-2 (Radford et al. 2019) and Pythia (arXiv 2304.01373): LayerNorm, plain MLPs with biases. Dropout stays 0: that is a run's choice."""

from jaxllm.models.config import ModelConfig


def _gpt2(num_layers: int, width: int, num_heads: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=50257,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        mlp_width=4 * width,
        max_positions=1024,
        norm="layernorm",
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        positions="learned",
        activation="gelu_tanh",
        gated_mlp=False,
        tied_embeddings=True,
    )


def _pythia(num_layers: int, width: int, num_heads: int, vocab_size: int = 50304) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        mlp_width=4 * width,
        max_positions=2048,
        norm="layernorm",
        block="parallel",
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        rope_fraction=0.25,
        activation="gelu",
        gated_mlp=False,
    )


GPT2 = {
    "gpt2": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1024, 16),
    "gpt2-large": _gpt2(36, 1280, 20),
    "gpt2-xl": _gpt2(48, 1600, 25),
}
PYTHIA = {
    "pythia-14m": _pythia(6, 128, 4),
    "pythia-31m": _pythia(6, 256, 8),
    "pythia-70m": _pythia(6, 512, 8),
    "pythia-160m": _pythia(12, 768, 12),
    "pythia-410m": _pythia(24, 1024, 16),
    "pythia-1b": _pythia(16, 2048, 8),
    "pythia-1.4b": _pythia(24, 2048, 16),
    "pythia-2.8b": _pythia(32, 2560, 32),
    "pythia-6.9b": _pythia(32, 4096, 32, 50432),
    "pythia-12b": _pythia(36, 5120, 40, 50688),
}
