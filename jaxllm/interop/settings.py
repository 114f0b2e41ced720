"""Their config.json <-> our ModelConfig: one record per family, read in both directions; a key that is not known is refused."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxllm.interop.given import REQUIRED, Given, Part
from jaxllm.interop.names import NAMES, known
from jaxllm.interop.parts import QWEN_LAYERS, SCALE, activation, every, gemma3_period, shortest, switch, window
from jaxllm.interop.positions import GLOBAL_LOCAL, NEOX_ROPE, NO_ROPE, PHI3_ROPE, ROPE
from jaxllm.models.config import ModelConfig

MOST_LAYERS = 10_000  # more is a mistake, or made to keep this program busy


class Settings(NamedTuple):
    """How a family says what a model is.

    Attributes:
      architecture: transformers' class.
      keys: our field -> (their key, what it is where the key is left out).
      ours: fields that are the same in the whole family.
      fixed: their keys that must have one of these values, the first if left out; the first is written.
      parts: what takes more than a key: positions, windows, biases, activation.
      harmless: keys of this family that change no number of the model.
    """

    architecture: str
    keys: Mapping[str, tuple[str, Any]]
    ours: Mapping[str, Any]
    parts: tuple[Part, ...]
    fixed: Mapping[str, tuple[Any, ...]] = {}
    harmless: tuple[str, ...] = ()


def _keys(positions: int, epsilon: float = 1e-6, kv_heads: int | None = None, head_dim: int | None = None, tied: bool = False) -> dict:
    """The keys that most families share, with this one's defaults."""
    return {
        "vocab_size": ("vocab_size", REQUIRED),
        "width": ("hidden_size", REQUIRED),
        "num_layers": ("num_hidden_layers", REQUIRED),
        "num_heads": ("num_attention_heads", REQUIRED),
        "num_kv_heads": ("num_key_value_heads", kv_heads),
        "head_dim": ("head_dim", head_dim),
        "mlp_width": ("intermediate_size", REQUIRED),
        "max_positions": ("max_position_embeddings", positions),
        "norm_epsilon": ("rms_norm_eps", epsilon),
        "tied_embeddings": ("tie_word_embeddings", tied),
    }


_BIAS = switch("attention_bias", False, "qkv_bias", "output_bias")
_SILU, _GELU = activation("hidden_act", "silu"), activation("hidden_activation", "gelu_pytorch_tanh")
_GEMMA = {"norm_plus_one": True, "norm_placement": "sandwich", "scale_embeddings": True}
_CAUSAL = {"use_bidirectional_attention": (None, False)}
_LAYERNORM = {"norm": "layernorm", "mlp_bias": True, "gated_mlp": False}
_CAPS = {"attention_softcap": "attn_logit_softcapping", "logit_softcap": "final_logit_softcapping"}

