"""Muon: momentum made orthogonal, with same-shape matrices stacked and the stack cut over devices, so that no matrix is ever cut."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxllm.parallel import rules
from jaxllm.training.masks import matrix_split, num_stacked

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024, https://kellerjordan.github.io/posts/muon: the steepest quintic at zero


class MuonState(NamedTuple):
    """Attributes: momentum: a tree like the parameters."""

    momentum: Any


def newton_schulz(x: jax.Array, steps: int = 5) -> jax.Array:
    """About U V^T of each matrix U S V^T, by a quintic iteration; singular values end between 0.7 and 1.2 (Jordan et al. 2024).

    Args:
      x: [S, M, X].
      steps: iterations.
    """
    a, b, c = COEFFICIENTS
    tall = x.shape[-2] > x.shape[-1]
    x = x.swapaxes(-1, -2) if tall else x
    x = x / (jnp.linalg.norm(x.astype(jnp.float32), axis=(-2, -1), keepdims=True).astype(x.dtype) + 1e-7)
    for _ in range(steps):
        gram = jnp.einsum("smx,snx->smn", x, x)
        x = a * x + jnp.einsum("smn,snx->smx", b * gram + c * jnp.einsum("smk,skn->smn", gram, gram), x)
    return x.swapaxes(-1, -2) if tall else x


def scale_by_muon(
    axes: dict[str, rules.LogicalAxes] | None = None,
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    ns_dtype: str = "float32",
    rms: float | None = 0.2,
    momentum_dtype: str | None = None,
) -> optax.GradientTransformation:
    """Momentum, orthogonalised matrix by matrix. Every leaf must be a matrix or a stack of them (see `masks.matrix_split`).

    Args:
      axes: parameter name -> logical axes; None: each leaf is one matrix [rows, columns].
      momentum: decay of the running mean of gradients.
      nesterov: look one step ahead, as published.
      ns_steps: Newton-Schulz iterations.
      ns_dtype: what they are computed in. Published is bfloat16; float32 keeps runs on other meshes within 1e-4.
      rms: each update is scaled by rms * sqrt(max(rows, columns)), to the size of adamw's (0.2: arXiv 2502.16982, eq. 4), so that adamw's
        learning rate and weight decay carry over. None: sqrt(max(1, columns / rows)), the fan-out over the fan-in (Jordan et al. 2024).
      momentum_dtype: what the momentum is stored in; None: as what `init` is given.

    Raises:
      ValueError: no iterations at all.
    """
    if ns_steps < 1:
        raise ValueError(f"Muon with ns_steps={ns_steps} makes nothing orthogonal. Give 1 or more; 5 is usual.")

    def init(params):
        return MuonState(jax.tree.map(lambda p: jnp.zeros(p.shape, momentum_dtype or p.dtype), params))

    def update(grads, state, params=None):
        mean = jax.tree.map(lambda m, g: momentum * m.astype(g.dtype) + (1 - momentum) * g, state.momentum, grads)
        ahead = jax.tree.map(lambda m, g: momentum * m + (1 - momentum) * g, mean, grads) if nesterov else mean
        stored = jax.tree.map(lambda m, old: m.astype(old.dtype), mean, state.momentum)
        return _orthogonal(ahead, axes, ns_steps, ns_dtype, rms), MuonState(stored)

    return optax.GradientTransformation(init, update)


def _orthogonal(tree: Any, axes: dict[str, rules.LogicalAxes] | None, steps: int, dtype: str, rms: float | None) -> Any:
    """Stacks the leaves of each canonical shape [S, M, X], orthogonalises the stacks, and puts everything back."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    names = [None if axes is None else axes[rules.path_name(path)] for path, _ in leaves]
    groups: dict[tuple, list[int]] = {}
    for i, (path, leaf) in enumerate(leaves):
        split = matrix_split(leaf.shape, names[i])
        assert split is not None, f"{rules.path_name(path)} {leaf.shape} {names[i]} is not a matrix"
        groups.setdefault(_canonical_shape(split, names[i]), []).append(i)
    done: list[jax.Array] = [leaf for _, leaf in leaves]
    for (M, X), members in groups.items():
        pieces = [_to_canonical(leaves[i][1], names[i]) for i in members]
        results = _orthogonal_stack(jnp.concatenate(pieces) if len(pieces) > 1 else pieces[0], steps, dtype)
        start = 0
        for i, piece in zip(members, pieces, strict=True):
            part = results[start : start + len(piece)]
            start += len(piece)
            fan_in, fan_out = (X, M) if _embed_last(names[i]) else (M, X)
            scale = math.sqrt(max(1, fan_out / fan_in)) if rms is None else rms * math.sqrt(max(M, X))
            done[i] = scale * _from_canonical(part, leaves[i][1], names[i])
    return jax.tree.unflatten(treedef, done)


def _orthogonal_stack(stack: jax.Array, steps: int, dtype: str) -> jax.Array:
    """[S, D, X] cut along D -> cut along S (one all-to-all), Newton-Schulz on whole matrices, and back (another).

    Cuts of X are undone before and made again after: asked for both moves at once, the partitioner replicates the whole stack.
    """
    S, M = stack.shape[:2]
    by_rows = (None, "embed" if M % rules.ways("embed", rules.STORED) == 0 else None, None)
    padded = jnp.pad(stack.astype(dtype), ((0, -S % rules.ways("stack", rules.STORED)), (0, 0), (0, 0)))
    padded = rules.constrain(rules.constrain(padded, *by_rows, rules=rules.STORED), "stack", None, None, rules=rules.STORED)
    result = rules.constrain(newton_schulz(padded, steps), "stack", None, None, rules=rules.STORED)
    return rules.constrain(result, *by_rows, rules=rules.STORED).astype(stack.dtype)


def _embed_last(names: rules.LogicalAxes | None) -> bool:
    """Whether the matrix maps to D rather than from it: it is stacked transposed, so that D comes first and all stacks are cut alike."""
    return names is not None and names[-1] == "embed" and "embed" not in names[num_stacked(names) : -1]


def _canonical_shape(split: tuple[int, int, int], names: rules.LogicalAxes | None) -> tuple[int, int]:
    return (split[2], split[1]) if _embed_last(names) else (split[1], split[2])


def _to_canonical(leaf: jax.Array, names: rules.LogicalAxes | None) -> jax.Array:
    matrices = leaf.reshape(matrix_split(leaf.shape, names))
    return matrices.swapaxes(1, 2) if _embed_last(names) else matrices


def _from_canonical(matrices: jax.Array, like: jax.Array, names: rules.LogicalAxes | None) -> jax.Array:
    matrices = matrices.swapaxes(1, 2) if _embed_last(names) else matrices
    leaf = matrices.reshape(like.shape)
    return leaf if names is None else rules.constrain(leaf, *names, rules=rules.STORED)
