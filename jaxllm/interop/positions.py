"""Rotary positions in a config.json: `rope_parameters` of transformers 5, and the keys of earlier versions."""

from typing import Any

from jaxllm.interop.given import Given, Part
from jaxllm.models.config import ROPE_SCALINGS, ModelConfig

ENTRIES = (  # of a scaling, besides its type
    "factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
)


def _table(given: Given, kind: str | None = None) -> dict[str, Any]:
    """The rotary settings, wherever they are; those of a kind of layers where each has its own (Gemma 3)."""
    found = given.get("rope_parameters", None) or {}
    if kind is not None:
        found = found.get(kind, {})
    old = (given.get("rope_scaling", None) or {}) if kind != "sliding_attention" else {}
    return {**found, **old}


def _scaling(given: Given, table: dict[str, Any]) -> dict[str, Any] | None:
    kind = table.get("rope_type", table.get("type", "default"))
    if kind not in ("default", *ROPE_SCALINGS):
        raise given.refusal("rope_type", kind, f"jaxllm computes: default, {', '.join(ROPE_SCALINGS)}")
    unknown = sorted(set(table) - {*ENTRIES, "rope_type", "type", "rope_theta", "partial_rotary_factor"})
    if unknown:
        raise given.refusal(f"rope_parameters.{unknown[0]}", table[unknown[0]], f"jaxllm computes: {', '.join(ENTRIES)}")
    if kind == "default":
        return None
    entries = {name: table[name] for name in ENTRIES if table.get(name) is not None}
    if kind in ("dynamic", "yarn"):
        entries.setdefault("original_max_position_embeddings", given.get("max_position_embeddings"))
    return {"rope_type": kind, **entries}


def _rope(theta_key: str = "rope_theta", share_key: str = "partial_rotary_factor", share: float = 1.0, shared: bool = False) -> Part:
    """Rotary positions of all layers alike.

    Args:
      theta_key, share_key: what earlier versions call the base and the share of a head that is rotated.
      share: the share where nothing is said.
      shared: whether the family rotates other shares than all of it.
    """

    def read(given: Given) -> dict[str, Any]:
        table = _table(given)
        theta = table.get("rope_theta", given.get(theta_key, 10_000.0))
        rotated = table.get("partial_rotary_factor", given.get(share_key, share))
        if rotated != 1.0 and not shared:
            raise given.refusal(share_key, rotated, "this family rotates whole heads")
        return {"rope_theta": theta, "rope_fraction": rotated, "rope_scaling": _scaling(given, table)}

    def write(config: ModelConfig) -> dict[str, Any]:
        more = {"partial_rotary_factor": config.rope_fraction} if shared else {}
        old = {theta_key: config.rope_theta} | ({share_key: config.rope_fraction} if shared else {})
        scaling = _typed(config)
        new = {"rope_type": "default", **scaling, "rope_theta": config.rope_theta, **more}
        return {"rope_parameters": new, **old} | ({"rope_scaling": scaling} if scaling else {})

    return Part(read, write)


def _typed(config: ModelConfig) -> dict[str, Any]:
    """The scaling with its type under today's name."""
    scaling = dict(config.rope_scaling_dict or {})
    return {"rope_type": scaling.pop("rope_type", scaling.pop("type", "default")), **scaling} if scaling else {}


def _read_global_local(given: Given) -> dict[str, Any]:
    whole, local = _table(given, "full_attention"), _table(given, "sliding_attention")
    old = given.get("rope_theta", 1_000_000.0), given.get("rope_local_base_freq", 10_000.0)
    if local.get("rope_type", "default") != "default":
        raise given.refusal("rope_parameters.sliding_attention", local, "layers of sliding_attention are rotated without a scaling")
    return {
        "rope_theta": whole.get("rope_theta", old[0]),
        "rope_scaling": _scaling(given, whole),
        "local_rope_theta": local.get("rope_theta", old[1]),
    }


def _write_global_local(config: ModelConfig) -> dict[str, Any]:
    scaling = _typed(config)
    local = config.rope_theta if config.local_rope_theta is None else config.local_rope_theta
    tables = {
        "full_attention": {"rope_type": "default", **scaling, "rope_theta": config.rope_theta},
        "sliding_attention": {"rope_type": "default", "rope_theta": local},
    }
    old = {"rope_theta": config.rope_theta, "rope_local_base_freq": local}
    return {"rope_parameters": tables, **old} | ({"rope_scaling": scaling} if scaling else {})


ROPE = _rope()
PHI3_ROPE = _rope(shared=True)
NEOX_ROPE = _rope("rotary_emb_base", "rotary_pct", 0.25, shared=True)
GLOBAL_LOCAL = Part(_read_global_local, _write_global_local)  # Gemma 3
NO_ROPE = Part(lambda given: {}, lambda config: {})
