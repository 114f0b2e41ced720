"""Prompts in, text out: what is written on a prompt, through the engine, in order."""

import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxllm.data.tokenizer_kinds import Tokenizer
from jaxllm.models.model import Model
from jaxllm.sampling import speculative
from jaxllm.sampling.endings import Endings
from jaxllm.sampling.engine import Ends, Engine, Request
from jaxllm.sampling.logits import Sampling
from jaxllm.sampling.whole import MANY, Beams, Speculative, Whole

LONG_PROMPT = ("refuse", "window")


class Sample(NamedTuple):
    """One continuation of one prompt."""

    prompt: str
    number: int  # which of the prompt's samples
    text: str
    tokens: list[int]
    mean_log_prob: float  # nats per token under the model itself
    finished: bool  # ended by a stop token or a stop string, not by length


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    """A prompt as a document begins: what opens every text, the beginning-of-text token, where there is one, then the text.

    Raises:
      ValueError: an empty prompt for a tokenizer that has no beginning-of-text token.
    """
    start = [*tokenizer.opening, *([] if tokenizer.bos_id is None else [tokenizer.bos_id])]
    ids = np.concatenate([np.asarray(start, np.int32), tokenizer.encode(prompt)])
    if not len(ids):
        raise ValueError("An empty prompt, and this tokenizer has no beginning-of-text token to start from. Give at least one character.")
    return ids


def stop_ids(tokenizer: Tokenizer, stop_tokens: Sequence[str]) -> tuple[int, ...]:
    """The tokenizer's own end tokens and those of the user.

    Raises:
      ValueError: a word that is not one token.
    """
    found = list(tokenizer.stop_ids)
    for word in stop_tokens:
        named, ids = tokenizer.token_id(word), tokenizer.encode(word)
        if named is None and (len(ids) != 1 or tokenizer.decode(ids) != word):
            raise ValueError(f"sample.stop_tokens: {word!r} is not one token of this tokenizer. Name it in sample.stop instead.")
        found.append(int(ids[0]) if named is None else named)
    return tuple(dict.fromkeys(found))


