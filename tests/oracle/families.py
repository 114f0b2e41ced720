"""The tiny presets as transformers models: their configs, and one table per family from our parameters to theirs."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxllm.models.config import ModelConfig
from jaxllm.models.presets import preset

Arrays = dict[str, np.ndarray]
Table = dict[str, tuple[tuple[str, ...], Callable[..., np.ndarray]]]  # their name -> (our names, how to make theirs)


def random_params(config: ModelConfig, abstract: Any, seed: int) -> Arrays:
    """Parameters by "a/b/c", the same on every machine (numpy keeps RandomState's stream frozen).

    Args:
      config: of the model.
      abstract: its parameters, one by one, with shapes.
      seed: of the stream.
    """
    stream, out = np.random.RandomState(seed), {}
    for name, shape in sorted(flatten(abstract).items()):
        draw = stream.standard_normal(shape)
        centre = 1.0 if name.endswith("scale") and not config.norm_plus_one else 0.0
        out[name] = (centre + draw * (0.1 if len(shape) == 1 or "norm" in name else 1.5 * config.width**-0.5)).astype(np.float32)
    return out


def random_tokens(config: ModelConfig) -> np.ndarray:
    """int32 [2, 40], longer than every tiny window."""
    return np.random.RandomState(4).randint(0, config.vocab_size, (2, 40)).astype(np.int32)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts to {"a/b/c": shape}."""
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree.shape}
    return {k: v for name, sub in tree.items() for k, v in flatten(sub, f"{prefix}{name}/").items()}


def nest(flat: Arrays) -> Any:
    """{"a/b/c": array} to nested dicts."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def same(x):
    """As it is."""
    return x


def reads(x):
    """[D, ...] -> torch's [out, D]."""
    return x.reshape(x.shape[0], -1).T


def writes(x):
    """[..., D] -> torch's [D, in]."""
    return x.reshape(-1, x.shape[-1]).T


def stacked(*xs):
    """Several readers, one after the other."""
    return np.concatenate([reads(x) if x.ndim > 1 else x for x in xs], axis=0)


def conv_qkv(*xs):
    """GPT-2's Conv1D is [in, out]."""
    return np.concatenate([x.reshape(x.shape[0], -1) for x in xs], axis=1)


def flat_qkv(*xs):
    """Biases [N, H] of q, k, v one after the other."""
    return np.concatenate([x.reshape(-1) for x in xs])


def neox_qkv(*xs):
    """GPT-NeoX keeps q, k, v of each head together: rows [N, 3, H]."""
    D = xs[0].shape[0]
    return np.stack(xs, axis=2).reshape(D, -1).T


def neox_bias(*xs):
    """The same for biases [N, H]."""
    return np.stack(xs, axis=1).reshape(-1)


QKV = tuple(f"attention/{x}/kernel" for x in ("query", "key", "value"))
QKV_BIAS = tuple(f"attention/{x}/bias" for x in ("query", "key", "value"))

