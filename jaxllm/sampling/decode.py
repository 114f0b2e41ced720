"""Prefill and decode a batch of prompts wholly inside jit, token in, token out."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.models.model import Model
from jaxllm.sampling.logits import filter_logits, sample_token


class Generated(NamedTuple):
    """What was sampled."""

    tokens: jax.Array  # int32 [B, max_new_tokens]; what follows a row's end is 0
    log_probs: jax.Array  # float32 [B, max_new_tokens] under the model itself, before any filter; 0 after the end
    lengths: jax.Array  # int32 [B], tokens written, a stop token included


class _Carry(NamedTuple):
    written: jax.Array  # int32 [], how many tokens every row has been given
    logits: jax.Array  # float32 [B, V] for the next token
    cache: Any
    alive: jax.Array  # bool [B]
    out: Generated


def generate(
    model: Model,
    params: Any,
    tokens: jax.Array,
    lengths: jax.Array,
    rng: jax.Array,
    rows: jax.Array,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop_ids: tuple[int, ...] = (),
    num_ids: int | None = None,
) -> Generated:
    """Continues every prompt until a stop token or `max_new_tokens`.

    A draw is a pure function of (rng, row id, position): neither the batch a prompt stands in nor its padding changes it.

    Args:
      model: a decoder.
      params: its parameters.
      tokens: int32 [B, T], prompts padded on the right.
      lengths: int32 [B], real tokens of each prompt, at least 1.
      rng: a key.
      rows: int32 [B], an id for each prompt.
      max_new_tokens: how many tokens to write at most.
      temperature: 0 always takes the likeliest token.
      top_k: see `filter_logits`.
      top_p: see `filter_logits`.
      stop_ids: token ids that end a row; the stop token itself is kept.
      num_ids: ids of the tokenizer, which may be fewer than the model's: those from here on are never drawn; None: all may be.
    """
    batch, width = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), tokens.shape)
    segments = (positions < lengths[:, None]).astype(jnp.int32)
    cache = model.init_cache(batch, width + max_new_tokens)
    hidden, cache = model.decode(params, tokens, cache, segments=segments, positions=positions)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
    keys = jax.vmap(lambda row: jax.random.fold_in(rng, row))(rows)

    def draw(logits, index):
        if num_ids is not None:
            logits = jnp.where(jnp.arange(logits.shape[-1]) < num_ids, logits, -jnp.inf)
        if temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        at = jax.vmap(jax.random.fold_in)(keys, lengths + index)
        return sample_token(filter_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p), at)

    def body(carry: _Carry) -> _Carry:
        token = draw(carry.logits, carry.written)
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(carry.logits), token[:, None], axis=1)[:, 0]
        out = Generated(
            carry.out.tokens.at[:, carry.written].set(jnp.where(carry.alive, token, 0)),
            carry.out.log_probs.at[:, carry.written].set(jnp.where(carry.alive, log_prob, 0.0)),
            carry.out.lengths + carry.alive,
        )
        alive = carry.alive & ~jnp.isin(token, jnp.array(stop_ids, jnp.int32)) if stop_ids else carry.alive
        hidden, cache = model.decode(
            params,
            token[:, None],
            carry.cache,
            segments=jnp.ones((batch, 1), jnp.int32),
            positions=(lengths + carry.written)[:, None],
        )
        return _Carry(carry.written + 1, model.logits(params, hidden[:, 0]), cache, alive, out)

    empty = jnp.zeros((batch, max_new_tokens))
    out = Generated(empty.astype(jnp.int32), empty, jnp.zeros(batch, jnp.int32))
    start = _Carry(jnp.int32(0), model.logits(params, last[:, 0]), cache, jnp.ones(batch, bool), out)
    return jax.lax.while_loop(lambda c: (c.written < max_new_tokens) & c.alive.any(), body, start).out
