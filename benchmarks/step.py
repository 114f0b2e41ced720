"""The train step that the benchmarks time: jaxllm's own model, loss, optimizer and `make_step`, nothing left out and nothing special."""

from typing import Any

from jaxllm.losses.language import cross_entropy, cross_entropy_totals
from jaxllm.models.model import Model
from jaxllm.training.optimizers import Optimizer, make_optimizer
from jaxllm.training.step import Step, make_step


def train_step(
    model: Model, *, learning_rate: float, b1: float, b2: float, eps: float = 1e-8, weight_decay: float, clip_norm: float
) -> tuple[Optimizer, Step]:
    """AdamW on the mean cross-entropy of a batch of `tokens`, `targets`, `weights` and, where documents are packed, `segments`."""
    optimizer = make_optimizer("adamw", learning_rate, axes=model.axes(), b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)

    def loss(params: Any, frozen: Any, batch: Any, rng: Any) -> Any:
        hidden = model.apply(params, batch["tokens"], segments=batch.get("segments"))
        fused, found = model.fused_cross_entropy(params, hidden, batch["targets"], batch["weights"])
        return cross_entropy(found.log_probs, found.log_z, batch["weights"], correct=found.correct, fused=fused)

    return optimizer, make_step(
        loss, lambda batch: cross_entropy_totals(batch["weights"]), optimizer, axes=model.axes(), clip_norm=clip_norm
    )
