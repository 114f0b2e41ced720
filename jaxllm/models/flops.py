"""How many operations a model needs, counted from its config: the matrix products, 2 FLOPs for a multiplication and an addition."""

from jaxllm.models.config import ModelConfig


def matmul_params(config: ModelConfig) -> int:
    """Parameters that every token is multiplied with: all matrices but the embedding look-ups, and the head, tied or not."""
    D, N, K, H, F = config.width, config.num_heads, config.num_kv_heads, config.head_dim, config.mlp_width
    assert K is not None and H is not None
    attention = D * H * (N + 2 * K) + N * H * D
    mlp = (3 if config.gated_mlp else 2) * D * F
    return config.num_layers * (attention + mlp) + D * config.vocab_size


def visible_pairs(sequence_length: int, window: int | None) -> int:
    """How many (query, key) pairs a causal sequence of T tokens has: sum over t of min(t + 1, window)."""
    T = sequence_length
    w = T if window is None else min(window, T)
    return w * (w + 1) // 2 + (T - w) * w


def forward_flops(config: ModelConfig, sequence_length: int, *, causal: bool = True) -> float:
    """FLOPs of one forward pass, per token.

    Args:
      config: the model.
      sequence_length: T; one document per sequence.
      causal: count only the pairs that see each other (what the model needs); otherwise all T * T (what a plain XLA product does).
    """
    T, pairs = sequence_length, 0
    for layer in range(config.num_layers):
        window = config.window if config.layer_kind(layer) == "local" else None
        pairs += visible_pairs(T, window) if causal else T * T
    assert config.head_dim is not None
    return 2.0 * matmul_params(config) + 4.0 * config.num_heads * config.head_dim * pairs / T  # q.k and probabilities.v, 2 each


def training_flops(config: ModelConfig, sequence_length: int, *, causal: bool = True) -> float:
    """FLOPs of a forward and backward pass, per token: three times the forward (arXiv 2204.02311, appendix B), no remat counted."""
    return 3.0 * forward_flops(config, sequence_length, causal=causal)
