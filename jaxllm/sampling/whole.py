"""Decoders that write whole continuations inside one jit, beam search and speculative decoding, behind the engine's door."""

import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jaxllm.models.model import Model
from jaxllm.sampling import beam, speculative
from jaxllm.sampling.engine import Ends, Finished, Request, bucket
from jaxllm.sampling.logits import Sampling

MANY = 1 << 10  # samples of one prompt at most: each (prompt, sample) has a row id of its own, prompt * MANY + sample


class Whole:
    """Runs requests in batches of `slots` rows, whose prompts share a bucket of lengths; a batch ends when its last row does."""

    length: int  # the most tokens of a prompt and its continuation
    passes = 0  # of the model, over all rows, where they are counted
    tokens = 0  # that were written

    def __init__(self, sampling: Sampling, *, slots: int, length: int, max_new_tokens: int, rows_apart: bool):
        """Compiles nothing yet.

        Args:
          sampling: how tokens are drawn.
          slots: rows of a batch.
          length: the most tokens of a prompt and its continuation.
          max_new_tokens: of every request.
          rows_apart: every sample of a prompt is a row of its own; else one row finds all of them.
        """
        self.sampling, self.slots, self.length, self.max_new_tokens, self.rows_apart = sampling, slots, length, max_new_tokens, rows_apart

    def decode(self, params: Any, tokens: np.ndarray, lengths: np.ndarray, rng: jax.Array, ids: np.ndarray) -> tuple[np.ndarray, ...]:
        """R continuations of each row: tokens, two log-probabilities [slots, R, max_new_tokens], lengths [slots, R].

        The last result is how many passes of the model each row took, [slots]; 0: not counted.
        """
        raise NotImplementedError

    def run(self, params: Any, requests: Iterable[Request], rng: jax.Array, ends: Ends | None = None) -> Iterator[Finished]:
        """Yields every continuation; see `Engine.run`.

        Raises:
          ValueError: the model gives NaN; a request that chooses an adapter.
        """
        requests = (_plain(request) for request in requests)
        apart = ((r.prompt, (id,)) for r in requests for id in r.ids) if self.rows_apart else ((r.prompt, r.ids) for r in requests)
        for _, same in itertools.groupby(apart, key=lambda row: bucket(len(row[0]))):
            while batch := list(itertools.islice(same, self.slots)):
                yield from self._batch(params, batch, rng, ends)

    def _batch(self, params: Any, batch: list[tuple[np.ndarray, tuple[int, ...]]], rng: jax.Array, ends: Ends | None) -> Iterator[Finished]:
        width = min(bucket(len(batch[0][0])), self.length - self.max_new_tokens)
        tokens, sizes = np.zeros((self.slots, width), np.int32), np.ones(self.slots, np.int32)
        ids = np.zeros(self.slots, np.int32)  # rows that nobody asked for repeat the first prompt, and end when it does
        for row in range(self.slots):
            prompt, own = batch[row] if row < len(batch) else batch[0]
            tokens[row, : len(prompt)], sizes[row], ids[row] = prompt, len(prompt), own[0]
        written, full, filtered, lengths, passes = jax.device_get(self.decode(params, tokens, sizes, rng, ids))
        self.passes, self.tokens = self.passes + int(passes[: len(batch)].sum()), self.tokens + int(lengths[: len(batch)].sum())
        for row, (_, own) in enumerate(batch):
            for id in own:
                place = 0 if self.rows_apart else id % MANY
                end = int(lengths[row, place])
                found = written[row, place, :end].tolist()
                if not end or not np.isfinite(full[row, place, :end]).all():  # a beam of NaN is never kept
                    raise ValueError(f"The model gave row {id} a log-probability that is no number: its weights or its cache hold NaN.")
                keep = ends(id, found) if ends else None
                cut = slice(0, end if keep is None else keep)
                stopped = keep is not None or found[-1] in self.sampling.stop_ids
                yield Finished(id, found[cut], full[row, place, cut].tolist(), filtered[row, place, cut].tolist(), stopped)


def _plain(request: Request) -> Request:
    if request.adapter:
        raise ValueError(f"A request for adapter={request.adapter}: this decoder goes through the first alone. Sample with the engine.")
    return request


class Beams(Whole):
    """Beam search: the samples of a prompt are its likeliest continuations, the best first; params are the model's."""

    def __init__(self, model: Model, sampling: Sampling, *, num_beams: int, slots: int, length: int, max_new_tokens: int):
        """See `beam.beam_search`; the ids of a request's samples are their places in the order of beams, modulo `MANY`.

        Raises:
          ValueError: more beams than tokens: not all of them would find a continuation.
        """
        ids = model.config.vocab_size if sampling.num_ids is None else sampling.num_ids
        if num_beams > min(ids, MANY):
            raise ValueError(f"sample.num_beams={num_beams} are more than the {min(ids, MANY)} that {ids} tokens have. Give fewer.")
        super().__init__(sampling, slots=slots, length=length, max_new_tokens=max_new_tokens, rows_apart=False)
        how: dict[str, Any] = {
            "num_beams": num_beams,
            "max_new_tokens": max_new_tokens,
            "stop_ids": sampling.stop_ids,
            "num_ids": sampling.num_ids,
        }
        self._search = jax.jit(functools.partial(beam.beam_search, model, **how))

    def decode(self, params, tokens, lengths, rng, ids):
        """See `Whole.decode`."""
        found = self._search(params, tokens, lengths)
        return found.tokens, found.log_probs, found.log_probs, found.lengths, np.zeros(self.slots, np.int32)


class Speculative(Whole):
    """Speculative decoding; params are a pair, the model's and the draft's."""

    def __init__(self, model: Model, draft: Model, sampling: Sampling, *, num_draft: int, slots: int, length: int, max_new_tokens: int):
        """See `speculative.generate`."""
        super().__init__(sampling, slots=slots, length=length, max_new_tokens=max_new_tokens, rows_apart=True)
        speculative.check(model, draft, num_draft, sampling)
        how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_draft": num_draft, "sampling": sampling}

        def both(params, *given):
            return speculative.generate(model, params[0], draft, params[1], *given, **how)

        self._generate = jax.jit(both)

    def decode(self, params, tokens, lengths, rng, ids):
        """See `Whole.decode`."""
        found, passes = self._generate(params, tokens, lengths, rng, ids)
        return *(x[:, None] for x in (found.tokens, found.log_probs, found.filtered_log_probs, found.lengths)), passes
