"""ModelConfig: one frozen record that describes any decoder of the families in `presets`."""

import dataclasses
import difflib
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

# The choices of every field that has some; the error messages and the documentation are made from here.
CHOICES: dict[str, tuple[str | None, ...]] = {
    "norm": ("rmsnorm", "layernorm"),
    # pre: x + f(norm(x));  post: norm(x + f(x)), no final norm;  output: x + norm(f(x)), OLMo 2;  sandwich: x + norm(f(norm(x))), Gemma 2
    "norm_placement": ("pre", "post", "output", "sandwich"),
    # parallel: x + attention(norm1(x)) + mlp(norm2(x)), GPT-NeoX;  parallel_shared: the same with one norm, GPT-J
    "block": ("sequential", "parallel", "parallel_shared"),
    "qk_norm": (None, "head", "projection"),  # over each head's H (Qwen 3, Gemma 3), or over the whole projection N*H (OLMo 2)
    "positions": ("rope", "learned", "none"),
    "activation": ("silu", "gelu", "gelu_tanh", "relu", "relu2"),
}
LAYER_KINDS = ("global", "local")
ROPE_SCALINGS = ("linear", "dynamic", "yarn", "llama3")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shapes and choices of one decoder. Hashable: it is part of what is compiled.

    Attributes:
      vocab_size: V.
      num_layers: L.
      width: D.
      num_heads: N.
      mlp_width: F.
      num_kv_heads: K, a divisor of N; None means N. 1 is multi-query attention.
      head_dim: H; None means D / N.
      max_positions: the longest sequence the model was made for; with learned positions also the rows of their table.
      norm, norm_placement, norm_epsilon: see `CHOICES`.
      norm_bias: whether a LayerNorm has a bias.
      norm_plus_one: the norm multiplies by 1 + scale, and scale starts at 0 (Gemma).
      block: sequential or parallel, see `CHOICES`.
      qk_norm: norm of queries and keys before the rotation, of the kind that `norm` says, see `CHOICES`.
      qkv_bias, output_bias, mlp_bias: biases of q, k, v; of the attention's output; of both MLP layers.
      positions: see `CHOICES`.
      rope_theta: base of the rotary frequencies.
      rope_fraction: the share of H that is rotated (partial rotary).
      rope_scaling: a Hugging Face `rope_scaling` table, of type linear, dynamic, yarn or llama3; kept as a sorted tuple of pairs.
        Type default is kept as None; dynamic without `original_max_position_embeddings` takes it from max_positions.
      local_rope_theta: base of the "local" layers, which then go unscaled (Gemma 3); None means as in all other layers.
      layer_pattern: the kinds of consecutive layers, "global" or "local", repeated to L.
      window: how many positions a token of a "local" layer sees, itself included.
      attention_scale: factor of q.k; None means H ** -0.5.
      attention_softcap, logit_softcap: cap * tanh(x / cap) on attention scores, on logits; None means none.
      activation, gated_mlp: down(activation(gate(x)) * up(x)), or down(activation(up(x))) when not gated.
      tied_embeddings: the head is the transposed token embedding.
      scale_embeddings: embeddings are multiplied by sqrt(D) (Gemma).
      residual_dropout, attention_dropout, embedding_dropout: probabilities; used only when `apply` is given an rng.
      init_std: standard deviation of all matrices, None means fan_in ** -0.5; what writes to the residual stream has (2 L) ** -0.5 of it.
    """

    vocab_size: int
    num_layers: int
    width: int
    num_heads: int
    mlp_width: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    max_positions: int = 2048
    norm: str = "rmsnorm"
    norm_placement: str = "pre"
    norm_epsilon: float = 1e-5
    norm_bias: bool = True
    norm_plus_one: bool = False
    block: str = "sequential"
    qk_norm: str | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    positions: str = "rope"
    rope_theta: float = 10_000.0
    rope_fraction: float = 1.0
    rope_scaling: Any = None
    local_rope_theta: float | None = None
    layer_pattern: tuple[str, ...] = ("global",)
    window: int | None = None
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    activation: str = "silu"
    gated_mlp: bool = True
    tied_embeddings: bool = False
    scale_embeddings: bool = False
    residual_dropout: float = 0.0
    attention_dropout: float = 0.0
    embedding_dropout: float = 0.0
    init_std: float | None = 0.02

    def __post_init__(self):
        fill = object.__setattr__
        _check_kinds(self)
        fill(self, "layer_pattern", tuple(self.layer_pattern))
        scaling = _scaling(_as_dict(self.rope_scaling), self.max_positions)
        fill(self, "rope_scaling", None if not scaling else tuple(sorted((k, _frozen(v)) for k, v in scaling.items())))
        _check_sizes(self)
        if self.num_kv_heads is None:
            fill(self, "num_kv_heads", self.num_heads)
        if self.head_dim is None:
            fill(self, "head_dim", self.width // self.num_heads)
        _check_choices(self)
        _check_positions(self)
        _check_layers(self)

    @property
    def head_size(self) -> int:
        """H, never None."""
        return self.head_dim or self.width // self.num_heads

    @property
    def num_groups(self) -> int:
        """K, never None."""
        return self.num_kv_heads or self.num_heads

    @property
    def rope_scaling_dict(self) -> dict[str, Any] | None:
        """`rope_scaling` as the dict it was given as."""
        return None if self.rope_scaling is None else dict(self.rope_scaling)

    def layer_kind(self, layer: int) -> str:
        """ "global" or "local" for layer 0 .. L-1."""
        return self.layer_pattern[layer % len(self.layer_pattern)]

    @property
    def num_repeats(self) -> int:
        """How often the whole pattern of layers fits into L: the length of the scan."""
        return self.num_layers // len(self.layer_pattern)

    @property
    def remainder(self) -> tuple[int, ...]:
        """The layers after the last whole pattern."""
        return tuple(range(self.num_repeats * len(self.layer_pattern), self.num_layers))

    def replace(self, **changes: Any) -> "ModelConfig":
        """A copy with some fields changed.

        Raises:
          ValueError: an unknown field (the nearest name is shown), or a combination that makes no model.
        """
        names = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"Unknown model field {name!r}.{hint} Choose from: {', '.join(names)}.")
        # What was derived from a field that changes is derived again.
        if "num_heads" in changes and self.num_kv_heads == self.num_heads:
            changes.setdefault("num_kv_heads", None)
        if {"num_heads", "width"} & set(changes) and self.head_size * self.num_heads == self.width:
            changes.setdefault("head_dim", None)
        return dataclasses.replace(self, **changes)


def _as_dict(value: Any) -> dict[str, Any]:
    return dict(value.items() if isinstance(value, Mapping) or hasattr(value, "items") else value or ())


def _scaling(given: dict[str, Any], max_positions: int) -> dict[str, Any]:
    """The table with what Hugging Face leaves unsaid: type "default" scales nothing, and "dynamic" starts from the model's own length."""
    kind = given.get("rope_type", given.get("type"))
    if kind == "dynamic" and given.get("original_max_position_embeddings") is None:
        return {**given, "original_max_position_embeddings": max_positions}
    return {} if kind == "default" else given


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


