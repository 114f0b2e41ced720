"""Continuous batching: a fixed number of rows decode together; finished ones make room for waiting ones between blocks of steps."""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxllm.models import cache as caches
from jaxllm.models.adapted import num_soft, num_stacked
from jaxllm.sampling.programs import Programs

SMALLEST = 16  # tokens in the smallest bucket of prompt lengths; each next one is twice as long


class Request(NamedTuple):
    """A prompt to be continued, once for each id."""

    prompt: np.ndarray  # int32 [n], at least one token
    ids: tuple[int, ...]  # what names each sample's noise: a draw depends on (rng, id, position) alone
    max_new_tokens: int
    adapter: int = 0  # which of several stacked adapters the row goes through (`models.stacks.stack`); -1: the base alone


class Finished(NamedTuple):
    """One continuation."""

    id: int
    tokens: list[int]  # a stop token included
    log_probs: list[float]  # under the model itself
    filtered_log_probs: list[float]  # under the distribution that was drawn from
    stopped: bool  # by a stop token or by `ends`, and not by length


# (id, tokens so far) -> how many of them to keep, which ends the row, or None: it goes on. Asked after every block.
Ends = Callable[[int, Sequence[int]], int | None]


class _Waiting(NamedTuple):
    """A row that is ready for a slot: its tokens but the last are in `source`."""

    source: caches.Cache | None  # None: the row is in a slot
    origin: int
    id: int
    known: list[int]  # every token so far
    written: list[tuple[int, float, float]]  # those that were sampled, with their log-probabilities
    limit: int


def bucket(length: int) -> int:
    """The smallest power-of-two bucket that holds a prompt: a few shapes, compiled once each."""
    return max(SMALLEST, 1 << (length - 1).bit_length())


class Engine(Programs):
    """Samples any number of requests through `slots` rows (see `Programs`); parameters are given to each run.

    Scheduling changes no token: a row's numbers depend on its own tokens, and its noise on its id and position.
    """

    def run(self, params: Any, requests: Iterable[Request | None], rng: jax.Array, ends: Ends | None = None) -> Iterator[Finished]:
        """Yields every continuation as it ends.

        Args:
          params: the model's parameters; nothing of them is copied.
          requests: taken as there is room, so they may be made while the engine runs, of what it has yielded so far; None: none just now.
          rng: a key; fold the step of a training run into it.
          ends: what else ends a row, such as a stop string.

        Raises:
          ValueError: see `check`; or the model gives NaN.
        """
        books = _Run(self, params, iter(requests), rng, ends)
        yield from books.finished()
        self.evictions += books.evictions

    def check(self, request: Request, params: Any = None) -> None:
        """Refuses what cannot be sampled.

        Args:
          request: to be looked at.
          params: the model's, which may bring soft tokens and several adapters; None: neither.

        Raises:
          ValueError: a prompt that is empty, does not fit or has ids that the model has not; a request without ids; an unknown adapter.
        """
        size, vocab = len(request.prompt), self.model.config.vocab_size + (0 if params is None else num_soft(params))
        stacked = 0 if params is None else num_stacked(params)
        if request.adapter and not -1 <= request.adapter < stacked:
            raise ValueError(f"A request for adapter={request.adapter} where {stacked} are stacked. Give 0 to {max(stacked - 1, 0)}.")
        if not request.ids or not all(0 <= id < 2**31 for id in request.ids):
            raise ValueError(f"A request with ids={request.ids}. Give at least one id, from 0 to {2**31 - 1}, for each sample.")
        if size and not 0 <= min(request.prompt) <= max(request.prompt) < vocab:
            raise ValueError(f"A prompt with ids from {min(request.prompt)} to {max(request.prompt)}; the model has 0 to {vocab - 1}.")
        if not size:
            raise ValueError("An empty prompt. Give at least one token, the beginning-of-text token for example.")
        if request.max_new_tokens < 1 or size + request.max_new_tokens > self.length:
            raise ValueError(
                f"A prompt of {size} tokens and max_new_tokens={request.max_new_tokens} do not fit a length of {self.length}."
                f" Give at least 1 and at most {max(0, self.length - size)} new tokens, or a longer engine."
            )


