"""The decoder: embedding, L blocks, final norm; blocks scanned over their repeating pattern, or one by one."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from jaxllm.models.adapted import COLLECTION, entry
from jaxllm.models.attention import Attention
from jaxllm.models.cache import Entry
from jaxllm.models.config import ModelConfig
from jaxllm.models.layers import MLP, Compute, Embedding, Norm, again, standard_deviations
from jaxllm.models.remat import rematerialized
from jaxllm.models.tokens import Tokens
from jaxllm.ops.dropout import drop_channels, token_codes
from jaxllm.parallel import rules

Layers = dict[str, Any]  # a cache's `layers`
Carried = tuple[jax.Array, Entry | None]


def dropped(x: jax.Array, rate: float, rng: jax.Array | None, tokens: Tokens, compute: Compute) -> jax.Array:
    """x [B, T, D] after dropout; without a key it is x. The backward pass draws again from the tokens' codes: no mask is kept."""
    if rng is None or not rate:
        return x
    assert tokens.rows is not None
    codes = token_codes(rng, tokens.rows, tokens.segments, tokens.positions)
    return again(lambda x, codes: drop_channels(x, codes, rate), compute)(x, codes)


class Block(nn.Module):
    """One layer, [B, T, D] -> [B, T, D].

    Attributes:
      kind: "global" or "local".
    """

    config: ModelConfig
    compute: Compute
    kind: str

    @nn.compact
    def __call__(self, x: jax.Array, layer: jax.Array | int, cache: Entry | None, tokens: Tokens) -> Carried:
        """`layer` counts from 0; it names the layer's random draws."""
        config = self.config
        keys: tuple[Any, ...] = (None,) * 3
        if tokens.rng is not None:
            own = jax.random.fold_in(tokens.rng, layer)
            tokens, keys = tokens._replace(rng=own), tuple(jax.random.split(own, 3))
        x = checkpoint_name(x, "block_input")
        shared = self._norm("norm", x) if config.block == "parallel_shared" else None
        attended, cache = self._attend(x if shared is None else shared, tokens, cache, keys)
        if config.block == "sequential":
            x = self._join(x, attended, "attention_norm")
            x = self._join(x, self._feed_forward(x, tokens, keys), "mlp_norm")
        else:
            x = x + attended + self._feed_forward(x if shared is None else shared, tokens, keys)
        return rules.constrain(x, "batch", "sequence", "embed"), cache

    def _norm(self, name: str, x: jax.Array) -> jax.Array:
        return Norm(self.config, self.compute, (self.config.width,), name=name)(x)

    def _attend(self, x, tokens: Tokens, cache, keys) -> Carried:
        x = self._before("attention_norm", x)
        y, cache = Attention(self.config, self.compute, self.kind, name="attention")(x, tokens, cache, keys[0])
        y = dropped(self._after("attention_output_norm", y), self.config.residual_dropout, keys[1], tokens, self.compute)
        return self._adapted("after_attention", y), cache

    def _feed_forward(self, x, tokens: Tokens, keys) -> jax.Array:
        x = self._before("mlp_norm", x)
        y = MLP(self.config, self.compute, name="mlp")(x, tokens)
        beside = entry(self, "beside_mlp")
        y = y if beside is None else y + beside(x, self.compute)
        y = dropped(self._after("mlp_output_norm", y), self.config.residual_dropout, keys[2], tokens, self.compute)
        return self._adapted("after_mlp", y)

    def _before(self, name: str, x: jax.Array) -> jax.Array:
        own = self.config.norm_placement in ("pre", "sandwich") and self.config.block != "parallel_shared"
        return self._norm(name, x) if own else x

    def _after(self, name: str, x: jax.Array) -> jax.Array:
        return self._norm(name, x) if self.config.norm_placement in ("output", "sandwich") else x

    def _adapted(self, name: str, y: jax.Array) -> jax.Array:
        found = entry(self, name)
        return y if found is None else y + found(y, self.compute)

    def _join(self, x: jax.Array, y: jax.Array, name: str) -> jax.Array:
        """Adds a part's output to the residual stream; norm_placement "post" normalises the sum."""
        return self._norm(name, x + y) if self.config.norm_placement == "post" else x + y


