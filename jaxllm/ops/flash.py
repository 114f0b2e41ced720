"""Fused attention kernels of others, on local blocks: splash attention (Pallas) on TPU, cuDNN on GPU, and what each of them refuses."""

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from jaxllm.ops.blockwise import RESIDUALS, Rule
from jaxllm.parallel import flags, rules

if TYPE_CHECKING:
    from jaxllm.ops.attention import Asked

SPLASH_BLOCK = 512  # a longer sequence is padded to a multiple of it
LANES = 128  # a splash block is a multiple of it


class Blocks(NamedTuple):
    """Tokens in a block along queries (`q`) and keys (`kv`): of splash, its gradient of keys and values, that of queries."""

    q: int = SPLASH_BLOCK
    kv: int = SPLASH_BLOCK
    q_dkv: int = SPLASH_BLOCK
    kv_dkv: int = SPLASH_BLOCK
    q_dq: int = SPLASH_BLOCK
    kv_dq: int = SPLASH_BLOCK

    def within(self, length: int) -> "Blocks":
        """The same, each at most `length` and halved until it divides it; all are powers of two or `length` itself."""
        return Blocks(*(next(size >> i for i in range(size) if length % (size >> i) == 0) for size in (min(s, length) for s in self)))


# generation -> blocks, where published ones differ from 512: AI-Hypercomputer/maxtext, benchmarks/maxtext_trillium_model_configs.py
SPLASH_BLOCKS: dict[str | None, Blocks] = {"v6e": Blocks(q=1024, q_dkv=2048, q_dq=2048)}


def splash_refuses(asked: "Asked") -> str | None:
    """Why splash attention cannot do this, or None.

    Its masks are static and by index, its segments by value: it needs queries and keys that are the same tokens, in position order.
    """
    if not asked.same_tokens:
        return "queries and keys are not the same tokens"
    if not asked.ordered:
        return "the mesh cuts the sequence over `context`, where its order may be permuted"
    if asked.rule.kind == "prefix":
        return "its masks are static and a prefix is data"
    return "it drops no probabilities" if asked.rule.dropout else None


def cudnn_refuses(asked: "Asked") -> str | None:
    """Why cuDNN attention cannot do this, or None."""
    refused = splash_refuses(asked)
    if refused:
        return refused
    if not asked.whole_rows:
        return "it has no segment ids"
    if asked.rule.softcap is not None:
        return "it has no soft-cap"
    if asked.dtype not in ("bfloat16", "float16"):
        return f"it has no {asked.dtype}, only bfloat16 and float16"
    return f"its heads are at most 128 and a multiple of 8, not {asked.head_dim}" if asked.head_dim > 128 or asked.head_dim % 8 else None


def splash(rule: Rule, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, blocks: Blocks | None = None) -> jax.Array:
    """Splash attention on local blocks; T is padded to its blocks here. Off a TPU it is interpreted.

    Args:
      rule: what is static.
      q: [B, T, N, H].
      k: [B, T, K, H].
      v: [B, T, K, H].
      segments: int32 [B, T], 0 is padding.
      blocks: None: those of `SPLASH_BLOCKS` for the devices at hand.

    Returns:
      [B, T, N, H]; padding gives 0.
    """
    length = q.shape[1]
    padding = -length % min(SPLASH_BLOCK, -(-length // LANES) * LANES)
    blocks = (blocks or SPLASH_BLOCKS.get(flags.generation(rules.device_kind()), Blocks())).within(length + padding)
    pad = lambda x: jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))  # noqa: E731
    q, k, v = (pad(x).swapaxes(1, 2) for x in (q * rule.scale, k, v))
    ids = pad(segments)
    interpret = rules.platform() != "tpu"
    kernel = _splash_kernel(q.shape[1], length + padding, blocks, rule.kind, rule.window, rule.softcap, interpret)
    out = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, kernels.SegmentIds(ids, ids)))(q, k, v, ids)
    out = out.swapaxes(1, 2)[:, :length]
    return jnp.where((segments != 0)[:, :, None, None], out, 0).astype(
        q.dtype
    )  # padding sees padding in splash: segment 0 is like any other


@functools.lru_cache(maxsize=64)
def _splash_kernel(num_heads: int, length: int, blocks: Blocks, kind: str, window: int | None, softcap: float | None, interpret: bool):
    """The kernel of one static mask. Cached with its tables on the host: they take seconds to build for long sequences."""
    shape = (length, length)
    if window is not None:
        mask: masks.Mask = masks.LocalMask(shape, (window - 1, 0 if kind == "causal" else window - 1), 0)
    else:
        mask = masks.CausalMask(shape) if kind == "causal" else masks.FullMask(shape)
    sizes = kernels.BlockSizes(
        block_q=blocks.q,
        block_kv=blocks.kv,
        block_q_dkv=blocks.q_dkv,
        block_kv_dkv=blocks.kv_dkv,
        block_q_dq=blocks.q_dq,
        block_kv_dq=blocks.kv_dq,
    )
    with jax.ensure_compile_time_eval():
        kernel = kernels.make_splash_mha(
            masks.MultiHeadMask([mask] * num_heads),
            block_sizes=sizes,
            attn_logits_soft_cap=softcap,
            residual_checkpoint_name=RESIDUALS,
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        return jax.tree.map(np.asarray, kernel)


def cudnn(rule: Rule, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """cuDNN's flash attention on local blocks (shapes as for `splash`); every row is one document."""
    window = None if rule.window is None else (rule.window - 1, 0 if rule.kind == "causal" else rule.window - 1)
    causal = rule.kind == "causal"
    return jax.nn.dot_product_attention(q, k, v, scale=rule.scale, is_causal=causal, local_window_size=window, implementation="cudnn")
