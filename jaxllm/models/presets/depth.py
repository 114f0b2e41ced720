"""One dial: the number of layers sets the shape, and published scaling rules set batch, learning rate and token budget."""

import math
from typing import NamedTuple

from jaxllm.models import counts
from jaxllm.models.config import ModelConfig

TOKENS_PER_PARAMETER = 20  # Hoffmann et al. (arXiv 2203.15556), table 3: compute-optimal training sees about 20 tokens per parameter


class Depth(NamedTuple):
    """What follows from the depth."""

    config: ModelConfig
    sequence_length: int
    batch_size: int  # rows
    learning_rate: float  # peak, for AdamW
    tokens: int  # to train on in all
    steps: int  # tokens / (batch_size * sequence_length), rounded up


def depth(num_layers: int, *, vocab_size: int = 32768, sequence_length: int = 1024) -> Depth:
    """A decoder of this many layers and how to train it.

    Shape: D = 64 L (nanochat; loss hardly depends on the aspect ratio: Kaplan et al., arXiv 2001.08361, figure 5). Heads of 128 dims,
    of 64 up to 8 layers and where L is odd, every one with its own keys. A gated silu MLP of F = 8/3 D, rounded up to 128 (Shazeer,
    arXiv 2002.05202: as many parameters as 4 D ungated). Rope, RMSNorm, qk-norm (stable at larger learning rates: Dehghani et al.,
    arXiv 2302.05442), untied embeddings.

    Tokens: 20 per parameter (Hoffmann et al., arXiv 2203.15556). C being the training compute, DeepSeek LLM (arXiv 2401.02954, section 3.1)
    fits batch = 0.2920 C^0.3271 tokens and learning rate = 0.3118 C^-0.1250; the batch goes to the nearest power of two of rows.

    Raises:
      ValueError: a depth that is not a positive whole number.
    """
    if not isinstance(num_layers, int) or num_layers < 1:
        raise ValueError(f"depth={num_layers!r} is not a number of layers. Choose a whole number >= 1; 12 is a GPT-2-sized model.")
    width = 64 * num_layers
    config = ModelConfig(
        vocab_size=vocab_size,
        num_layers=num_layers,
        width=width,
        num_heads=num_layers if num_layers <= 8 or num_layers % 2 else num_layers // 2,
        mlp_width=-(-8 * width // 3 // 128) * 128,
        max_positions=max(sequence_length, 2048),
        qk_norm="head",
    )
    tokens = TOKENS_PER_PARAMETER * counts.parameters(config)
    compute = counts.training_flops(config, sequence_length) * tokens
    rows = 0.2920 * compute**0.3271 / sequence_length
    batch_size = 2 ** max(0, round(math.log2(rows)))
    return Depth(config, sequence_length, batch_size, 0.3118 * compute**-0.1250, tokens, -(-tokens // (batch_size * sequence_length)))
