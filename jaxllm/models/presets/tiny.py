"""Every family in miniature, for tests and first steps; the vocabulary holds the byte tokenizer's 259 ids."""

from typing import Any

from jaxllm.models.config import ModelConfig
from jaxllm.models.presets.gemma import GEMMA2, GEMMA3
from jaxllm.models.presets.gpt2 import GPT2, PYTHIA
from jaxllm.models.presets.llama import LLAMA, MISTRAL, PHI, SMOLLM
from jaxllm.models.presets.olmo import OLMO2
from jaxllm.models.presets.qwen import QWEN3, QWEN25

_SIZE: dict[str, Any] = {
    "vocab_size": 320,
    "num_layers": 2,
    "width": 64,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "mlp_width": 128,
    "max_positions": 256,
}
_FULL_HEADS: dict[str, Any] = {**_SIZE, "num_kv_heads": 4}
_LLAMA3_SCALING = {**(LLAMA["llama3.1-8b"].rope_scaling_dict or {}), "original_max_position_embeddings": 64}

TINY = {
    "tiny": ModelConfig(vocab_size=320, num_layers=2, width=128, num_heads=4, num_kv_heads=2, mlp_width=384, max_positions=1024),
    "tiny_gpt2": GPT2["gpt2"].replace(**_FULL_HEADS),
    "tiny_pythia": PYTHIA["pythia-1b"].replace(**_FULL_HEADS, rope_fraction=0.25),
    "tiny_llama2": LLAMA["llama2-7b"].replace(**_FULL_HEADS),
    "tiny_llama3": LLAMA["llama3-8b"].replace(**_SIZE),
    "tiny_llama3.1": LLAMA["llama3.1-8b"].replace(**_SIZE, rope_scaling=_LLAMA3_SCALING),
    "tiny_mistral": MISTRAL["mistral-7b"].replace(**_SIZE, window=16),
    "tiny_phi3": PHI["phi3-mini"].replace(**_FULL_HEADS, window=15),
    "tiny_smollm2": SMOLLM["smollm2-135m"].replace(**_SIZE),
    "tiny_qwen2.5": QWEN25["qwen2.5-0.5b"].replace(**_SIZE),
    "tiny_qwen3": QWEN3["qwen3-0.6b"].replace(**{**_SIZE, "head_dim": 32}),
    "tiny_gemma2": GEMMA2["gemma2-2b"].replace(**{**_SIZE, "num_layers": 3, "window": 8}),
    "tiny_gemma3": GEMMA3["gemma3-4b"].replace(**{**_SIZE, "num_layers": 7, "window": 8}),
    "tiny_olmo2": OLMO2["olmo2-7b"].replace(**_SIZE),
}
