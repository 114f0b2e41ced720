"""Our parameter names <-> theirs: one table per family, read in both directions."""

import difflib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from jaxllm.interop.views import Weight

Table = Mapping[str, Weight]  # their name -> what of ours is in it


def _one(ours: str, pattern: str = "d -> d") -> Weight:
    return Weight((ours,), (pattern,))


def _both(theirs: str, ours: str) -> dict[str, Weight]:
    """Weight and bias of a LayerNorm."""
    return {f"{theirs}.weight": _one(f"{ours}/scale"), f"{theirs}.bias": _one(f"{ours}/bias")}


QUERY, KEY, VALUE = (f"attention/{name}" for name in ("query", "key", "value"))
KERNELS, BIASES = (tuple(f"{name}/{what}" for name in (QUERY, KEY, VALUE)) for what in ("kernel", "bias"))
Q, K = "(n h) d -> d n h", "(k h) d -> d k h"

# Rows that a model has no parameters for are passed over: biases, norms of queries and keys, the head of tied embeddings.
LLAMA: Table = {
    "self_attn.q_proj.weight": _one(f"{QUERY}/kernel", Q),
    "self_attn.k_proj.weight": _one(f"{KEY}/kernel", K),
    "self_attn.v_proj.weight": _one(f"{VALUE}/kernel", K),
    "self_attn.o_proj.weight": _one("attention/output/kernel", "d (n h) -> n h d"),
    "self_attn.q_proj.bias": _one(f"{QUERY}/bias", "(n h) -> n h"),
    "self_attn.k_proj.bias": _one(f"{KEY}/bias", "(k h) -> k h"),
    "self_attn.v_proj.bias": _one(f"{VALUE}/bias", "(k h) -> k h"),
    "self_attn.o_proj.bias": _one("attention/output/bias"),
    "mlp.gate_proj.weight": _one("mlp/gate/kernel", "f d -> d f"),
    "mlp.up_proj.weight": _one("mlp/up/kernel", "f d -> d f"),
    "mlp.down_proj.weight": _one("mlp/down/kernel", "d f -> f d"),
    "mlp.gate_proj.bias": _one("mlp/gate/bias", "f -> f"),
    "mlp.up_proj.bias": _one("mlp/up/bias", "f -> f"),
    "mlp.down_proj.bias": _one("mlp/down/bias"),
    "input_layernorm.weight": _one("attention_norm/scale"),
    "post_attention_layernorm.weight": _one("mlp_norm/scale"),
}
HEAD_NORMS: Table = {
    "self_attn.q_norm.weight": _one(f"{QUERY}_norm/scale", "h -> h"),
    "self_attn.k_norm.weight": _one(f"{KEY}_norm/scale", "h -> h"),
}
PROJECTION_NORMS: Table = {
    "self_attn.q_norm.weight": _one(f"{QUERY}_norm/scale", "(n h) -> n h"),
    "self_attn.k_norm.weight": _one(f"{KEY}_norm/scale", "(k h) -> k h"),
}
OUTPUT_NORMS: Table = {
    "post_attention_layernorm.weight": _one("attention_output_norm/scale"),
    "post_feedforward_layernorm.weight": _one("mlp_output_norm/scale"),
}
GEMMA: Table = {**LLAMA, **OUTPUT_NORMS, "pre_feedforward_layernorm.weight": _one("mlp_norm/scale")}
OLMO2: Table = {**{name: row for name, row in LLAMA.items() if name != "input_layernorm.weight"}, **OUTPUT_NORMS, **PROJECTION_NORMS}
PHI3: Table = {
    **{name: row for name, row in LLAMA.items() if not name.split(".")[1].startswith(("q_", "k_", "v_", "gate_", "up_"))},
    "self_attn.qkv_proj.weight": Weight(KERNELS, (Q, K, K)),
    "mlp.gate_up_proj.weight": Weight(("mlp/gate/kernel", "mlp/up/kernel"), ("(* f) d -> d f",) * 2),
}
GPT2: Table = {  # its kernels lie as ours do, [in, out]
    "attn.c_attn.weight": Weight(KERNELS, ("d (* n h) -> d n h",) * 3),
    "attn.c_attn.bias": Weight(BIASES, ("(* n h) -> n h",) * 3),
    "attn.c_proj.weight": _one("attention/output/kernel", "(n h) d -> n h d"),
    "attn.c_proj.bias": _one("attention/output/bias"),
    "mlp.c_fc.weight": _one("mlp/up/kernel", "d f -> d f"),
    "mlp.c_fc.bias": _one("mlp/up/bias", "f -> f"),
    "mlp.c_proj.weight": _one("mlp/down/kernel", "f d -> f d"),
    "mlp.c_proj.bias": _one("mlp/down/bias"),
    **_both("ln_1", "attention_norm"),
    **_both("ln_2", "mlp_norm"),
}
NEOX: Table = {  # q, k and v of a head lie together
    "attention.query_key_value.weight": Weight(KERNELS, ("(n * h) d -> d n h",) * 3),
    "attention.query_key_value.bias": Weight(BIASES, ("(n * h) -> n h",) * 3),
    "attention.dense.weight": _one("attention/output/kernel", "d (n h) -> n h d"),
    "attention.dense.bias": _one("attention/output/bias"),
    "mlp.dense_h_to_4h.weight": _one("mlp/up/kernel", "f d -> d f"),
    "mlp.dense_h_to_4h.bias": _one("mlp/up/bias", "f -> f"),
    "mlp.dense_4h_to_h.weight": _one("mlp/down/kernel", "d f -> f d"),
    "mlp.dense_4h_to_h.bias": _one("mlp/down/bias"),
    **_both("input_layernorm", "attention_norm"),
    **_both("post_attention_layernorm", "mlp_norm"),
}


