"""How many parameters a model has and how many operations it needs, counted from its config alone, without JAX."""

from jaxllm.models.config import ModelConfig


def _layer_matrices(config: ModelConfig) -> int:
    D, H = config.width, config.head_size
    attention = 2 * D * H * (config.num_heads + config.num_groups)  # q and o, k and v
    return attention + (3 if config.gated_mlp else 2) * D * config.mlp_width


def _layer_vectors(config: ModelConfig) -> int:
    """Biases and norms of one layer."""
    D, F, H, N, K = config.width, config.mlp_width, config.head_size, config.num_heads, config.num_groups
    norms = {"sequential": 4 if config.norm_placement == "sandwich" else 2, "parallel": 2, "parallel_shared": 1}[config.block]
    qk = {None: 0, "head": 2 * H, "projection": (N + K) * H}[config.qk_norm]
    biases = (N + 2 * K) * H * config.qkv_bias + D * config.output_bias + ((2 if config.gated_mlp else 1) * F + D) * config.mlp_bias
    return _norm_vectors(config) * (norms * D + qk) + biases


def _norm_vectors(config: ModelConfig) -> int:
    return 2 if config.norm == "layernorm" and config.norm_bias else 1


def parameters(config: ModelConfig) -> int:
    """All trained numbers; a tied embedding counts once."""
    D = config.width
    embeddings = config.vocab_size * D * (1 if config.tied_embeddings else 2) + config.max_positions * D * (config.positions == "learned")
    final_norm = 0 if config.norm_placement == "post" else _norm_vectors(config) * D
    return config.num_layers * (_layer_matrices(config) + _layer_vectors(config)) + embeddings + final_norm


def matmul_parameters(config: ModelConfig) -> int:
    """Parameters that every token is multiplied with: all matrices but embedding look-ups, and the head, tied or not."""
    return config.num_layers * _layer_matrices(config) + config.width * config.vocab_size


def visible_pairs(sequence_length: int, window: int | None) -> int:
    """How many (query, key) pairs a causal sequence of T tokens has: the sum over t of min(t + 1, window)."""
    T = sequence_length
    w = T if window is None else min(window, T)
    return w * (w + 1) // 2 + (T - w) * w


def forward_flops(config: ModelConfig, sequence_length: int, *, causal: bool = True) -> float:
    """FLOPs of one forward pass, per token: the matrix products, 2 FLOPs for a multiplication and an addition.

    Args:
      config: the model.
      sequence_length: T; one document per sequence.
      causal: count only the pairs that see each other (what the model needs); otherwise all T * T (what a plain XLA product does).
    """
    T, pairs = sequence_length, 0
    for layer in range(config.num_layers):
        window = config.window if config.layer_kind(layer) == "local" else None
        pairs += visible_pairs(T, window) if causal else T * T
    return 2.0 * matmul_parameters(config) + 4.0 * config.num_heads * config.head_size * pairs / T  # q.k and probabilities.v, 2 each


def recomputed_flops(config: ModelConfig, sequence_length: int, remat: str, *, causal: bool = True) -> float:
    """FLOPs per token that a remat policy runs a second time, at least; see `models.remat`.

    A block's last product is never run again, nor is the head; attention's output projection only where a later part of the block reads it.
    """
    if remat in ("none", "minimal"):
        return 0.0
    D, H, L = config.width, config.head_size, config.num_layers
    attention = forward_flops(config, sequence_length, causal=causal) - 2.0 * matmul_parameters(config)
    if remat == "dots":
        return attention
    projections = 0 if remat == "offload" else D * H * (config.num_heads + 2 * config.num_groups)
    output = D * H * config.num_heads if config.block == "sequential" else 0
    inner = (2 if config.gated_mlp else 1) * D * config.mlp_width
    return 2.0 * L * (projections + output + inner) + (attention if remat == "full" else 0.0)


def training_flops(config: ModelConfig, sequence_length: int, *, causal: bool = True) -> float:
    """FLOPs of a forward and backward pass, per token: three times the forward (arXiv 2204.02311, appendix B); no remat is counted."""
    return 3.0 * forward_flops(config, sequence_length, causal=causal)
