"""Log-likelihoods of continuations: what stands before them goes through the model once, however many continue it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.models import cache as caches
from jaxllm.models.model import Model
from jaxllm.parallel import rules

Ids = Sequence[int]
SHARED = 32  # tokens from which on a beginning that all texts have goes through the model once
WIDTHS = 16  # widths of batches are multiples of it below 128, and of an eighth of a power of two above: few programs, little padding
SPARE = 0.7  # a text joins a batch where it is padded by no more than this share of what it is alone


class Likelihood(NamedTuple):
    """Of one continuation."""

    log_prob: float  # nats, the sum over its tokens
    greedy: bool  # every token of it is the likeliest


class _Text(NamedTuple):
    """One beginning and its continuations; its last token belongs to what follows, as it predicts the first of it."""

    head: list[int]
    last: int
    continuations: list[tuple[int, list[int]]]  # (which pair, tokens)

    @property
    def longest(self) -> int:
        """Tokens of its longest continuation."""
        return max(len(tokens) for _, tokens in self.continuations)


def width(length: int) -> int:
    """The width of a batch whose longest row has this many tokens."""
    if length <= WIDTHS:
        return max(4, 1 << (length - 1).bit_length())
    step = max(WIDTHS, 1 << max(0, (length - 1).bit_length() - 3))
    return max(step, -(-length // step) * step)


class Likelihoods:
    """Scores any number of (beginning, continuation) pairs; compiled once for each bucket of widths.

    A batch is packed by length: texts with beginnings and continuations of like lengths stand together. The beginning that all of them
    share (the shots of a task) goes through the model once, each text's own beginning once, and only then its continuations, on copies of
    its cache. Of what comes out, only the tokens that are scored meet the vocabulary.
    """

    def __init__(self, model: Model, *, length: int | None = None, rows: int = 32, tokens: int = 8192):
        """Compiles nothing yet.

        Args:
          model: a decoder.
          length: the most tokens of a pair; None: the model's context.
          rows: continuations that are scored together at most.
          tokens: of a batch of beginnings at most.
        """
        self.model, self.length, self.rows, self.tokens = (
            model,
            min(length or model.config.max_positions, model.config.max_positions),
            rows,
            tokens,
        )
        self.ways = rules.ways("batch")
        self.programs: set[tuple[int, ...]] = set()  # the shapes that were met
        self._shared = jax.jit(self._read_shared, static_argnums=2)
        self._read = jax.jit(self._read_batch, static_argnums=3)
        self._score = jax.jit(self._score_tokens)

    def __call__(self, params: Any, pairs: Sequence[tuple[Ids, Ids]], tell: Callable[[int], None] = lambda done: None) -> list[Likelihood]:
        """The likelihood of every pair, in order.

        Args:
          params: the model's.
          pairs: a beginning of at least one token, a continuation of at least one.
          tell: is told how many pairs were done.

        Raises:
          ValueError: an empty part, a pair that is too long, or a model that gives NaN.
        """
        self._check(pairs)
        texts = _grouped(pairs)
        shared = self._common([text.head for text in texts])
        cache = self._shared(params, np.asarray([shared], np.int32), len(shared)) if shared else None
        found: list[Likelihood | None] = [None] * len(pairs)
        for batch in self._batches(texts, len(shared)):
            places, log_probs, greedy = self._run(params, cache, batch, len(shared))
            if not np.isfinite(log_probs).all():
                raise ValueError("The model gave a log-probability that is no number: its weights hold NaN.")
            for place, log_prob, best in zip(places, log_probs.tolist(), greedy.tolist(), strict=True):
                found[place] = Likelihood(log_prob, best)
            tell(len(places))
        return [one for one in found if one is not None]

    def _check(self, pairs: Sequence[tuple[Ids, Ids]]) -> None:
        for at, (before, after) in enumerate(pairs):
            if not len(before) or not len(after):
                raise ValueError(f"Pair {at} has an empty part. Give at least one token before and one after.")
            if len(before) + len(after) - 1 > self.length:
                raise ValueError(
                    f"Pair {at} has {len(before)} + {len(after)} tokens; the model reads {self.length}. Shorten its beginning."
                )

    def _common(self, heads: Sequence[list[int]]) -> list[int]:
        """The tokens that all heads begin with, if they are enough to be worth it."""
        first, last = min(heads, default=[]), max(heads, default=[])  # all others lie between them
        same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
        return list(first[:same]) if same >= SHARED and len(heads) > 1 else []

    def _batches(self, texts: list[_Text], shared: int) -> Iterator[list[_Text]]:
        """Texts of like lengths, each batch with at most `rows` continuations (or one text's)."""
        order = sorted(texts, key=lambda t: (width(t.longest), len(t.head), len(t.continuations)), reverse=True)
        batch: list[_Text] = []
        for text in order:
            if batch and not self._fits([*batch, text], shared):
                yield batch
                batch = []
            batch.append(text)
        if batch:
            yield batch

    def _fits(self, batch: list[_Text], shared: int) -> bool:
        count = sum(len(text.continuations) for text in batch)
        ends = width(max(text.longest for text in batch))
        own = [len(text.head) - shared for text in batch]
        heads = width(max(own)) if max(own) else 0
        last = len(batch[-1].continuations)
        alone = (width(own[-1]) if own[-1] else 0) + width(batch[-1].longest) * last
        padded = heads + ends * last <= (1 + SPARE) * alone
        return padded and count <= self.rows and ends * count <= self.tokens and heads * len(batch) <= self.tokens

    def _run(self, params: Any, cache: Any, batch: list[_Text], shared: int) -> tuple[list[int], np.ndarray, np.ndarray]:
        owners = [(row, place, tokens) for row, text in enumerate(batch) for place, tokens in text.continuations]
        own = max(len(text.head) for text in batch) - shared
        heads = min(width(own), self.length) if own else 0
        ends = min(width(max(len(tokens) for *_, tokens in owners)), self.length)
        rows, each = self._rounded(len(batch)), self._rounded(len(owners))
        before, counts = np.zeros((rows, heads), np.int32), np.zeros(rows, np.int32)
        for row, text in enumerate(batch):
            before[row, : len(text.head) - shared], counts[row] = text.head[shared:], len(text.head) - shared
        fed, wanted = np.zeros((each, ends), np.int32), np.zeros((each, ends), np.int32)
        origin, sizes = np.zeros(each, np.int32), np.zeros(each, np.int32)
        for at, (row, _, tokens) in enumerate(owners):
            fed[at, : len(tokens)], wanted[at, : len(tokens)] = [batch[row].last, *tokens[:-1]], tokens
            origin[at], sizes[at] = row, len(tokens)
        self.programs.add((rows, heads, each, ends, shared))
        hidden = self._read(params, cache, (before, counts, fed, origin, sizes), shared)
        scored = np.arange(ends) < sizes[:, None]
        picked = self._spread(np.flatnonzero(scored)), self._spread(wanted[scored])
        log_probs, correct = (x.reshape(-1)[: sizes.sum()] for x in jax.device_get(self._score(params, hidden, *picked)))
        first = np.cumsum([0, *sizes[: len(owners) - 1]])
        return [place for _, place, _ in owners], np.add.reduceat(log_probs, first), np.minimum.reduceat(correct, first) > 0

    def _spread(self, values: np.ndarray) -> np.ndarray:
        """int32 [ways, n], in few sizes: the values, then zeros."""
        size = -(-width(len(values)) // self.ways) * self.ways
        return np.pad(values, (0, size - len(values))).astype(np.int32).reshape(self.ways, -1)

    def _rounded(self, rows: int) -> int:
        """A power of two or three quarters of one, and a multiple of what the mesh deals out."""
        most = 1 << (rows - 1).bit_length()
        return -(-(most * 3 // 4 if most >= 4 and rows <= most * 3 // 4 else most) // self.ways) * self.ways

    def _read_shared(self, params: Any, tokens: jax.Array, count: int) -> caches.Cache:
        """The cache of one row with the beginning that all texts share."""
        tokens = jnp.repeat(tokens, self.ways, axis=0)
        return self.model.decode(params, tokens, self.model.init_cache(self.ways, count), fresh=True)[1]

    def _read_batch(self, params: Any, shared_cache: Any, arrays: tuple, shared: int) -> jax.Array:
        """What comes out above the continuations, [each, ends, D]."""
        before, counts, fed, origin, sizes = arrays
        rows, heads, ends = before.shape[0], before.shape[1], fed.shape[1]
        cache = self.model.init_cache(rows, min(shared + heads + ends, self.length), chunk=max(heads, ends))
        if shared:
            where = jnp.arange(rows, dtype=jnp.int32)
            cache = caches.moved(cache, shared_cache, jnp.zeros(rows, jnp.int32), where, None)
        if heads:
            cache = self.model.decode(params, before, cache, counts=counts, fresh=not shared)[1]
        cache = caches.reordered(cache, origin)
        return self.model.decode(params, fed, cache, counts=sizes)[0]

    def _score_tokens(self, params: Any, hidden: jax.Array, picked: jax.Array, wanted: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities of tokens int32 [ways, n] at places of hidden [each, ends, D], and whether they are the likeliest."""
        found = self.model.log_probs(params, hidden.reshape(-1, hidden.shape[-1])[picked], wanted)
        return rules.constrain(found.log_probs, None, None), rules.constrain(found.correct, None, None)  # every process gets all of them


def _grouped(pairs: Sequence[tuple[Ids, Ids]]) -> list[_Text]:
    """Pairs of one beginning together, in the order of their first."""
    groups: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
    for place, (before, after) in enumerate(pairs):
        groups.setdefault(tuple(map(int, before)), []).append((place, [int(i) for i in after]))
    return [_Text(list(before[:-1]), before[-1], continuations) for before, continuations in groups.items()]
