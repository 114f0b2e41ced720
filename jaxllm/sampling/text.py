"""Prompts in, text out: batches of prompts in a few fixed shapes through `decode.generate`."""

import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxllm.data.tokenizers import Tokenizer
from jaxllm.models.model import Model
from jaxllm.parallel import rules
from jaxllm.sampling.decode import generate

MANY = 1 << 16  # samples of one prompt at most: each (prompt, sample) has a row id of its own
SMALLEST = 16  # tokens in the smallest bucket of prompt lengths; each next one is twice as long


class Sample(NamedTuple):
    """One continuation of one prompt."""

    prompt: str
    number: int  # which of the prompt's samples
    text: str
    tokens: list[int]
    mean_log_prob: float  # nats per token under the model itself
    finished: bool  # ended by the end token, not by length


def bucket(length: int) -> int:
    """The smallest power-of-two bucket that holds a prompt: a few shapes, compiled once each."""
    return max(SMALLEST, 1 << (length - 1).bit_length())


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    """A prompt as a document begins: the beginning-of-text token, where there is one, then the text.

    Raises:
      ValueError: an empty prompt for a tokenizer that has no beginning-of-text token.
    """
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids = np.concatenate([np.asarray(start, np.int32), tokenizer.encode(prompt)])
    if not len(ids):
        raise ValueError("An empty prompt, and this tokenizer has no beginning-of-text token to start from. Give at least one character.")
    return ids


def sample_texts(
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    seed: int,
    max_new_tokens: int,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    num_samples: int = 1,
    batch_size: int = 8,
) -> Iterator[Sample]:
    """Yields every sample of every prompt, in order; a draw depends on (seed, prompt number, sample number, position) alone.

    Raises:
      ValueError: an option out of range, an empty prompt, or a prompt that does not fit the model's context.
    """
    check_options(temperature, top_k, top_p, max_new_tokens, num_samples)
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    longest = max(map(len, ids), default=0)
    if longest + max_new_tokens > model.config.max_positions:
        raise ValueError(
            f"A prompt of {longest} tokens and max_new_tokens={max_new_tokens} exceed the model's context of {model.config.max_positions}."
            f" Shorten the prompt, or set sample.max_new_tokens to at most {max(0, model.config.max_positions - longest)}."
        )
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "stop_ids": (tokenizer.eos_id,),
        "num_ids": tokenizer.vocab_size,
    }

    @jax.jit
    def run(*arguments):  # every process gets every row
        return jax.tree.map(lambda x: rules.constrain(x, *(None,) * x.ndim), generate(model, *arguments, **options))

    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"sample"))
    jobs = [(p, s) for p in range(len(prompts)) for s in range(num_samples)]
    for first in range(0, len(jobs), batch_size):
        part = jobs[first : first + batch_size]
        rows = part + [part[-1]] * (batch_size - len(part))  # a full batch keeps the shape; the extra rows are thrown away
        width = min(bucket(max(len(ids[p]) for p, _ in rows)), model.config.max_positions - max_new_tokens)
        tokens = np.zeros((batch_size, width), np.int32)
        for row, (p, _) in enumerate(rows):
            tokens[row, : len(ids[p])] = ids[p]
        lengths = np.array([len(ids[p]) for p, _ in rows], np.int32)
        names = np.array([p * MANY + s for p, s in rows], np.int32)
        out = jax.device_get(run(params, tokens, lengths, key, names))
        for row, (p, s) in enumerate(part):
            size = int(out.lengths[row])
            new = out.tokens[row, :size].tolist()
            finished = bool(new) and new[-1] == tokenizer.eos_id
            text = tokenizer.decode(new[:-1] if finished else new)
            yield Sample(prompts[p], s, text, new, float(out.log_probs[row, :size].mean()) if size else 0.0, finished)


def check_options(temperature: float, top_k: int, top_p: float, max_new_tokens: int, num_samples: int) -> None:
    """Refuses options that make no distribution.

    Raises:
      ValueError: names the option, its value and its range.
    """
    if not temperature >= 0:
        raise ValueError(f"sample.temperature={temperature} is below 0. Give 0 for the likeliest token, or a positive number.")
    if top_k < 0:
        raise ValueError(f"sample.top_k={top_k} is below 0. Give 0 for all tokens, or how many to keep.")
    if not 0 < top_p <= 1:
        raise ValueError(f"sample.top_p={top_p} is not a probability. Give 0 < top_p <= 1; 1 keeps all tokens.")
    if max_new_tokens < 1 or not 1 <= num_samples <= MANY:
        raise ValueError(
            f"sample.max_new_tokens={max_new_tokens} and sample.num_samples={num_samples} must be at least 1 (samples: at most {MANY})."
        )