SETTINGS: dict[str, Settings] = {
    "gpt2": Settings(
        "GPT2LMHeadModel",
        {
            "vocab_size": ("vocab_size", 50257),
            "width": ("n_embd", REQUIRED),
            "num_layers": ("n_layer", REQUIRED),
            "num_heads": ("n_head", REQUIRED),
            "max_positions": ("n_positions", 1024),
            "norm_epsilon": ("layer_norm_epsilon", 1e-5),
            "tied_embeddings": ("tie_word_embeddings", True),
        },
        {**_LAYERNORM, "qkv_bias": True, "output_bias": True, "positions": "learned"},
        (
            Part(
                lambda given: {"mlp_width": given.get("n_inner", None) or 4 * given.get("n_embd")},
                lambda config: {"n_inner": config.mlp_width},
            ),
            activation("activation_function", "gelu_new"),
            NO_ROPE,
        ),
        {"scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,)},
        (
            "n_ctx",
            "reorder_and_upcast_attn",
            *(f"summary_{x}" for x in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")),
        ),
    ),
    "gpt_neox": Settings(
        "GPTNeoXForCausalLM",
        {
            **{ours: row for ours, row in _keys(2048).items() if ours not in ("num_kv_heads", "head_dim", "norm_epsilon")},
            "norm_epsilon": ("layer_norm_eps", 1e-5),
        },
        _LAYERNORM,
        (
            switch("attention_bias", True, "qkv_bias", "output_bias"),
            Part(
                lambda given: {"block": "parallel" if given.get("use_parallel_residual", True) else "sequential"},
                lambda config: {"use_parallel_residual": config.block == "parallel"},
            ),
            activation("hidden_act", "gelu"),
            NEOX_ROPE,
        ),
        harmless=("hidden_dropout",),
    ),
    "llama": Settings(
        "LlamaForCausalLM",
        _keys(2048),
        {},
        (_BIAS, switch("mlp_bias", False, "mlp_bias"), _SILU, ROPE),
        {"rope_interleaved": (False,)},
        ("pretraining_tp", "is_llama_config"),
    ),
    "mistral": Settings("MistralForCausalLM", _keys(131072, kv_heads=8), {}, (window(4096), _SILU, ROPE)),
    "qwen2": Settings("Qwen2ForCausalLM", _keys(32768, kv_heads=32), {"qkv_bias": True}, (QWEN_LAYERS, _SILU, ROPE)),
    "qwen3": Settings("Qwen3ForCausalLM", _keys(32768, kv_heads=32, head_dim=128), {"qk_norm": "head"}, (_BIAS, QWEN_LAYERS, _SILU, ROPE)),
    "gemma2": Settings(
        "Gemma2ForCausalLM",
        {
            **_keys(8192, kv_heads=4, head_dim=256, tied=True),
            **{ours: (_CAPS[ours], cap) for ours, cap in zip(_CAPS, (50.0, 30.0), strict=True)},
        },
        _GEMMA,
        (SCALE, _BIAS, every(lambda given: 2), _GELU, ROPE),
        _CAUSAL,
        ("hidden_act", "cache_implementation"),
    ),
    "gemma3_text": Settings(
        "Gemma3ForCausalLM",
        {
            **_keys(131072, kv_heads=4, head_dim=256, tied=True),
            **{ours: (theirs, None) for ours, theirs in _CAPS.items()},
            "vocab_size": ("vocab_size", 262208),
            "num_heads": ("num_attention_heads", 8),
        },
        {**_GEMMA, "qk_norm": "head"},
        (SCALE, _BIAS, every(gemma3_period), _GELU, GLOBAL_LOCAL),
        _CAUSAL,
        ("hidden_act", "cache_implementation"),
    ),
    "olmo2": Settings(
        "Olmo2ForCausalLM", _keys(2048, epsilon=1e-5), {"norm_placement": "output", "qk_norm": "projection"}, (_BIAS, _SILU, ROPE)
    ),
    "phi3": Settings(
        "Phi3ForCausalLM", _keys(4096, epsilon=1e-5), {}, (window(None), _SILU, PHI3_ROPE), harmless=("original_max_position_embeddings",)
    ),
}


def read(given: Mapping[str, Any], where: str) -> tuple[str, ModelConfig]:
    """The family and the ModelConfig of a config.json. Dropout is left at 0 and `init_std` as it is: both are a run's own choice.

    Args:
      given: config.json; that of a Gemma 3 with images is read for its text part.
      where: its path, for messages.

    Raises:
      ValueError: an unknown family; a key that is missing, has a value that jaxllm does not compute, or is not known.
    """
    if given.get("model_type") == "gemma3" and isinstance(given.get("text_config"), Mapping):
        whole = {name: given[name] for name in ("tie_word_embeddings",) if name in given}
        given = {"model_type": "gemma3_text", **whole, **given["text_config"]}
    family = known(given.get("model_type"))
    try:
        fields = _fields(SETTINGS[family], Given(given, where))
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{where}: a value is not of the kind that its key wants ({error}). Fetch the file again.") from None
    large = next((name for name, value in fields.items() if isinstance(value, int) and value >= 2**31), None)
    if large is not None:
        raise ValueError(f"{where}: {large}={fields[large]} is larger than any model has. Fetch the file again.")
    try:
        return family, ModelConfig(**fields)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _fields(table: Settings, asked: Given) -> dict[str, Any]:
    """The fields of the ModelConfig; every key is read, or known to be harmless."""
    fields = dict(table.ours)
    for ours, (theirs, default) in table.keys.items():
        fields[ours] = asked.get(theirs, default)
    if not isinstance(fields["num_layers"], int) or not 0 < fields["num_layers"] <= MOST_LAYERS:
        raise asked.refusal(table.keys["num_layers"][0], fields["num_layers"], f"a model has 1 to {MOST_LAYERS} layers")
    for part in table.parts:
        fields |= part.read(asked)
    for theirs, values in table.fixed.items():
        if (value := asked.get(theirs, values[0])) not in values:
            raise asked.refusal(theirs, value, f"jaxllm computes {values[0]!r} alone")
    asked.check_all_read(table.harmless)
    return fields


def write(family: str, config: ModelConfig) -> dict[str, Any]:
    """The config.json of a model, as far as it is about its numbers.

    Raises:
      ValueError: the family cannot say what this model is; names the fields.
    """
    table = SETTINGS[known(family)]
    out: dict[str, Any] = {"model_type": family, "architectures": [table.architecture]}
    for ours, (theirs, _) in table.keys.items():
        out[theirs] = getattr(config, ours)
    for part in table.parts:
        out |= part.write(config)
    out |= {theirs: values[0] for theirs, values in table.fixed.items()}
    if lost := differences(config, read(out, family)[1]):
        shown = ", ".join(f"model.{name}={getattr(config, name)!r}" for name in lost)
        raise ValueError(f"The family {family!r} cannot say what this model is: it has no {shown}.")
    return out


def family_of(config: ModelConfig) -> str:
    """The first family that can say what this model is.

    Raises:
      ValueError: there is none; the nearest is named, and what it lacks.
    """
    near: tuple[int, str] = (len(SETTINGS) * 100, "")
    for family in NAMES:
        try:
            write(family, config)
            return family
        except ValueError as error:
            near = min(near, (str(error).count("model."), str(error)))
    raise ValueError(f"No family of Hugging Face that jaxllm writes holds this model ({', '.join(NAMES)}). The nearest: {near[1]}")


def differences(one: ModelConfig, other: ModelConfig) -> list[str]:
    """The fields in which two models compute differently."""
    a, b = canonical(one), canonical(other)
    return [name for name in vars(a) if getattr(a, name) != getattr(b, name)]


def canonical(config: ModelConfig) -> ModelConfig:
    """The same model said in one way: what changes no number of a trained model at its default, what follows from the rest spelled out."""
    pattern = shortest([config.layer_kind(layer) for layer in range(config.num_layers)])
    same: dict[str, Any] = dict.fromkeys(("residual_dropout", "attention_dropout", "embedding_dropout"), 0.0)
    same |= {"init_std": 0.02, "layer_pattern": pattern, "window": config.window if "local" in pattern else None}
    same["attention_scale"] = float(f"{config.attention_scale or config.head_size**-0.5:.12g}")
    if config.norm == "rmsnorm":
        same["norm_bias"] = True
    scaling = dict(config.rope_scaling or ())
    if "type" in scaling:
        scaling["rope_type"] = scaling.pop("type")
    same["rope_scaling"] = scaling or None
    local = config.local_rope_theta
    if "local" not in pattern or (local == config.rope_theta and not scaling):
        same["local_rope_theta"] = None
    if config.positions != "rope":
        same |= {"rope_theta": 10_000.0, "rope_fraction": 1.0, "local_rope_theta": None}
    return config.replace(**same)