class Pattern(nn.Module):
    """The blocks of one repetition of `layer_pattern`: the body of the scan."""

    config: ModelConfig
    compute: Compute
    remat: str

    @nn.compact
    def __call__(self, carried: tuple[jax.Array, Layers | None], repeat: jax.Array, tokens: Tokens) -> tuple[Any, None]:
        """The stacks of the cache are carried whole: a layer writes its few tokens into its own part of them."""
        x, caches = carried
        block, compute = rematerialized(Block, self.remat, scanned=True), dataclasses.replace(self.compute, scanned=True)
        for place, kind in enumerate(self.config.layer_pattern):
            entry = None if caches is None else Entry(caches[str(place)], (repeat,))
            layer = repeat * len(self.config.layer_pattern) + place
            x, entry = block(self.config, compute, kind, name=str(place))(x, layer, entry, tokens)
            if caches is not None and entry is not None:
                caches = caches | {str(place): entry.layer}
        return (x, caches), None


class Blocks(nn.Module):
    """All L blocks. Parameters: {"scanned": {place: stacked}, "<layer>": one of the remainder}, or {"<layer>": ...} for every layer.

    Attributes:
      repeats: how many repetitions of the pattern are stacked where layers are; None: all. The cache is always that of all of them.
    """

    config: ModelConfig
    compute: Compute
    remat: str
    scan_layers: bool
    repeats: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, caches: Layers | None, tokens: Tokens) -> tuple[jax.Array, Layers | None]:
        config = self.config
        written: Layers = {name: dict(layer) if name == "scanned" else layer for name, layer in (caches or {}).items()}
        stacked = config.num_repeats if self.repeats is None else self.repeats
        if self.scan_layers and stacked:
            scan = nn.scan(
                Pattern,
                variable_axes={"params": 0, COLLECTION: 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast),
                length=stacked,
            )
            carried = (x, written.get("scanned"))
            (x, written["scanned"]), _ = scan(config, self.compute, self.remat, name="scanned")(carried, jnp.arange(stacked), tokens)
        block = rematerialized(Block, self.remat, scanned=False)
        for layer in range(stacked * len(config.layer_pattern) if self.scan_layers else 0, config.num_layers):
            row, place = divmod(layer, len(config.layer_pattern))
            among = self.scan_layers and row < config.num_repeats  # its cache lies in the stack
            held: Layers = written["scanned"] if among and caches is not None else written
            name = str(place) if among else str(layer)
            entry = None if caches is None else Entry(held[name], (jnp.int32(row),) if among else ())
            x, entry = block(config, self.compute, config.layer_kind(layer), name=str(layer))(x, layer, entry, tokens)
            if entry is not None:
                held[name] = entry.layer
        return x, None if caches is None else written


class Head(nn.Module):
    """The vocabulary's own matrix [D, V], where it is not the token embedding's."""

    config: ModelConfig
    compute: Compute

    @nn.compact
    def __call__(self) -> jax.Array:
        std, _ = standard_deviations(self.config, self.config.width)
        shape = (self.config.width, self.config.vocab_size)
        return self.param("kernel", nn.initializers.normal(std), shape, self.compute.param_dtype)


class Stem(nn.Module):
    """What is there once: embedding, final norm and head, round whatever blocks are handed in."""

    config: ModelConfig
    compute: Compute
    layers: nn.Module | None = None

    @nn.compact
    def __call__(self, tokens: jax.Array, context: Tokens, caches: Layers | None = None) -> tuple[jax.Array, Layers | None]:
        config = self.config
        x = Embedding(config, self.compute, name="embedding")(tokens, context.positions)
        key = None if context.rng is None else jax.random.fold_in(context.rng, config.num_layers)
        x = dropped(x, config.embedding_dropout, key, context, self.compute)
        if self.layers is not None:
            x, caches = self.layers(x, caches, context)
        if config.norm_placement != "post":
            x = Norm(config, self.compute, (config.width,), name="final_norm")(x)
        if self.is_initializing() and not config.tied_embeddings:
            Head(config, self.compute, name="head")()
        return x, caches


def transformer(config: ModelConfig, compute: Compute, remat: str, scan_layers: bool, repeats: int | None = None) -> Stem:
    """The whole decoder as one module: `apply({"params": params}, tokens, context, caches) -> (hidden [B, T, D], caches)`."""
    return Stem(config, compute, Blocks(config, compute, remat, scan_layers, repeats))