class Names(NamedTuple):
    """The names of one family.

    Attributes:
      block: the tensors of a layer.
      embedding, norm: of the token embedding, of the final norm (without .weight).
      prefixes: what may stand before all names but the head's; the first is written.
      layers: what stands before a layer's names.
      heads: what the head may be called; the first is written.
      positions: of the learned positions.
      buffers: regexes of what older files hold and no model learns: masks, frequencies.
      others: regexes of the parts of a larger model, images say, that are left out and said.
    """

    block: Table
    embedding: str = "embed_tokens.weight"
    norm: str = "norm"
    prefixes: tuple[str, ...] = ("model.", "")
    layers: str = "layers.{}."
    heads: tuple[str, ...] = ("lm_head.weight",)
    positions: str = ""
    buffers: tuple[str, ...] = (r".*rotary_emb\.inv_freq",)
    others: tuple[str, ...] = ()

    def stem(self) -> dict[str, Weight]:
        """The tensors that are there once, without the head."""
        rows = {self.embedding: _one("embedding/tokens", "v d -> v d"), **_both(self.norm, "final_norm")}
        return rows | ({self.positions: _one("embedding/positions", "p d -> p d")} if self.positions else {})


HEAD = _one("head/kernel", "v d -> d v")
IMAGES = r"(.*\.)?(vision_tower|multi_modal_projector)\..*"

NAMES: dict[str, Names] = {
    "gpt2": Names(
        GPT2,
        embedding="wte.weight",
        norm="ln_f",
        prefixes=("transformer.", ""),
        layers="h.{}.",
        positions="wpe.weight",
        buffers=(r".*\.attn\.(masked_)?bias",),
    ),
    "gpt_neox": Names(
        NEOX,
        embedding="embed_in.weight",
        norm="final_layer_norm",
        prefixes=("gpt_neox.", ""),
        heads=("embed_out.weight", "lm_head.weight"),
        buffers=(r".*\.attention\.(masked_)?bias", r".*rotary_emb\.inv_freq"),
    ),
    "llama": Names(LLAMA),
    "mistral": Names(LLAMA),
    "qwen2": Names(LLAMA),
    "qwen3": Names({**LLAMA, **HEAD_NORMS}),
    "gemma2": Names(GEMMA),
    "gemma3_text": Names(
        {**GEMMA, **HEAD_NORMS},
        prefixes=("model.", "", "language_model.model.", "model.language_model."),
        heads=("lm_head.weight", "language_model.lm_head.weight"),
        others=(IMAGES,),
    ),
    "olmo2": Names(OLMO2),
    "phi3": Names(PHI3),
}


def known(family: object) -> str:
    """The family itself, if it is one.

    Raises:
      ValueError: it is none; the nearest and all are named.
    """
    if not isinstance(family, str) or family not in NAMES:
        near = difflib.get_close_matches(str(family).lower(), NAMES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown model family {family!r}. Choose one of: {', '.join(NAMES)}.{hint}")
    return family


def table(family: str, ours: Iterable[str], num_layers: int, prefix: str | None = None, head: str | None = None) -> dict[str, Weight]:
    """Every tensor of a model under its full name, with the full names of ours in it.

    Args:
      family: a key of `NAMES`.
      ours: the parameters of the model, layers one by one: "layers/0/mlp/up/kernel".
      num_layers: L.
      prefix, head: as they are in the files at hand; None: as the family is written.

    Raises:
      ValueError: the family has no tensor for one of ours.
    """
    names, ours = NAMES[known(family)], set(ours)
    prefix = names.prefixes[0] if prefix is None else prefix
    rows = {f"{prefix}{theirs}": weight for theirs, weight in names.stem().items()}
    for layer in range(num_layers):
        for theirs, weight in names.block.items():
            full = tuple(f"layers/{layer}/{name}" for name in weight.ours)
            rows[f"{prefix}{names.layers.format(layer)}{theirs}"] = weight._replace(ours=full)
    rows[head or names.heads[0]] = HEAD
    rows = {theirs: weight for theirs, weight in rows.items() if ours.issuperset(weight.ours)}
    homeless = sorted(ours.difference(*(weight.ours for weight in rows.values())))
    if homeless:
        raise ValueError(f"The family {family!r} has no tensor for {homeless[0]} ({len(homeless)} in all). Choose another with --family.")
    return rows