class Texts:
    """A model that continues texts: its engine, compiled once, for any number of prompts."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        *,
        max_new_tokens: int,
        sampling: Sampling,
        stop: Sequence[str] = (),
        stop_tokens: Sequence[str] = (),
        length: int | None = None,
        long_prompt: str = "refuse",
        slots: int = 8,
        block: int = 16,
        num_beams: int = 1,
        draft: Model | None = None,
        num_draft: int = 4,
    ):
        """Checks what can be checked without a prompt.

        Args:
          model: a decoder.
          tokenizer: its own.
          max_new_tokens: how many tokens to write at most.
          sampling: how tokens are drawn; stop tokens and the tokenizer's size are filled in here.
          stop: texts that end a continuation, and are not part of it.
          stop_tokens: the same for single tokens, by their text.
          length: the most tokens of a prompt and its continuation; None: the model's context.
          long_prompt: a prompt that does not fit is refused ("refuse"), or only its last tokens are used ("window").
          slots: rows that decode together.
          block: tokens between two looks at stop strings.
          num_beams: more than 1: beam search instead of draws; the samples of a prompt are the best that it finds.
          draft: a small model with the same tokenizer that proposes tokens (see `speculative`); parameters are pairs then, its own second.
          num_draft: tokens that it proposes at a time.

        Raises:
          ValueError: an option that cannot be used.
        """
        most = model.config.max_positions
        if draft is not None:  # the last proposals may lie past the end, and have to have positions
            most = min(most, draft.config.max_positions) - num_draft - 1
        self.length = min(length or most, most)
        if not 1 <= max_new_tokens < self.length:
            raise ValueError(f"sample.max_new_tokens={max_new_tokens} must be at least 1 and less than the context of {self.length}.")
        if long_prompt not in LONG_PROMPT:
            raise ValueError(f"Unknown sample.long_prompt={long_prompt!r}. Choose one of: {', '.join(LONG_PROMPT)}.")
        if "" in stop:
            raise ValueError("sample.stop holds an empty text, which ends everything at once. Take it out.")
        self.tokenizer, self.max_new_tokens, self.stop, self.long_prompt = tokenizer, max_new_tokens, tuple(stop), long_prompt
        fields = {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")}
        self.sampling = Sampling(**fields, stop_ids=stop_ids(tokenizer, stop_tokens), num_ids=tokenizer.vocab_size)
        self.model, self.slots, self.block, self.num_beams, self.draft, self.num_draft = model, slots, block, num_beams, draft, num_draft
        self.endings = Endings(tokenizer, self.stop, self.sampling.stop_ids)
        self._check_search(sampling)
        self.engine: Engine | Whole | None = None
        self._last: dict[int, np.ndarray] = {}  # the last token of each prompt
        self.margin = max(map(len, stop), default=0)  # characters that may yet turn out to begin a stop string
        self.cut = 0  # prompts of which only the last tokens were used

    def _check_search(self, sampling: Sampling) -> None:
        if self.num_beams < 1:
            raise ValueError(f"sample.num_beams={self.num_beams} searches nothing. Give 1 to draw tokens, or more for beam search.")
        if self.num_beams > 1 and self.draft is not None:
            raise ValueError(f"sample.num_beams={self.num_beams} searches and --draft draws. Give one of them.")
        if self.num_beams > 1 and sampling.repetition_penalty != 1.0:
            raise ValueError(f"sample.repetition_penalty={sampling.repetition_penalty} is not known to beam search. Give 1.")
        if self.draft is not None:
            speculative.check(self.model, self.draft, self.num_draft, self.sampling)

    def _made(self, length: int) -> Engine | Whole:
        """What decodes rows of this length."""
        size = {"slots": self.slots, "length": length}
        if self.num_beams > 1:
            return Beams(self.model, self.sampling, num_beams=self.num_beams, max_new_tokens=self.max_new_tokens, **size)
        if self.draft is not None:
            how = {"num_draft": self.num_draft, "max_new_tokens": self.max_new_tokens}
            return Speculative(self.model, self.draft, self.sampling, **how, **size)
        return Engine(self.model, self.sampling, block=self.block, **size)

    def speed(self) -> str:
        """How many tokens a pass of the model brought: with a draft up to `num_draft` + 1."""
        if not isinstance(self.engine, Whole) or not self.engine.passes:
            return ""
        whole = self.engine
        return f"{whole.tokens:,} tokens in {whole.passes:,} passes of the model: {whole.tokens / whole.passes:.2f} a pass."

    @property
    def room(self) -> int:
        """How many tokens a prompt may have."""
        return self.length - self.max_new_tokens

    def encode(self, prompt: str | np.ndarray) -> np.ndarray:
        """The prompt's tokens, int32 [n]; ids stay as they are given.

        Raises:
          ValueError: it is empty, or does not fit.
        """
        ids, room = encode_prompt(self.tokenizer, prompt) if isinstance(prompt, str) else prompt, self.room
        if len(ids) <= room:
            return ids
        if self.long_prompt == "refuse":
            fewer = f" set sample.max_new_tokens to at most {self.length - len(ids)}," if len(ids) < self.length else ""
            raise ValueError(
                f"A prompt of {len(ids)} tokens and max_new_tokens={self.max_new_tokens} exceed the model's context of {self.length}."
                f" Shorten the prompt,{fewer} or use its last tokens alone with sample.long_prompt=window."
            )
        self.cut += 1
        start = min(len(self.tokenizer.opening) + (self.tokenizer.bos_id is not None), room - 1)  # a text goes on beginning as texts do
        return np.concatenate([ids[:start], ids[len(ids) - room + start :]])

    def samples(
        self,
        params: Any,
        prompts: Sequence[str | np.ndarray],
        *,
        seed: int,
        num_samples: int = 1,
        skip: int = 0,
        numbers: Sequence[int] | None = None,
        look: Ends | None = None,
        adapters: Sequence[int] | None = None,
    ) -> Iterator[Sample]:
        """Yields every sample of every prompt, in order; a draw depends on (seed, prompt number, sample number, position) alone.

        Args:
          params: the model's; with a draft a pair, its own second.
          prompts: all of them; the first wrong one is refused before anything is sampled.
          seed: the run's.
          num_samples: for each prompt.
          skip: how many of the samples, counted in order, are not wanted: they were made before.
          numbers: of the prompts, each its own; None: their places.
          look: sees every row grow, see `engine.Ends`; None: stop strings alone are looked for.
          adapters: of the prompts, which of several stacked adapters each goes through; None: the first.

        Raises:
          ValueError: an option out of range, an empty prompt, or one that does not fit.
        """
        if not 1 <= num_samples <= MANY:
            raise ValueError(f"sample.num_samples={num_samples} must be at least 1 and at most {MANY}.")
        if 1 < self.num_beams < num_samples:
            raise ValueError(
                f"sample.num_samples={num_samples} of sample.num_beams={self.num_beams} are too many. Give at least as many beams."
            )
        numbers = range(len(prompts)) if numbers is None else numbers
        if max(numbers, default=0) >= 2**31 // MANY:
            raise ValueError(f"{max(numbers) + 1:,} prompts are more than the {2**31 // MANY:,} of one run. Split them.")
        ids = [self.encode(prompt) for prompt in prompts]
        if not ids:
            return
        self._last = {number: own[-1:] for number, own in zip(numbers, ids, strict=True)}
        said = {n: prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt) for n, prompt in zip(numbers, prompts, strict=True)}
        longest = max(map(len, ids)) + self.max_new_tokens
        if self.engine is None or self.engine.length < longest:
            length = min(self.length, 1 << (longest - 1).bit_length())
            self.engine = self._made(length)
        wanted = [[n * MANY + s for s in range(num_samples) if p * num_samples + s >= skip] for p, n in enumerate(numbers)]
        through = [0] * len(ids) if adapters is None else adapters
        asked = zip(ids, wanted, through, strict=True)
        requests = (Request(own, tuple(rows), self.max_new_tokens, adapter) for own, rows, adapter in asked if rows)
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"sample"))
        order = [row for rows in wanted for row in rows]
        early: dict[int, Sample] = {}
        at = 0
        for done in self.engine.run(params, requests, key, look or (self.ends if self.stop else None)):
            p, s = divmod(done.id, MANY)
            early[done.id] = Sample(said[p], s, self.text(done.tokens, done.id), done.tokens, self.mean(done), done.stopped)
            while at < len(order) and order[at] in early:
                yield early.pop(order[at])
                at += 1

    def mean(self, done: Any) -> float:
        """Nats per token of what the model wrote."""
        return float(np.mean(done.log_probs)) if done.log_probs else 0.0

    def text(self, tokens: Sequence[int], id: int) -> str:
        """What the tokens of a row say after its prompt, without a stop token or a stop string at the end."""
        return self.endings.text(self._last[id // MANY].tolist(), tokens)

    def ends(self, id: int, tokens: Sequence[int]) -> int | None:
        """How many tokens hold the first stop string, if one is there."""
        return self.endings.keep(self._last[id // MANY].tolist(), tokens)
