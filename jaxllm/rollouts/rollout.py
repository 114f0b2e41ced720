"""A rollout: prompts through the engine with the weights of the moment, token in, token out, as rows that training takes as they are."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxllm.data.mixtures import shuffle_key, shuffled
from jaxllm.models.model import Model
from jaxllm.parallel import rules
from jaxllm.rollouts.rewards import Answer, Spoken
from jaxllm.sampling.endings import Endings
from jaxllm.sampling.engine import Engine, Finished, Request
from jaxllm.sampling.logits import Sampling
from jaxllm.training.step import purpose_key

PURPOSE = "rollout"  # of the key of a rollout's draws
MOST_SLOTS = 64  # rows that decode together, unless another number is asked for


class Prompt(NamedTuple):
    """What a completion answers.

    Attributes:
      text: as text.
      tokens: int32 [n], as the model gets it.
      row: the fields of its row, which rewards may read.
    """

    text: str
    tokens: np.ndarray
    row: Mapping[str, Any]


def drawn(seed: int, first: int, count: int, num_prompts: int) -> np.ndarray:
    """Which prompts are numbers [first, first + count) of an endless sequence: every epoch has each once, in an order of its own.

    A pure function of (seed, number), int64 [count].
    """
    epochs, places = np.divmod(np.arange(first, first + count, dtype=np.int64), num_prompts)
    keys = np.array([shuffle_key(seed, "prompts", int(epoch)) for epoch in epochs], np.uint64)
    return shuffled(places, np.full(count, num_prompts), keys)


class Played(NamedTuple):
    """A completion that a model and its tools wrote in turns; see `engine.Finished`, which is one of the model alone.

    Attributes:
      id: of the sample.
      tokens: everything behind the prompt.
      log_probs, filtered_log_probs: of each token; 0 where a tool wrote it.
      stopped: whether the model ended it.
      own: whether the model wrote a token.
      turns: what was said, in order.
      num_turns: of the model.
      cut: results that were shortened.
    """

    id: int
    tokens: list[int]
    log_probs: list[float]
    filtered_log_probs: list[float]
    stopped: bool
    own: list[bool]
    turns: tuple[Spoken, ...]
    num_turns: int
    cut: int


def places(prompt: Prompt, done: Finished | Played) -> np.ndarray:
    """Where in a row the model's own tokens are the targets: int64 [n]."""
    own = np.array(done.own, bool) if isinstance(done, Played) else np.ones(len(done.tokens), bool)
    return len(prompt.tokens) - 1 + np.flatnonzero(own)


class Samples(NamedTuple):
    """Completions in the order of their ids: those of the first prompt, of the second, ...

    Attributes:
      prompts: of each, [R].
      groups: int32 [R], the place of its prompt in the rollout.
      finished: of each, [R].
      answers: of each, [R], to be judged.
      ids: int32 [R], what names the noise of each.
    """

    prompts: list[Prompt]
    groups: np.ndarray
    finished: Sequence[Finished | Played]
    answers: list[Answer]
    ids: np.ndarray


