"""Held-out loss, perplexity and bits per byte: exact weighted means over every batch of a validation set."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

SCORES = ("loss", "perplexity", "bits_per_byte", "accuracy", "tokens")  # what `perplexity` returns


def perplexity(
    sums: Callable[[Any, Mapping[str, jax.Array]], Mapping[str, jax.Array]], params: Any, batches: Iterable[Mapping[str, jax.Array]]
) -> dict[str, float]:
    """Scores a model on a validation set.

    Args:
      sums: a compiled function (params, batch) -> {"nats", "correct", "tokens", "bytes"}: sums over the weighted targets of a batch;
        "bytes" is how many bytes of text those targets stand for.
      params: the model's parameters.
      batches: the validation set, each window once.

    Returns:
      loss (nats per token), perplexity, bits_per_byte, accuracy, tokens.

    Raises:
      ValueError: a set without a single target.
    """
    total: dict[str, float] = {}
    late = None  # one batch is always in flight
    for batch in batches:
        current = sums(params, batch)
        if late is not None:
            _add(total, late)
        late = current
    if late is not None:
        _add(total, late)
    if not total.get("tokens"):
        raise ValueError("The validation set holds no token to predict. Raise data.eval_fraction, or give data.eval a longer text.")
    loss = total["nats"] / total["tokens"]
    scores = {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "accuracy": total["correct"] / total["tokens"],
        "tokens": total["tokens"],
    }
    if total["bytes"]:
        scores["bits_per_byte"] = total["nats"] / math.log(2) / total["bytes"]
    return scores


def _add(total: dict[str, float], sums: Mapping[str, jax.Array]) -> None:
    for name, value in jax.device_get(dict(sums)).items():
        total[name] = total.get(name, 0.0) + float(value)


def unigram(train_counts: np.ndarray, eval_counts: np.ndarray, token_bytes: np.ndarray) -> dict[str, float]:
    """What a model that knows only how often each token occurs would score: the baseline every language model must beat.

    Args:
      train_counts: int [V], how often each token occurs in the training text; one is added to each (Laplace).
      eval_counts: the same for the validation text.
      token_bytes: int [V], bytes of text per token.

    Returns:
      unigram_loss (nats per token) and, where the text has bytes, unigram_bits_per_byte.
    """
    log_probs = np.log((train_counts + 1) / (train_counts.sum() + len(train_counts)))
    nats, tokens, size = -float(eval_counts @ log_probs), int(eval_counts.sum()), int(eval_counts @ token_bytes)
    scores = {"unigram_loss": nats / max(tokens, 1)}
    return scores | ({"unigram_bits_per_byte": nats / math.log(2) / size} if size else {})
