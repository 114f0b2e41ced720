"""Published shapes by name, one file per family; `depth` is the one dial for a model of one's own."""

import difflib

from jaxllm.models.config import ModelConfig
from jaxllm.models.presets.depth import Depth, depth
from jaxllm.models.presets.gemma import GEMMA2, GEMMA3
from jaxllm.models.presets.gpt2 import GPT2, PYTHIA
from jaxllm.models.presets.llama import LLAMA, MISTRAL, PHI, SMOLLM
from jaxllm.models.presets.olmo import OLMO2
from jaxllm.models.presets.qwen import QWEN3, QWEN25
from jaxllm.models.presets.tiny import TINY

__all__ = ["PRESETS", "PUBLISHED", "TINY", "Depth", "depth", "preset"]

PUBLISHED: dict[str, ModelConfig] = {**GPT2, **PYTHIA, **LLAMA, **MISTRAL, **PHI, **SMOLLM, **QWEN25, **QWEN3, **GEMMA2, **GEMMA3, **OLMO2}
PRESETS: dict[str, ModelConfig] = {**PUBLISHED, **TINY}


def preset(name: str) -> ModelConfig:
    """The config of a published model, or of a tiny one of its family.

    Raises:
      ValueError: an unknown name; the nearest is shown.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name.lower().replace("_", "-"), PRESETS, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown preset {name!r}.{hint} Choose one of: {', '.join(PRESETS)}.")
    return PRESETS[name]
