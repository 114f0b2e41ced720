"""Grouped-query self-attention of one layer: project, normalise, rotate, attend, project back; with or without a cache."""

import jax
from flax import linen as nn

from jaxllm.models import cache as caches
from jaxllm.models.adapted import entry
from jaxllm.models.config import ModelConfig
from jaxllm.models.layers import AXES, Compute, Dense, Norm, standard_deviations
from jaxllm.models.tokens import Tokens
from jaxllm.ops.attention import attention
from jaxllm.ops.cached import attend_cached
from jaxllm.ops.rope import apply_rope, rope_frequencies
from jaxllm.parallel import rules


class Attention(nn.Module):
    """[B, T, D] -> [B, T, D].

    Attributes:
      kind: of the layer, "global" or "local".
    """

    config: ModelConfig
    compute: Compute
    kind: str

    @nn.compact
    def __call__(
        self, x: jax.Array, tokens: Tokens, cache: caches.Entry | None, rng: jax.Array | None
    ) -> tuple[jax.Array, caches.Entry | None]:
        q, k, v = self._projected(x, tokens)
        if self.config.positions == "rope":
            frequencies = self._frequencies()
            q, k = apply_rope(q, tokens.positions, *frequencies), apply_rope(k, tokens.positions, *frequencies)
        prefix = entry(self, "prefix")
        if prefix is not None:
            k, v = prefix.replaced(k, v, tokens)
        if cache is not None and tokens.place is not None:
            cache = caches.write(cache, k, v, tokens.place)
        if cache is None or tokens.place is None or self.compute.fresh:
            y = self._attend(q, k, v, tokens, rng)
        else:
            y = self._attend_cached(q, cache, tokens.positions, tokens.place)
        return self._output(rules.constrain(y, "batch", "sequence", "heads", "head_dim"), tokens), cache

    def _projected(self, x: jax.Array, tokens: Tokens) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B, T, N, H], keys and values [B, T, K, H], with biases and norms, not rotated."""
        config = self.config
        std, _ = standard_deviations(config, config.width)

        def project(name, num_heads):
            shape = (num_heads, config.head_size)
            bias = shape if config.qkv_bias else None
            return Dense("btd,dnh->btnh", (config.width, *shape), AXES[f"{name}/kernel"], self.compute, std, bias, name=name)(
                x, tokens=tokens
            )

        q, k, v = project("query", config.num_heads), project("key", config.num_groups), project("value", config.num_groups)
        if config.qk_norm is not None:
            whole = config.qk_norm == "projection"
            q = Norm(config, self.compute, q.shape[-2:] if whole else q.shape[-1:], name="query_norm")(q)
            k = Norm(config, self.compute, k.shape[-2:] if whole else k.shape[-1:], name="key_norm")(k)
        q = rules.constrain(q, "batch", "sequence", "heads", "head_dim")
        k = rules.constrain(k, "batch", "sequence", "kv_heads", "head_dim")
        return q, k, rules.constrain(v, "batch", "sequence", "kv_heads", "head_dim")

    def _frequencies(self):
        config = self.config
        local = config.local_rope_theta if self.kind == "local" else None
        return rope_frequencies(
            config.head_size,
            theta=config.rope_theta if local is None else local,
            scaling=config.rope_scaling_dict if local is None else None,
            partial=config.rope_fraction,
            sequence_length=config.max_positions,
        )

    def _window(self) -> int | None:
        return self.config.window if self.kind == "local" else None

    def _attend_cached(self, q, cache: caches.Entry, positions: jax.Array, place: caches.Place) -> jax.Array:
        config = self.config
        keys, values, held = caches.read(cache, place)
        return attend_cached(
            q,
            keys,
            values,
            positions,
            held,
            prefix=place.prefix if self.compute.kind == "prefix" else None,
            window=self._window(),
            softcap=config.attention_softcap,
            scale=config.attention_scale,
        )

    def _attend(self, q, k, v, tokens: Tokens, rng) -> jax.Array:
        config = self.config
        dropout = 0.0 if rng is None else config.attention_dropout
        return attention(
            q,
            k,
            v,
            q_positions=tokens.positions,
            kv_positions=tokens.positions,
            q_segments=tokens.segments,
            kv_segments=tokens.segments,
            kind=self.compute.kind,
            prefix=tokens.prefix,
            window=self._window(),
            softcap=config.attention_softcap,
            scale=config.attention_scale,
            implementation=self.compute.attention,
            context=self.compute.context,
            dropout=dropout,
            rng=rng if dropout else None,
            rows=tokens.rows if dropout else None,
        )

    def _output(self, y: jax.Array, tokens: Tokens) -> jax.Array:
        config = self.config
        shape = (config.num_heads, config.head_size, config.width)
        _, std = standard_deviations(config, config.num_heads * config.head_size)
        bias = (config.width,) if config.output_bias else None
        return Dense("btnh,nhd->btd", shape, AXES["output/kernel"], self.compute, std, bias, name="output")(y, tokens=tokens)