LLAMA: Table = {
    "self_attn.q_proj.weight": (QKV[:1], reads),
    "self_attn.k_proj.weight": (QKV[1:2], reads),
    "self_attn.v_proj.weight": (QKV[2:], reads),
    "self_attn.o_proj.weight": (("attention/output/kernel",), writes),
    "mlp.gate_proj.weight": (("mlp/gate/kernel",), reads),
    "mlp.up_proj.weight": (("mlp/up/kernel",), reads),
    "mlp.down_proj.weight": (("mlp/down/kernel",), reads),
    "input_layernorm.weight": (("attention_norm/scale",), same),
    "post_attention_layernorm.weight": (("mlp_norm/scale",), same),
}
QK_NORM: Table = {
    "self_attn.q_norm.weight": (("attention/query_norm/scale",), np.ravel),
    "self_attn.k_norm.weight": (("attention/key_norm/scale",), np.ravel),
}
QWEN2: Table = LLAMA | {f"self_attn.{x}_proj.bias": ((name,), np.ravel) for x, name in zip("qkv", QKV_BIAS, strict=True)}
_OUTPUT_NORMS: Table = {
    "post_attention_layernorm.weight": (("attention_output_norm/scale",), same),
    "post_feedforward_layernorm.weight": (("mlp_output_norm/scale",), same),
}
GEMMA: Table = LLAMA | _OUTPUT_NORMS | {"pre_feedforward_layernorm.weight": (("mlp_norm/scale",), same)}
OLMO2: Table = {k: v for k, v in LLAMA.items() if k != "input_layernorm.weight"} | _OUTPUT_NORMS | QK_NORM
PHI3: Table = {k: v for k, v in LLAMA.items() if k.split(".")[1] not in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")} | {
    "self_attn.qkv_proj.weight": (QKV, stacked),
    "mlp.gate_up_proj.weight": (("mlp/gate/kernel", "mlp/up/kernel"), stacked),
}
GPT2: Table = {
    "attn.c_attn.weight": (QKV, conv_qkv),
    "attn.c_attn.bias": (QKV_BIAS, flat_qkv),
    "attn.c_proj.weight": (("attention/output/kernel",), lambda x: writes(x).T),
    "attn.c_proj.bias": (("attention/output/bias",), same),
    "mlp.c_fc.weight": (("mlp/up/kernel",), same),
    "mlp.c_fc.bias": (("mlp/up/bias",), same),
    "mlp.c_proj.weight": (("mlp/down/kernel",), same),
    "mlp.c_proj.bias": (("mlp/down/bias",), same),
    **{f"ln_1.{a}": ((f"attention_norm/{b}",), same) for a, b in (("weight", "scale"), ("bias", "bias"))},
    **{f"ln_2.{a}": ((f"mlp_norm/{b}",), same) for a, b in (("weight", "scale"), ("bias", "bias"))},
}
NEOX: Table = {
    "attention.query_key_value.weight": (QKV, neox_qkv),
    "attention.query_key_value.bias": (QKV_BIAS, neox_bias),
    "attention.dense.weight": (("attention/output/kernel",), writes),
    "attention.dense.bias": (("attention/output/bias",), same),
    "mlp.dense_h_to_4h.weight": (("mlp/up/kernel",), reads),
    "mlp.dense_h_to_4h.bias": (("mlp/up/bias",), same),
    "mlp.dense_4h_to_h.weight": (("mlp/down/kernel",), reads),
    "mlp.dense_4h_to_h.bias": (("mlp/down/bias",), same),
    **{f"input_layernorm.{a}": ((f"attention_norm/{b}",), same) for a, b in (("weight", "scale"), ("bias", "bias"))},
    **{f"post_attention_layernorm.{a}": ((f"mlp_norm/{b}",), same) for a, b in (("weight", "scale"), ("bias", "bias"))},
}
STEM = {"model.embed_tokens.weight": "embedding/tokens", "model.norm.weight": "final_norm/scale", "lm_head.weight": "head/kernel"}
GPT2_STEM = {
    "transformer.wte.weight": "embedding/tokens",
    "transformer.wpe.weight": "embedding/positions",
    "transformer.ln_f.weight": "final_norm/scale",
    "transformer.ln_f.bias": "final_norm/bias",
}
NEOX_STEM = {
    "gpt_neox.embed_in.weight": "embedding/tokens",
    "gpt_neox.final_layer_norm.weight": "final_norm/scale",
    "gpt_neox.final_layer_norm.bias": "final_norm/bias",
    "lm_head.weight": "head/kernel",
}


def _rope(config: ModelConfig) -> dict[str, Any]:
    """`rope_parameters`, as transformers 5 names it."""
    plain = {"rope_type": "default", "rope_theta": config.rope_theta}
    return plain | {k: v for k, v in (config.rope_scaling_dict or {}).items() if k != "type"}


