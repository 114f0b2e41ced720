"""A rollout: prompts through the engine with the weights of the moment, token in, token out, as rows that training takes as they are."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxllm.data.mixtures import shuffle_key, shuffled
from jaxllm.models.model import Model
from jaxllm.parallel import rules
from jaxllm.rollouts.rewards import Answer
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


class Samples(NamedTuple):
    """Completions in the order of their ids: those of the first prompt, of the second, ...

    Attributes:
      prompts: of each, [R].
      groups: int32 [R], the place of its prompt in the rollout.
      finished: of each, [R].
      answers: of each, [R], to be judged.
    """

    prompts: list[Prompt]
    groups: np.ndarray
    finished: list[Finished]
    answers: list[Answer]


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

    def __call__(self, params: Any, prompts: Sequence[Prompt], num_samples: int, step: int) -> Samples:
        """`num_samples` completions of each prompt.

        Args:
          params: of the model, as it decodes.
          prompts: of this rollout.
          num_samples: of each.
          step: of the run, which folds into every draw.
        """
        if self._engine is None:  # under the mesh of the run
            sizes = {"slots": self.slots, "length": self.length, "max_new_tokens": self.max_new_tokens}
            self._engine = engine_of(self.model, self.sampling, rows=len(prompts) * num_samples, **sizes)
        ids = np.arange(len(prompts) * num_samples).reshape(len(prompts), num_samples)
        requests = (Request(p.tokens, tuple(map(int, own)), self.max_new_tokens) for p, own in zip(prompts, ids, strict=True))
        last = [prompt.tokens[-1:].tolist() for prompt in prompts]
        ends = (lambda id, tokens: self.endings.keep(last[id // num_samples], tokens)) if self.endings.stop else None
        found = {done.id: done for done in self._engine.run(params, requests, self.key(step), ends)}
        finished = [found[id] for id in range(ids.size)]
        own = [prompt for prompt in prompts for _ in range(num_samples)]
        answers = [
            Answer(
                p.text, self.endings.text(last[done.id // num_samples], done.tokens), p.row, np.array(done.tokens, np.int32), done.stopped
            )
            for p, done in zip(own, finished, strict=True)
        ]
        return Samples(own, np.repeat(np.arange(len(prompts), dtype=np.int32), num_samples), finished, answers)

    def key(self, step: int) -> jax.Array:
        """Of all draws of the rollout at this step."""
        return purpose_key(self.seed, PURPOSE, step)


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
      [R, T]: tokens, targets, segments, positions int32; weights float32, 1 where the target was sampled; sampler float32, its
      log-probability as it was drawn.
    """
    shape = (len(samples.finished), sequence_length)
    rows = {name: np.zeros(shape, np.int32) for name in ("tokens", "targets", "segments")}
    rows |= {name: np.zeros(shape, np.float32) for name in ("weights", "sampler")}
    for i, (prompt, done) in enumerate(zip(samples.prompts, samples.finished, strict=True)):
        tokens, asked = np.concatenate([prompt.tokens, np.array(done.tokens, np.int32)]), len(prompt.tokens)
        assert len(tokens) <= sequence_length, (len(tokens), sequence_length)
        rows["tokens"][i, : len(tokens)] = tokens
        rows["targets"][i, : len(tokens) - 1] = tokens[1:]
        rows["segments"][i, : len(tokens)] = 1
        rows["weights"][i, asked - 1 : len(tokens) - 1] = 1.0
        rows["sampler"][i, asked - 1 : len(tokens) - 1] = done.filtered_log_probs
    return rows | {"positions": np.broadcast_to(np.arange(sequence_length, dtype=np.int32), shape).copy()}
