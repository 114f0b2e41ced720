"""Whether scores agree with people, and are as sure as they are right: accuracy by margin, calibration, the ranking of verdicts."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

BINS = 10  # of confidence
EDGES = (0.5, 1.0, 2.0)  # of the difference of two scores, in nats
FINE = 512  # bins of a probability that the area under the curve is counted by


def total_of(sums: Callable[[Any], Any], batches: Iterable[Any]) -> Any:
    """The sum over batches of a tree of sums, float64 on the host; one batch is always in flight.

    Raises:
      ValueError: no batch.
    """
    total, late = None, None
    for batch in itertools.chain(batches, [None]):
        current = None if batch is None else sums(batch)
        if late is not None:
            found = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), jax.device_get(late))
            total = found if total is None else jax.tree.map(np.add, total, found)
        late = current
    if total is None:
        raise ValueError("The validation set is empty. Raise data.eval_fraction, or give data.eval more records.")
    return total


def means(found: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """What an objective is on a set: {"terms": name -> coefficient * sum, "report": name -> sum, "totals": name -> divisor} -> means.

    "loss" is the sum of the terms' means; what is divided by 0 is left out.
    """
    known = {name: float(value) for name, value in found["totals"].items()}
    each = {name: float(value) / known[name] for name, value in found["terms"].items() if known.get(name)}
    report = {name: float(value) / known[name] for name, value in found["report"].items() if known.get(name)}
    return {"loss": sum(each.values()), **each, **report}


def pair_sums(rewards: jax.Array, ranks: jax.Array) -> dict[str, jax.Array]:
    """What `pair_metrics` needs of the pairs of answers that people called different.

    Args:
      rewards: float [P, K].
      ranks: [P, K], smaller is better; negative: there is no answer.

    Returns:
      pairs, right: scalars; confidence [3, BINS]: pairs, right, and summed confidence of each bin of confidence s(|difference|);
      margins [2, 4]: pairs and right of each bin of |difference|, cut at `EDGES`. Equal scores are half right.
    """
    there = ranks >= 0
    pairs = ((ranks[:, :, None] < ranks[:, None, :]) & there[:, :, None] & there[:, None, :]).astype(jnp.float32)
    difference = jnp.where(pairs > 0, rewards[:, :, None] - rewards[:, None, :], 0.0)
    right, sure = pairs * (jnp.sign(difference) + 1) / 2, jax.nn.sigmoid(jnp.abs(difference))
    of_bin = jax.nn.one_hot(jnp.clip((sure * 2 - 1) * BINS, 0, BINS - 1).astype(jnp.int32), BINS)
    of_margin = jax.nn.one_hot(sum((jnp.abs(difference) >= edge).astype(jnp.int32) for edge in EDGES), len(EDGES) + 1)
    spread = lambda values, where: jnp.einsum("pij,pijb->b", values, where, precision="highest")  # noqa: E731
    return {
        "pairs": jnp.sum(pairs),
        "right": jnp.sum(right),
        "confidence": jnp.stack([spread(pairs, of_bin), spread(right, of_bin), spread(pairs * sure, of_bin)]),
        "margins": jnp.stack([spread(pairs, of_margin), spread(right, of_margin)]),
    }


def pair_metrics(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """accuracy; ece, the expected calibration error (Naeini et al. 2015, 10 bins) of P(first is better) = s(difference); the accuracy and
    the share of pairs of each bin of |difference| (`accuracy_margin_0.5_1`, say); pairs."""
    count = float(found["pairs"])
    if not count:
        return {"pairs": 0.0}
    scores = {"accuracy": float(found["right"]) / count, "ece": calibration_error(*found["confidence"]), "pairs": count}
    names = [f"{low:g}_{high:g}" if high else f"{low:g}_up" for low, high in zip((0, *EDGES), (*EDGES, None), strict=True)]
    for name, pairs, right in zip(names, *found["margins"], strict=True):
        if pairs:
            scores |= {f"accuracy_margin_{name}": float(right / pairs), f"share_margin_{name}": float(pairs / count)}
    return scores


def calibration_error(counts: np.ndarray, right: np.ndarray, confidence: np.ndarray) -> float:
    """sum over bins of |right - confidence| / number of all, each summed over a bin; [bins] each."""
    return float(np.abs(right - confidence).sum() / max(counts.sum(), 1e-9))


def verdict_sums(probabilities: jax.Array, targets: jax.Array, weights: jax.Array) -> dict[str, jax.Array]:
    """What `verdict_metrics` needs: probabilities of yes, targets 0 to 1, weights 0 or 1, [P] each."""
    of_bin = jax.nn.one_hot(jnp.clip(probabilities * BINS, 0, BINS - 1).astype(jnp.int32), BINS)
    of_fine = jax.nn.one_hot(jnp.clip(probabilities * FINE, 0, FINE - 1).astype(jnp.int32), FINE)
    spread = lambda values, where: jnp.einsum("p,pb->b", values, where, precision="highest")  # noqa: E731
    good = weights * targets
    return {
        "confidence": jnp.stack([spread(values, of_bin) for values in (weights, good, weights * probabilities)]),
        "fine": jnp.stack([spread(good, of_fine), spread(weights - good, of_fine)]),
    }


def verdict_metrics(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """ece of the probability of yes, and auc, the area under the receiver's curve (over 512 bins of it; within one, half)."""
    yes, no = found["fine"]
    below = np.concatenate([[0.0], np.cumsum(no)[:-1]])
    scores = {"ece": calibration_error(*found["confidence"])}
    return scores | ({"auc": float((yes * (below + no / 2)).sum() / (yes.sum() * no.sum()))} if yes.sum() and no.sum() else {})


def class_sums(probabilities: jax.Array, labels: jax.Array, weights: jax.Array) -> dict[str, jax.Array]:
    """What `class_metrics` needs: probabilities [P, C], labels int [P], weights [P]."""
    sure, right = jnp.max(probabilities, axis=1), weights * (jnp.argmax(probabilities, axis=1) == labels)
    of_bin = jax.nn.one_hot(jnp.clip(sure * BINS, 0, BINS - 1).astype(jnp.int32), BINS)
    spread = lambda values: jnp.einsum("p,pb->b", values, of_bin, precision="highest")  # noqa: E731
    return {"confidence": jnp.stack([spread(values) for values in (weights, right, weights * sure)])}


def class_metrics(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """ece of the likeliest class."""
    return {"ece": calibration_error(*found["confidence"])}


def rating_sums(scores: jax.Array, targets: jax.Array, weights: jax.Array) -> dict[str, jax.Array]:
    """What `rating_metrics` needs, [P] each."""
    x, y = scores, targets
    return {"moments": jnp.stack([jnp.sum(weights * value) for value in (jnp.ones_like(x), x, y, x * x, y * y, x * y)])}


def rating_metrics(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Pearson's correlation of scores and ratings."""
    n, x, y, xx, yy, xy = found["moments"]
    spread = (n * xx - x * x) * (n * yy - y * y)
    return {"correlation": float((n * xy - x * y) / np.sqrt(spread))} if spread > 0 else {}