def _settings(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_groups,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied_embeddings,
        "rope_parameters": _rope(config),
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _gemma_settings(config: ModelConfig) -> dict[str, Any]:
    kinds = {"global": "full_attention", "local": "sliding_attention"}
    return {
        "query_pre_attn_scalar": round((config.attention_scale or 1.0) ** -2),
        "sliding_window": config.window,
        "layer_types": [kinds[config.layer_kind(i)] for i in range(config.num_layers)],
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
        "hidden_activation": "gelu_pytorch_tanh",
    }


def _gemma3_settings(config: ModelConfig) -> dict[str, Any]:
    local = {"rope_type": "default", "rope_theta": config.local_rope_theta}
    return _gemma_settings(config) | {"rope_parameters": {"full_attention": _rope(config), "sliding_attention": local}}


def _gpt2_settings(config: ModelConfig) -> dict[str, Any]:
    sizes = {"n_embd": config.width, "n_layer": config.num_layers, "n_head": config.num_heads, "n_positions": config.max_positions}
    return {"vocab_size": config.vocab_size, "n_inner": config.mlp_width, "layer_norm_epsilon": config.norm_epsilon, **sizes}


def _neox_settings(config: ModelConfig) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": config.rope_theta, "partial_rotary_factor": config.rope_fraction}
    return {"layer_norm_eps": config.norm_epsilon, "rope_parameters": rope, "use_parallel_residual": True, "hidden_act": "gelu"}


def _window(config: ModelConfig) -> dict[str, Any]:
    return {"sliding_window": config.window}


# preset: (transformers' class, its config's, the layers' prefix, layer table, stem table, more settings)
FAMILIES: dict[str, tuple[str, str, str, Table, dict[str, str], Callable[[ModelConfig], dict[str, Any]]]] = {
    "tiny_gpt2": ("GPT2LMHeadModel", "GPT2Config", "transformer.h", GPT2, GPT2_STEM, _gpt2_settings),
    "tiny_pythia": ("GPTNeoXForCausalLM", "GPTNeoXConfig", "gpt_neox.layers", NEOX, NEOX_STEM, _neox_settings),
    "tiny_llama2": ("LlamaForCausalLM", "LlamaConfig", "model.layers", LLAMA, STEM, lambda config: {}),
    "tiny_llama3": ("LlamaForCausalLM", "LlamaConfig", "model.layers", LLAMA, STEM, lambda config: {}),
    "tiny_llama3.1": ("LlamaForCausalLM", "LlamaConfig", "model.layers", LLAMA, STEM, lambda config: {}),
    "tiny_smollm2": ("LlamaForCausalLM", "LlamaConfig", "model.layers", LLAMA, STEM, lambda config: {}),
    "tiny_mistral": ("MistralForCausalLM", "MistralConfig", "model.layers", LLAMA, STEM, _window),
    "tiny_phi3": ("Phi3ForCausalLM", "Phi3Config", "model.layers", PHI3, STEM, _window),
    "tiny_qwen2.5": ("Qwen2ForCausalLM", "Qwen2Config", "model.layers", QWEN2, STEM, lambda config: {}),
    "tiny_qwen3": ("Qwen3ForCausalLM", "Qwen3Config", "model.layers", LLAMA | QK_NORM, STEM, lambda config: {}),
    "tiny_gemma2": ("Gemma2ForCausalLM", "Gemma2Config", "model.layers", GEMMA, STEM, _gemma_settings),
    "tiny_gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", "model.layers", GEMMA | QK_NORM, STEM, _gemma3_settings),
    "tiny_olmo2": ("Olmo2ForCausalLM", "Olmo2Config", "model.layers", OLMO2, STEM, lambda config: {}),
}


def state_dict(name: str, params: Arrays) -> Arrays:
    """Our parameters (layers one by one) under transformers' names and in its shapes; every one of ours is used exactly once."""
    _, _, prefix, table, stem, _ = FAMILIES[name]
    config, used, out = preset(name), set(), {}
    for theirs, ours in stem.items():
        if ours in params:
            out[theirs] = reads(params[ours]) if ours == "head/kernel" else params[ours]
            used.add(ours)
    for layer in range(config.num_layers):
        for theirs, (parts, make) in table.items():
            names = [f"layers/{layer}/{part}" for part in parts]
            out[f"{prefix}.{layer}.{theirs}"] = np.ascontiguousarray(make(*(params[n] for n in names)))
            used.update(names)
    assert used == set(params), sorted(set(params) - used)
    return out


def reference_logits(name: str, params: Arrays, tokens: np.ndarray) -> np.ndarray:
    """Float32 logits [B, T, V] of the transformers model of this family with our parameters."""
    import torch
    import transformers

    model_class, config_class, _, _, _, more = FAMILIES[name]
    config = preset(name)
    settings = _settings(config) | more(config)
    if name == "tiny_gpt2":
        settings = more(config) | {"tie_word_embeddings": True}
    theirs = getattr(transformers, config_class)(**settings)
    theirs._attn_implementation = "eager"  # sdpa ignores Gemma 2's soft-cap
    model = getattr(transformers, model_class)(theirs).eval()
    missing = model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state_dict(name, params).items()}, strict=False)
    tied = {"lm_head.weight"} if config.tied_embeddings else set()
    assert not missing.unexpected_keys and set(missing.missing_keys) <= tied, missing
    model.tie_weights()
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(tokens.astype(np.int64))).logits.float().numpy()
