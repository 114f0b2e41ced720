"""The one door to attention: a table from backend to kernel, the mesh round each of them, and the plain form that tests compare with."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import logging

from jaxllm.ops import blockwise, flash, visibility
from jaxllm.ops import ring as ring_forms
from jaxllm.ops.blockwise import Rule
from jaxllm.ops.dropout import kept_pairs, token_codes
from jaxllm.ops.ring import zigzag_order
from jaxllm.ops.visibility import Side
from jaxllm.parallel import rules

__all__ = ["attention", "zigzag_order"]

# backend -> (kernels in order of preference). The first that can do what is asked is taken; `xla` can do everything. On a GPU that is all
# training, whose rows are packed: cuDNN has no segment ids and is left with rows of one document (docs/decisions.md says what there is).
PREFERRED = {"tpu": ("splash", "xla"), "gpu": ("cudnn", "xla"), "cpu": ("xla",)}
BLOCK = {"tpu": 512, "gpu": 512, "cpu": 128}  # tokens in a block of the `xla` form


@dataclasses.dataclass(frozen=True)
class Asked:
    """One call of `attention`, as far as it is known while tracing: what a kernel looks at to refuse."""

    rule: Rule
    head_dim: int
    dtype: str
    same_tokens: bool  # queries and keys are the same tokens
    ordered: bool  # they are, and within a document the index along T orders the positions: the mesh does not cut the sequence
    whole_rows: bool  # no segments were given: every row is one document without padding


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    q_positions: jax.Array | None = None,
    kv_positions: jax.Array | None = None,
    q_segments: jax.Array | None = None,
    kv_segments: jax.Array | None = None,
    kind: str = "causal",
    prefix: jax.Array | None = None,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    implementation: str = "auto",
    context: str = "gather",
    dropout: float = 0.0,
    rng: jax.Array | None = None,
    rows: jax.Array | None = None,
    block: int | None = None,
) -> jax.Array:
    """Scaled dot-product attention with grouped queries (arXiv 1706.03762, 2305.13245), on whatever devices there are.

    A token attends to those of its own document that `kind` and `window` allow (`visibility.visible`); one that sees nothing gets 0.
    Queries and keys are the same tokens when positions and segments are the same arrays (the same Python objects) on both sides, or None
    on both. Only then are fused kernels and the context axis used, and such tokens are in the order of their positions unless the mesh cuts
    the sequence (axis `context`): there they may be in any order, zigzag for balance.

    Args:
      q: [B, T, N, H].
      k: [B, S, K, H], N a multiple of K.
      v: [B, S, K, H].
      q_positions: int32 [B, T], counted within the document; None: 0..T-1.
      kv_positions: int32 [B, S]; None: 0..S-1.
      q_segments: int32 [B, T], 0 is padding; None: one document.
      kv_segments: int32 [B, S]; for a cache, 0 where it is not filled.
      kind: "causal", "bidirectional" or "prefix".
      prefix: bool [B, S], keys that everyone in the document sees; only for kind "prefix".
      window: how many positions back are visible, the token's own included; None: all.
      softcap: scores become softcap * tanh(scores / softcap).
      scale: what scores are multiplied by first; None: H ** -0.5.
      implementation: "auto" or a row of `KERNELS`; one that cannot do what is asked gives way to "xla", and that is logged.
      context: "gather" or "ring": how keys and values reach the queries where the mesh cuts the sequence.
      dropout: the share of probabilities that are dropped; needs `rng` and `rows`.
      rng: a key, the same for all rows.
      rows: int32 [B], each row's index in the global batch; dropout depends on it, on document and position, not on the batch's split.
      block: tokens in a block of the "xla" form; None: by backend.

    Returns:
      [B, T, N, H] in q's dtype. Softmax is float32.

    Raises:
      ValueError: an unknown kind, implementation or context, or shapes and arguments that do not belong together.
    """
    _check(q, k, kind, prefix, window, implementation, context, dropout, rng, rows)
    T, H = q.shape[1], q.shape[3]
    rule = Rule(kind, window, softcap, H**-0.5 if scale is None else scale, dropout, block or BLOCK.get(rules.platform(), 512))
    same = k.shape[1] == T and kv_positions is q_positions and kv_segments is q_segments
    asked = Asked(rule, H, q.dtype.name, same, same and rules.axis_size("context") == 1, q_segments is None and kv_segments is None)
    queries, keys = _side(q, q_positions, q_segments, None), _side(k, kv_positions, kv_segments, prefix)
    if dropout:
        assert rng is not None and rows is not None  # _check has said so to the user
        queries = queries._replace(codes=token_codes(rng, rows, queries.segments, queries.positions, salt=1))
        keys = keys._replace(codes=token_codes(rng, rows, keys.segments, keys.positions, salt=2))
    return KERNELS[choose(implementation, asked)](asked, context, q, k, v, queries, keys)


def reference(asked: Asked, context: str, q, k, v, queries: Side, keys: Side) -> jax.Array:
    """Every score at once, in float32: the definition, quadratic in memory."""
    rule, num_groups = asked.rule, q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x.astype(jnp.float32), num_groups, axis=2) for x in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q.astype(jnp.float32), k) * rule.scale
    if rule.softcap is not None:
        scores = rule.softcap * jnp.tanh(scores / rule.softcap)
    mask = visibility.visible(queries, keys, rule.kind, rule.window)[:, None]
    scores = jnp.where(mask, scores, -jnp.inf)
    probs = jnp.where(mask, jax.nn.softmax(jnp.where(jnp.any(mask, -1, keepdims=True), scores, 0.0), axis=-1), 0.0)
    if rule.dropout:
        heads = jnp.arange(q.shape[2], dtype=jnp.int32)[:, None]
        probs = jnp.where(kept_pairs(queries.codes, keys.codes, heads, rule.dropout)[:, :, 0], probs / (1 - rule.dropout), 0.0)
    return jnp.einsum("bnts,bsnh->btnh", probs, v).astype(q.dtype)


def _xla(asked: Asked, context: str, q, k, v, queries: Side, keys: Side) -> jax.Array:
    """The blockwise form, on each device's own rows, heads and part of the sequence."""

    def local(q, k, v, queries, keys, heads):
        k, v = (_own_kv_heads(x, q.shape[2], N, K) for x in (k, v))
        args = (blockwise.group(q, k.shape[2]), k.swapaxes(1, 2), v.swapaxes(1, 2), queries, keys, heads.reshape(k.shape[2], -1))
        if cut:
            return ring_forms.FORMS[context]("context", asked.rule, *args)
        return blockwise.attend(asked.rule, *args)

    N, K = q.shape[2], k.shape[2]
    ways = rules.axis_size("context")
    cut = ways > 1 and asked.same_tokens and q.shape[1] % ways == 0
    return _over_mesh(local, cut, q, k, v, queries, keys, jnp.arange(N, dtype=jnp.int32))