# The type of a field -> what its value must be (numpy's numbers are numbers; True is none), and in words.
KINDS: dict[type, tuple[type, str]] = {
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    bool: (bool, "True or False"),
}


def _check_kinds(config: ModelConfig) -> None:
    for field in dataclasses.fields(config):
        value, kinds = getattr(config, field.name), get_args(field.type) or (field.type,)
        kind = next((kind for kind in KINDS if kind in kinds), None)
        number = isinstance(value, KINDS[kind][0]) and isinstance(value, bool) == (kind is bool) if kind else True
        bad = None if number or (value is None and type(None) in kinds) else KINDS[kind][1]  # type: ignore[index]
        if field.name == "layer_pattern" and not isinstance(value, list | tuple):
            bad = "a list of layer kinds"
        pairs = isinstance(value, list | tuple) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value)
        if field.name == "rope_scaling" and not (value is None or pairs or hasattr(value, "items")):
            bad = "a table or None"
        if bad:
            raise ValueError(f"model.{field.name}={value!r} is not {bad}.")


def _check_sizes(config: ModelConfig) -> None:
    for name in ("vocab_size", "num_layers", "width", "num_heads", "mlp_width", "num_kv_heads", "head_dim", "max_positions"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"model.{name}={value!r} is not a size. Give a whole number >= 1.")
    if config.head_dim is None and config.width % config.num_heads:
        good = [n for n in range(1, config.width + 1) if config.width % n == 0]
        raise ValueError(
            f"model.width={config.width} does not divide by model.num_heads={config.num_heads}. "
            f"Choose num_heads from {good}, or give model.head_dim as well."
        )
    kv_heads = config.num_kv_heads or config.num_heads
    if config.num_heads % kv_heads:
        good = [n for n in range(1, config.num_heads + 1) if config.num_heads % n == 0]
        raise ValueError(
            f"model.num_kv_heads={kv_heads} does not divide model.num_heads={config.num_heads}: "
            f"every group of queries shares one key. Choose num_kv_heads from {good}."
        )
    for name in ("residual_dropout", "attention_dropout", "embedding_dropout"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"model.{name}={getattr(config, name)} is not a probability. Choose 0 <= {name} < 1; 0 turns it off.")
    for name in ("attention_softcap", "logit_softcap", "init_std", "attention_scale", "norm_epsilon"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            off = " None turns it off." if name.endswith("softcap") else ""
            raise ValueError(f"model.{name}={value} must be positive.{off}")


def _check_choices(config: ModelConfig) -> None:
    for name, choices in CHOICES.items():
        value = getattr(config, name)
        if value not in choices:
            near = difflib.get_close_matches(str(value), [c for c in choices if c], n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"Unknown model.{name}={value!r}. Choose one of: {', '.join(map(str, choices))}.{hint}")
    if config.block != "sequential" and config.norm_placement != "pre":
        raise ValueError(
            f"model.block={config.block!r} with model.norm_placement={config.norm_placement!r} is not a published block. "
            "Set norm_placement='pre', or block='sequential'."
        )


def _check_positions(config: ModelConfig) -> None:
    rotated = config.head_size * config.rope_fraction
    if config.positions == "rope" and (not 0 < config.rope_fraction <= 1 or int(rotated) % 2 or int(rotated) == 0):
        raise ValueError(
            f"model.rope_fraction={config.rope_fraction} of model.head_dim={config.head_dim} rotates {rotated:g} dims. "
            "It must be an even number from 2 to head_dim: change either."
        )
    for name in ("rope_theta", "local_rope_theta"):
        theta = getattr(config, name)
        if theta is not None and not theta > 0:
            raise ValueError(f"model.{name}={theta!r} is not a base of frequencies. Give a number above 0, such as 10000.")
    scaling = config.rope_scaling_dict
    if scaling is not None:
        factor = scaling.get("factor", 1.0)
        if not (isinstance(factor, int | float) and factor > 0):
            raise ValueError(f"model.rope_scaling: factor={factor!r}. Give a number above 0: by how much the context grows.")
        kind = scaling.get("rope_type", scaling.get("type"))
        if kind not in ROPE_SCALINGS:
            raise ValueError(
                f"Unknown rope_type {kind!r} in model.rope_scaling. Choose one of: {', '.join(ROPE_SCALINGS)}; or set it to None."
            )
        if config.positions != "rope":
            raise ValueError(
                f"model.rope_scaling is set but model.positions={config.positions!r}. Set positions='rope', or rope_scaling=None."
            )


def _check_layers(config: ModelConfig) -> None:
    unknown = [kind for kind in config.layer_pattern if kind not in LAYER_KINDS]
    if unknown or not config.layer_pattern:
        raise ValueError(f"model.layer_pattern={config.layer_pattern} must be a non-empty list of: {', '.join(LAYER_KINDS)}.")
    local = "local" in config.layer_pattern
    if local and (config.window is None or config.window < 1):
        raise ValueError(
            f"model.layer_pattern has 'local' layers, so model.window={config.window} must be >= 1. Set it, or layer_pattern=('global',)."
        )
    if not local and config.window is not None:
        raise ValueError(
            f"model.window={config.window} has no 'local' layer to work in. Set model.layer_pattern=('local',), or window=None."
        )