class Sampler:
    """Samples from a model whose weights change; what it compiles stays.

    Args:
      model: as it decodes.
      endings: what ends a completion.
      sequence_length: T, tokens of a prompt and its completion at most.
      max_new_tokens: of a completion.
      temperature: of the draws; 0: the likeliest tokens.
      seed: of the run.
      slots: completions that are written together; 0: all of a rollout, up to 64.

    A draw depends on (seed, step, place of the prompt in the rollout, number of the sample, position) alone: not on the others, the slots,
    the mesh, or how often the run was stopped.
    """

    def __init__(
        self,
        model: Model,
        endings: Endings,
        *,
        sequence_length: int,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        slots: int = 0,
    ):
        self.model, self.endings, self.seed = model, endings, seed
        self.length, self.max_new_tokens, self.slots = sequence_length, max_new_tokens, slots
        self.sampling = Sampling(temperature=temperature, stop_ids=endings.stop_ids)
        self._engine: Engine | None = None

    def __call__(self, params: Any, prompts: Sequence[Prompt], num_samples: int, step: int, ids: np.ndarray | None = None) -> Samples:
        """`num_samples` completions of each prompt.

        Args:
          params: of the model, as it decodes.
          prompts: of this rollout.
          num_samples: of each.
          step: of the run, which folds into every draw.
          ids: int [prompts, samples], what names the noise of each; None: they are counted from 0.
        """
        if self._engine is None:  # under the mesh of the run
            self._engine = self._made(len(prompts) * num_samples)
        ids = np.arange(len(prompts) * num_samples).reshape(len(prompts), num_samples) if ids is None else ids
        requests = (Request(p.tokens, tuple(map(int, own)), self.max_new_tokens) for p, own in zip(prompts, ids, strict=True))
        last = {int(id): prompt.tokens[-1:].tolist() for prompt, own in zip(prompts, ids, strict=True) for id in own}
        ends = (lambda id, tokens: self.endings.keep(last[id], tokens)) if self.endings.stop else None
        found = {done.id: done for done in self._engine.run(params, requests, self.key(step), ends)}
        finished = [found[int(id)] for id in ids.reshape(-1)]
        own = [prompt for prompt in prompts for _ in range(num_samples)]
        answers = [self._answer(prompt, done) for prompt, done in zip(own, finished, strict=True)]
        groups = np.repeat(np.arange(len(prompts), dtype=np.int32), num_samples)
        return Samples(own, groups, finished, answers, ids.reshape(-1).astype(np.int32))

    def _answer(self, prompt: Prompt, done: Any) -> Answer:
        text = self.endings.text(prompt.tokens[-1:].tolist(), done.tokens)
        return Answer(prompt.text, text, prompt.row, np.array(done.tokens, np.int32), done.stopped)

    def key(self, step: int) -> jax.Array:
        """Of all draws of the rollout at this step."""
        return purpose_key(self.seed, PURPOSE, step)

    def _made(self, rows: int) -> Any:
        sizes = {"slots": self.slots, "length": self.length, "max_new_tokens": self.max_new_tokens}
        return engine_of(self.model, self.sampling, rows=rows, **sizes)


def engine_of(model: Model, sampling: Sampling, *, rows: int, slots: int, length: int, max_new_tokens: int) -> Engine:
    """The engine of rollouts of so many rows, under the ambient mesh; the rest as for `Sampler`."""
    ways = rules.ways("batch")
    slots = -(-(slots or min(rows, MOST_SLOTS)) // ways) * ways
    return Engine(model, sampling, slots=slots, length=length, block=min(16, max_new_tokens))


def decoder_of(model: Model) -> tuple[Model, Callable[[Any], Any]]:
    """The model as it decodes fastest, and its parameters from those of training: on a CPU the layers stand one by one."""
    if rules.platform() != "cpu" or not model.scan_layers:
        return model, lambda params: params
    return dataclasses.replace(model, scan_layers=False), jax.jit(lambda params: model.relayout(params, False))


def rows_of(samples: Samples, sequence_length: int) -> dict[str, np.ndarray]:
    """Samples as rows of training: the very tokens, one completion a row, padded on the right to one length.

    Args:
      samples: R of them.
      sequence_length: T.

    Returns:
      [R, T]: tokens, targets, segments, positions int32; weights float32, 1 where the target was sampled (and not put there by a tool);
      sampler float32, its log-probability as it was drawn.
    """
    shape = (len(samples.finished), sequence_length)
    rows = {name: np.zeros(shape, np.int32) for name in ("tokens", "targets", "segments")}
    rows |= {name: np.zeros(shape, np.float32) for name in ("weights", "sampler")}
    for i, (prompt, done) in enumerate(zip(samples.prompts, samples.finished, strict=True)):
        tokens, at = np.concatenate([prompt.tokens, np.array(done.tokens, np.int32)]), places(prompt, done)
        assert len(tokens) <= sequence_length, (len(tokens), sequence_length)
        rows["tokens"][i, : len(tokens)] = tokens
        rows["targets"][i, : len(tokens) - 1] = tokens[1:]
        rows["segments"][i, : len(tokens)] = 1
        rows["weights"][i, at] = 1.0
        rows["sampler"][i, at] = np.array(done.filtered_log_probs)[at - len(prompt.tokens) + 1]
    return rows | {"positions": np.broadcast_to(np.arange(sequence_length, dtype=np.int32), shape).copy()}