def _splash(asked: Asked, context: str, q, k, v, queries: Side, keys: Side) -> jax.Array:
    N, K = q.shape[2], k.shape[2]

    def local(q, k, v, queries, keys, heads):
        k, v = (_own_kv_heads(x, q.shape[2], N, K) for x in (k, v))
        return flash.splash(asked.rule, q, k, v, queries.segments)

    return _over_mesh(local, False, q, k, v, queries, keys, jnp.arange(N, dtype=jnp.int32))


def _cudnn(asked: Asked, context: str, q, k, v, queries: Side, keys: Side) -> jax.Array:
    N, K = q.shape[2], k.shape[2]

    def local(q, k, v, queries, keys, heads):
        k, v = (_own_kv_heads(x, q.shape[2], N, K) for x in (k, v))
        return flash.cudnn(asked.rule, q, k, v)

    return _over_mesh(local, False, q, k, v, queries, keys, jnp.arange(N, dtype=jnp.int32))


KERNELS: dict[str, Callable[..., jax.Array]] = {"reference": reference, "xla": _xla, "splash": _splash, "cudnn": _cudnn}
REFUSES: dict[str, Callable[[Asked], str | None]] = {"splash": flash.splash_refuses, "cudnn": flash.cudnn_refuses}


def choose(implementation: str, asked: Asked) -> str:
    """The kernel to run: the first of the table, or the one asked for, that does not refuse; else `xla`, and why is logged once."""
    wanted = PREFERRED.get(rules.platform(), ("xla",)) if implementation == "auto" else (implementation, "xla")
    for name in wanted:
        reason = REFUSES[name](asked) if name in REFUSES else None
        if reason is None:
            return name
        _log_once(f"attention: {name} cannot do this ({reason}); using xla instead. kind={asked.rule.kind} window={asked.rule.window}")
    return "xla"


