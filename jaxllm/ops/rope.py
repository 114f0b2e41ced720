"""Rotary positions: the frequencies of every published scaling, and the half-rotation that applies them."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Scaling = Mapping[str, Any]


def rope_frequencies(
    head_dim: int,
    *,
    theta: float = 10_000.0,
    scaling: Scaling | None = None,
    partial: float = 1.0,
    sequence_length: int | None = None,
) -> tuple[np.ndarray, float]:
    """The rotation frequencies of one attention head (RoFormer, arXiv 2104.09864, and its published extensions).

    Args:
      head_dim: H.
      theta: the base.
      scaling: None, or a mapping with the names of Hugging Face's `rope_scaling`: `rope_type` (or `type`) names a row of `SCALINGS`,
        the other entries are that scaling's own.
      partial: the share of the head that is rotated, from its first dim on (0.25 in GPT-NeoX).
      sequence_length: the length that dynamic NTK scales for, other scalings ignore it. It is one number for a whole run, because cached
        keys are already rotated; None means no longer than the original length, where dynamic NTK changes nothing.

    Returns:
      Frequencies, float32 [rotated dims / 2], and the factor that cosines and sines are multiplied by (1.0 except with YaRN).

    Raises:
      ValueError: an unknown scaling, one of its entries is missing, or a number of rotated dims that is not even.
    """
    dim = int(head_dim * partial)
    if dim < 2 or dim % 2:
        raise ValueError(
            f"rotary partial={partial} of head_dim={head_dim} rotates {dim} dims. Choose a share that gives an even number, at least 2."
        )
    kind = "default" if scaling is None else scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in SCALINGS:
        raise ValueError(f"Unknown rope scaling {kind!r}. Choose one of: {', '.join(SCALINGS)}.")
    inv_freq, factor = SCALINGS[kind](dim, theta, _Entries(kind, scaling or {}), sequence_length)
    return inv_freq.astype(np.float32), float(factor)


def apply_rope(x: jax.Array, positions: jax.Array, inv_freq: jax.Array | np.ndarray, factor: float = 1.0) -> jax.Array:
    """Rotates each pair (x[i], x[i + rotated/2]) by position * inv_freq[i] ("half-rotation", as in GPT-NeoX and Llama checkpoints).

    Args:
      x: [B, T, N, H]; dims from 2 * len(inv_freq) on pass unchanged.
      positions: int32 [B, T].
      inv_freq: float32 [rotated/2].
      factor: what cosines and sines are multiplied by.

    Returns:
      The same shape and dtype; angles, cosines and products are float32.
    """
    half = inv_freq.shape[0]
    angles = positions.astype(jnp.float32)[..., None, None] * jnp.asarray(inv_freq, jnp.float32)
    cos, sin = jnp.cos(angles) * factor, jnp.sin(angles) * factor
    first, second, rest = jnp.split(x, [half, 2 * half], axis=-1)
    first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*(r.astype(x.dtype) for r in rotated), rest], axis=-1)


class _Entries:
    """The entries of one `rope_scaling`, with an error that says which one is missing."""

    def __init__(self, kind: str, entries: Scaling):
        self.kind, self.entries = kind, entries

    def __getitem__(self, name: str) -> float:
        value = self.entries.get(name)
        if value is None:
            raise ValueError(f"rope_scaling {self.kind!r} needs {name!r}; it has {sorted(self.entries)}.")
        return value

    def get(self, name: str, default: Any) -> Any:
        value = self.entries.get(name)
        return default if value is None else value


def _plain(dim: int, theta: float) -> np.ndarray:
    return theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)


def _default(dim: int, theta: float, entries: _Entries, length: int | None) -> tuple[np.ndarray, float]:
    return _plain(dim, theta), 1.0


def _linear(dim: int, theta: float, entries: _Entries, length: int | None) -> tuple[np.ndarray, float]:
    """Position interpolation (arXiv 2306.15595)."""
    return _plain(dim, theta) / entries["factor"], 1.0


def _dynamic(dim: int, theta: float, entries: _Entries, length: int | None) -> tuple[np.ndarray, float]:
    """Dynamic NTK: the base grows with the length, as Hugging Face has it."""
    original, factor = entries["original_max_position_embeddings"], entries["factor"]
    length = max(length or 0, int(original))
    base = theta * (factor * length / original - (factor - 1)) ** (dim / (dim - 2))
    return _plain(dim, base), 1.0


def _yarn(dim: int, theta: float, entries: _Entries, length: int | None) -> tuple[np.ndarray, float]:
    """YaRN (arXiv 2309.00071): eq. 22 to 24 for the ramp, eq. 25 for the factor on attention; `mscale` as DeepSeek's checkpoints use it."""
    factor, original = entries["factor"], entries["original_max_position_embeddings"]

    def dim_that_turns(turns: float) -> float:  # within the original length
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dim_that_turns(entries.get("beta_fast", 32)), dim_that_turns(entries.get("beta_slow", 1))
    if entries.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0, 1)  # 0: turns often, keep; 1: turns rarely, interpolate
    inv_freq = _plain(dim, theta) * ((1 - ramp) + ramp / factor)

    def magnitude(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    mscale, of_all = entries.get("mscale", None), entries.get("mscale_all_dim", None)
    default = magnitude(mscale) / magnitude(of_all) if mscale and of_all else magnitude(1.0)
    return inv_freq, entries.get("attention_factor", default)


def _llama3(dim: int, theta: float, entries: _Entries, length: int | None) -> tuple[np.ndarray, float]:
    """Llama 3.1: long waves are divided by `factor`, short ones kept, those between blended (arXiv 2407.21783 and the released code)."""
    factor, original = entries["factor"], entries["original_max_position_embeddings"]
    low, high = entries["low_freq_factor"], entries["high_freq_factor"]
    inv_freq = _plain(dim, theta)
    turns = original * inv_freq / (2 * math.pi)  # within the original length
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return inv_freq * (keep + (1 - keep) / factor), 1.0


SCALINGS: dict[str, Callable[[int, float, _Entries, int | None], tuple[np.ndarray, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
}