class _Run:
    """The host's books of one `Engine.run`."""

    def __init__(self, engine: Engine, params: Any, requests: Iterator[Request | None], rng: jax.Array, ends: Ends | None):
        self.engine, self.params, self.requests, self.rng, self.ends = engine, params, requests, rng, ends
        self.running = engine._start()
        self.held: dict[int, _Waiting] = {}  # slot -> its row; `known` and `written` grow
        self.order: list[int] = []  # slots by admission, the oldest first
        self.waiting: collections.deque[_Waiting] = collections.deque()
        self.next: Request | None = None
        self.free_pages = list(range(engine.num_pages))
        self.evictions = 0
        self.pages = np.full((engine.slots, -(-engine.length // engine.page) if engine.page else 0), engine.num_pages, np.int32)

    def finished(self) -> Iterator[Finished]:
        while True:
            self._admit_all()
            if not self.held:
                assert not self.waiting, "a row waits and no slot is taken"
                return
            self._give_pages()
            yield from self._decode()

    def _admit_all(self) -> None:
        while len(self.held) < self.engine.slots:
            if not self.waiting:
                self._prefill_some()
            if not self.waiting or not self._room(self.waiting[0]):
                return
            self._admit_some()

    def _prefill_some(self) -> None:
        """The next prompts that share the first one's bucket go through the model together."""
        engine = self.engine
        batch: list[Request] = []
        while len(batch) < engine.rows and (request := self._peek()) is not None:
            if batch and bucket(len(request.prompt)) != bucket(len(batch[0].prompt)):
                break
            batch.append(request)
            self.next = None
        if not batch:
            return
        width = min(bucket(len(batch[0].prompt)), engine.length)
        tokens, sizes = np.zeros((engine.rows, width), np.int32), np.zeros(engine.rows, np.int32)
        for row, request in enumerate(batch):
            tokens[row, : len(request.prompt)], sizes[row] = request.prompt, len(request.prompt) - 1
        adapters = np.array([request.adapter for request in batch] + [0] * (engine.rows - len(batch)), np.int32)
        source, step = engine._empty(width)._replace(adapter=adapters), min(width, engine.chunk)
        for first in range(0, max(1, int(sizes.max())), step):
            part = np.zeros((engine.rows, step), np.int32)
            part[:, : width - first] = tokens[:, first : first + step]
            program = engine._next if first else engine._first
            source = program(self.params, source, part, np.clip(sizes - first, 0, step))
        for row, request in enumerate(batch):
            limit = len(request.prompt) + request.max_new_tokens
            self.waiting += [_Waiting(source, row, id, request.prompt.tolist(), [], limit) for id in request.ids]

    def _peek(self) -> Request | None:
        if self.next is None and (found := next(self.requests, None)) is not None:
            self.engine.check(found, self.params)
            self.next = found
        return self.next

    def _room(self, row: _Waiting) -> bool:
        return not self.engine.page or len(self.free_pages) >= self._needed(self._soon(row))

    def _soon(self, row: _Waiting) -> int:
        """How many tokens the row has after the next block, at most."""
        return min(len(row.known) + self.engine.block, row.limit)

    def _needed(self, tokens: int) -> int:
        return -(-tokens // self.engine.page)

    def _admit_some(self) -> None:
        """Waiting rows of one source go into free slots."""
        engine, source = self.engine, self.waiting[0].source
        free = [slot for slot in range(engine.slots) if slot not in self.held]
        chosen: list[tuple[int, _Waiting]] = []
        while free and self.waiting and self.waiting[0].source is source and self._room(self.waiting[0]):
            slot, row = free.pop(0), self.waiting.popleft()
            self._take_pages(slot, len(row.known))
            chosen.append((slot, row))
        table = np.zeros((5, engine.slots), np.int32)
        table[1] = engine.slots  # a slot that does not exist
        known = np.zeros((engine.slots, engine.length if self.running.rows.seen is not None else 0), np.int32)
        lengths = np.zeros(engine.slots, np.int32)
        for at, (slot, row) in enumerate(chosen):
            table[:, at] = row.origin, slot, row.known[-1], row.id, row.limit
            if known.size:
                known[at, : len(row.known)], lengths[at] = row.known, len(row.known)
            self.held[slot] = row._replace(known=list(row.known), written=list(row.written), source=None)
            self.order.append(slot)
        pages = self.pages[np.minimum(table[1], engine.slots - 1)] if engine.page else None
        self.running = engine._admit(self.running, source, *table, pages, known, lengths)

    def _take_pages(self, slot: int, tokens: int) -> bool:
        """Gives the slot pages for this many tokens; False where there are not enough."""
        if not self.engine.page:
            return True
        there = int((self.pages[slot] < self.engine.num_pages).sum())
        more = self._needed(tokens) - there
        if more > len(self.free_pages):
            return False
        for index in range(there, there + more):
            self.pages[slot, index] = self.free_pages.pop()
        return True

    def _give_pages(self) -> None:
        """Room for the tokens of the next block; where there is none, the newest row leaves, and waits with what it has."""
        for slot in list(self.order):
            while slot in self.held and not self._take_pages(
                slot, min(len(self.held[slot].known) + self.engine.block, self.held[slot].limit)
            ):
                newest = self.order[-1]
                row = self.held[newest]
                source = jax.device_get(self.engine._taken(self.running.rows.cache, newest))
                self._release(newest)
                self.evictions += 1
                self.waiting.appendleft(row._replace(source=source, origin=0))

    def _release(self, slot: int) -> None:
        del self.held[slot]
        self.order.remove(slot)
        if self.engine.page:
            self.free_pages += [int(page) for page in self.pages[slot] if page < self.engine.num_pages]
            self.pages[slot] = self.engine.num_pages

    def _decode(self) -> Iterator[Finished]:
        engine = self.engine
        alive = np.array([slot in self.held for slot in range(engine.slots)])
        pages = self.pages.copy() if engine.page else None
        self.running, out, still = engine._steps(self.params, self.running, self.rng, pages, alive)
        (*drawn, was_alive), still = jax.device_get((out, still))
        for slot in list(self.order):
            row, steps = self.held[slot], was_alive[:, slot]
            new = [table[steps, slot].tolist() for table in drawn]
            row.known.extend(new[0])
            row.written.extend(zip(*new, strict=True))
            if not np.isfinite(new[1]).all():
                raise ValueError(f"The model gave row {row.id} a log-probability that is no number: its weights or its cache hold NaN.")
            keep = self.ends(row.id, [token for token, *_ in row.written]) if self.ends else None
            if keep is not None or not still[slot]:
                self._release(slot)
                kept = row.written[:keep]
                tokens, log_probs, filtered = [x for x, _, _ in kept], [x for _, x, _ in kept], [x for _, _, x in kept]
                yield Finished(row.id, tokens, log_probs, filtered, keep is not None or tokens[-1] in engine.sampling.stop_ids)