@functools.cache
def _log_once(line: str) -> None:
    logging.warning("%s", line)


def _over_mesh(local: Callable, cut: bool, q, k, v, queries: Side, keys: Side, heads) -> jax.Array:
    """Runs `local` on each device's rows and heads, and its part of the sequence where that is cut; dims that do not divide stay whole."""
    sequence = "sequence" if cut else None
    N, K, ways = q.shape[2], k.shape[2], rules.axis_size("tensor")
    batch = "batch" if q.shape[0] % rules.ways("batch") == 0 else None
    spread = N % ways == 0 and (K % ways == 0 or ways % K == 0)
    q_heads, kv_heads = ("heads" if spread else None), ("kv_heads" if spread and K % ways == 0 else None)
    q_axes, kv_axes = (batch, sequence, q_heads, None), (batch, sequence, kv_heads, None)
    side = lambda tokens: jax.tree.map(lambda _: (batch, sequence), tokens)  # noqa: E731
    axes = (q_axes, kv_axes, kv_axes, side(queries), side(keys), (q_heads,))
    return rules.shard_map(local, axes, q_axes)(q, k, v, queries, keys, heads)


def _own_kv_heads(x: jax.Array, local_heads: int, num_heads: int, num_kv_heads: int) -> jax.Array:
    """The kv head of this device's query heads, where there are fewer kv heads than devices and each therefore holds them all."""
    if local_heads == num_heads or x.shape[2] < num_kv_heads:
        return x
    first = jax.lax.axis_index("tensor") * local_heads // (num_heads // num_kv_heads)
    return jax.lax.dynamic_slice_in_dim(x, first, max(1, local_heads * num_kv_heads // num_heads), axis=2)


def _side(x: jax.Array, positions, segments, prefix) -> Side:
    B, T = x.shape[:2]
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
    return Side(positions, jnp.ones((B, T), jnp.int32) if segments is None else segments, prefix)


def _check(q, k, kind, prefix, window, implementation, context, dropout, rng, rows) -> None:
    for name, value, choices in (
        ("kind", kind, visibility.KINDS),
        ("implementation", implementation, ("auto", *KERNELS)),
        ("context", context, tuple(ring_forms.FORMS)),
    ):
        if value not in choices:
            raise ValueError(f"Unknown attention {name} {value!r}. Choose one of: {', '.join(choices)}.")
    if q.shape[2] % k.shape[2] or q.shape[-1] != k.shape[-1]:
        raise ValueError(f"q {q.shape} and k {k.shape} do not belong together: N must be a multiple of K, and H the same.")
    if (prefix is None) == (kind == "prefix"):
        raise ValueError(
            f"kind={kind!r} with prefix {'missing' if prefix is None else 'given'}. A prefix belongs to kind 'prefix', and to no other."
        )
    if window is not None and window < 1:
        raise ValueError(f"window={window} sees nothing. Give at least 1, or None for no window.")
    if dropout and (rng is None or rows is None):
        raise ValueError(f"dropout={dropout} needs rng and rows. Give both, or dropout=0.")
