"""The tiny presets, the tensors that transformers gives them, and weights for those from a frozen stream of numbers."""

from typing import Any

import numpy as np

from jaxllm.interop import settings
from jaxllm.models.config import ModelConfig
from jaxllm.models.presets import preset

Arrays = dict[str, np.ndarray]

FAMILIES: dict[str, str] = {  # preset -> the family that it is written as
    "tiny_gpt2": "gpt2",
    "tiny_pythia": "gpt_neox",
    "tiny_llama2": "llama",
    "tiny_llama3": "llama",
    "tiny_llama3.1": "llama",
    "tiny_smollm2": "llama",
    "tiny_mistral": "mistral",
    "tiny_phi3": "phi3",
    "tiny_qwen2.5": "qwen2",
    "tiny_qwen3": "qwen3",
    "tiny_gemma2": "gemma2",
    "tiny_gemma3": "gemma3_text",
    "tiny_olmo2": "olmo2",
}


def random_weights(shapes: dict[str, Any], config: ModelConfig, seed: int) -> Arrays:
    """Float32 tensors by their names, the same on every machine (numpy keeps RandomState's stream frozen).

    Args:
      shapes: name -> shape, as transformers has them.
      config: of the model.
      seed: of the stream.
    """
    stream, out = np.random.RandomState(seed), {}
    for name, shape in sorted(shapes.items()):
        draw = stream.standard_normal(shape)
        centre = 1.0 if len(shape) == 1 and name.endswith("weight") and not config.norm_plus_one else 0.0
        out[name] = (centre + draw * (0.1 if len(shape) == 1 else 1.5 * config.width**-0.5)).astype(np.float32)
    return out


def random_tokens(config: ModelConfig) -> np.ndarray:
    """int32 [2, 40], longer than every tiny window."""
    return np.random.RandomState(4).randint(0, config.vocab_size, (2, 40)).astype(np.int32)


def reference_model(name: str, seed: int = 3) -> Any:
    """The transformers model of a tiny preset, in float32, with weights that say something."""
    import torch
    import transformers

    config, family = preset(name), FAMILIES[name]
    said = {key: value for key, value in settings.write(family, config).items() if key not in ("model_type", "architectures")}
    theirs = transformers.AutoConfig.for_model(family, **said, bos_token_id=1, eos_token_id=2, pad_token_id=None)
    model = transformers.AutoModelForCausalLM.from_config(theirs, attn_implementation="eager").eval()  # sdpa ignores Gemma 2's soft-cap
    named = dict(model.named_parameters())
    weights = random_weights({key: tuple(value.shape) for key, value in named.items()}, config, seed)
    with torch.no_grad():
        for key, value in named.items():
            value.copy_(torch.from_numpy(weights[key]))
    return model


def reference_logits(model: Any, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Float32 logits [B, T, V] of a transformers model; mask [B, T] is 0 where there is padding."""
    import torch

    ids, more = torch.from_numpy(tokens.astype(np.int64)), {}
    if mask is not None:  # as `generate` counts them; GPT-2 itself would count the padding
        more = {"attention_mask": torch.from_numpy(mask), "position_ids": torch.from_numpy(np.maximum(mask.cumsum(1) - 1, 0))}
    with torch.no_grad():
        return model(input_ids=ids, **more).logits.float().numpy()
