"""What the engine compiles: rows of a fixed number of slots, prompts that go in, steps that go on."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.models import cache as caches
from jaxllm.models.model import Model
from jaxllm.parallel import rules
from jaxllm.sampling.decode import Rows, decode_step, seen_in
from jaxllm.sampling.logits import Sampling


class Running(NamedTuple):
    """What is on the device between two blocks."""

    rows: Rows
    limits: jax.Array  # int32 [B], a row ends when it has this many tokens


class Programs:
    """The compiled functions, each once for every shape that is met; they stay with the object."""

    def __init__(
        self,
        model: Model,
        sampling: Sampling,
        *,
        slots: int,
        length: int,
        chunk: int = 512,
        block: int = 16,
        prefill: int | None = None,
        page: int = 0,
        num_pages: int | None = None,
    ):
        """Compiles nothing yet.

        Args:
          model: a decoder.
          sampling: how tokens are drawn.
          slots: rows that decode together.
          length: the most tokens of a row, prompt and continuation.
          chunk: tokens of a prompt that go through the model at once.
          block: steps between two looks at who has finished.
          prefill: prompts that go through the model at once; None: four, or as many as the mesh has parts of a batch.
          page: tokens in a page of a shared pool; 0: every slot has room for `length` tokens of its own.
          num_pages: pages of the pool; None: enough for all slots. With fewer, the newest row gives way when they run out, and comes back.

        Raises:
          ValueError: a pool that cannot hold a single row, or rows that the mesh cannot deal out.
        """
        ways = rules.ways("batch")
        prefill = -(-min(4, slots) // ways) * ways if prefill is None else prefill
        if slots < 1 or slots % ways or prefill < 1 or prefill % ways:
            raise ValueError(f"slots={slots} and prefill={prefill} must be at least 1 and multiples of replica*fsdp={ways}.")
        most = -(-length // page) if page else 0
        self.num_pages = (slots * most if num_pages is None else num_pages) if page else 0
        if page and self.num_pages < most:
            raise ValueError(f"{self.num_pages} pages of {page} tokens do not hold one row of {length}. Give at least {most} pages.")
        self.model, self.sampling, self.slots, self.length, self.page = model, sampling, slots, length, page
        self.chunk, self.block, self.rows = chunk, block, prefill
        self.evictions = 0  # rows that gave way so far
        self._first = jax.jit(functools.partial(self._prefill, fresh=True), donate_argnums=1)
        self._next = jax.jit(functools.partial(self._prefill, fresh=False), donate_argnums=1)
        self._empty = jax.jit(self._empty_small, static_argnums=0)
        self._admit = jax.jit(self._place, donate_argnums=0)
        self._steps = jax.jit(self._decode_block, donate_argnums=1)
        self._start = jax.jit(self._running)
        self._taken = jax.jit(lambda cache, row: caches.taken(model.config, cache, row))

    def _running(self) -> Running:
        cache = self.model.init_cache(self.slots, self.length, page=self.page, num_pages=self.num_pages)
        zeros = jnp.zeros(self.slots, jnp.int32)
        seen = jnp.zeros((self.slots, self.model.config.vocab_size), bool) if self.sampling.repetition_penalty != 1.0 else None
        return Running(Rows(cache, zeros, zeros, zeros.astype(bool), seen), zeros)

    def _empty_small(self, width: int) -> caches.Cache:
        return self.model.init_cache(self.rows, width, chunk=min(width, self.chunk))

    def _prefill(self, params, cache, tokens, counts, *, fresh):
        return self.model.decode(params, tokens, cache, counts=counts, fresh=fresh)[1]

    def _place(self, running: Running, source, origin, slots, last, ids, limits, pages, known, lengths) -> Running:
        rows = running.rows
        cache = caches.moved(rows.cache, source, origin, slots, pages)
        put = lambda old, new: old.at[slots].set(new, mode="drop")  # noqa: E731
        alive = put(rows.alive, True)
        seen = rows.seen if rows.seen is None else put(rows.seen, seen_in(known, lengths, rows.seen.shape[1]))
        return Running(Rows(cache, put(rows.tokens, last), put(rows.ids, ids), alive, seen), put(running.limits, limits))

    def _decode_block(self, params, running: Running, rng, pages, alive):
        """Up to `block` steps; returns [block, B] of tokens and log-probabilities, and which of them were alive."""
        rows = running.rows._replace(cache=running.rows.cache._replace(pages=pages), alive=alive)
        shape = (self.block, self.slots)
        out = (jnp.zeros(shape, jnp.int32), jnp.zeros(shape), jnp.zeros(shape), jnp.zeros(shape, bool))

        def body(carry):
            index, rows, out = carry
            after, found = decode_step(self.model, params, self.sampling, rng, rows)
            after = after._replace(alive=after.alive & (after.cache.lengths + 1 < running.limits))
            out = tuple(table.at[index].set(x) for table, x in zip(out, (*found, rows.alive), strict=True))
            return index + 1, after, out

        _, rows, out = jax.lax.while_loop(lambda c: (c[0] < self.block) & c[1].alive.any(), body, (jnp.int32(0), rows, out))
        whole = jax.tree.map(lambda x: rules.constrain(x, *(None,) * x.ndim), (out, rows.alive))  # every process gets all of it
        return Running(rows, running.limits), *whole
