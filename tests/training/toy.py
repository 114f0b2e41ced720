"""A toy model as plain functions, with every kind of parameter an optimizer has to tell apart; training knows no other."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.losses.language import cross_entropy, cross_entropy_totals

V, D, N, H, F, L = 32, 16, 4, 8, 32, 2
AXES = {
    "embedding": ("vocab", "embed"),
    "blocks": {
        "query": ("layers", "embed", "heads", "head_dim"),
        "output": ("layers", "heads", "head_dim", "embed"),
        "bias": ("layers", "heads", "head_dim"),
        "up": ("layers", "embed", "mlp"),
        "down": ("layers", "mlp", "embed"),
        "norm": ("layers", "norm"),
    },
    "head": ("embed", "vocab"),
}
SHAPES = {
    "embedding": (V, D),
    "blocks": {"query": (L, D, N, H), "output": (L, N, H, D), "bias": (L, N, H), "up": (L, D, F), "down": (L, F, D), "norm": (L, D)},
    "head": (D, V),
}


def init(seed=0):
    """Parameters drawn with numpy: constants, so that the programs that make them compile in no time."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda shape: jnp.asarray(0.3 * rng.normal(size=shape), jnp.float32), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
    )
    params["blocks"]["norm"] = jnp.ones((L, D))
    return params


def apply(params, tokens):
    """[B, T] -> logits [B, T, V]; each token by itself."""
    x = params["embedding"][tokens]

    def block(x, p):
        y = x * p["norm"]
        y = jnp.einsum("btd,dnh->btnh", y, p["query"]) + p["bias"]
        x = x + jnp.einsum("btnh,nhd->btd", jnp.tanh(y), p["output"])
        return x + jnp.tanh(x @ p["up"]) @ p["down"], None

    x, _ = jax.lax.scan(block, x, params["blocks"])
    return x @ params["head"]


def loss(params, frozen, batch, rng):
    """Cross-entropy with a z-loss and the accuracy."""
    logits = apply(params, batch["tokens"])
    log_z = jax.nn.logsumexp(logits, axis=-1)
    log_probs = jnp.take_along_axis(logits, batch["targets"][..., None], axis=-1)[..., 0] - log_z
    return cross_entropy(log_probs, log_z, batch["weights"], correct=jnp.argmax(logits, -1) == batch["targets"], z_loss=1e-2)


def totals(batch):
    """What the loss's sums are divided by."""
    return cross_entropy_totals(batch["weights"])


def make_batch(seed=0, B=16, T=6):
    """A batch with weights that differ from row to row; some rows weigh nothing at all."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, V, (B, T)).astype(np.int32)
    weights = (rng.random((B, T)) * rng.choice([0, 0, 1, 5], (B, 1))).astype(np.float32)
    segments = np.ones((B, T), np.int32)
    segments[:, -1] = 0
    return {"tokens": tokens, "targets": (tokens * 7 + 3) % V, "weights": weights, "segments": segments}


def gradients(seed=0):
    """A tree of normal numbers like the parameters."""
    return jax.tree.map(lambda p: p - 1.0 if p.ndim == 2 and p.shape == (L, D) else p, init(seed + 100))
