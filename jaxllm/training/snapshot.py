"""Saving beside a step that runs: a copy of the state that no step overwrites, and threads that leave the cores to it."""

import contextlib
import os
import sys
import threading
from typing import Any

import jax
import jax.numpy as jnp


class Snapshot:
    """Copies on the CPU backend; elsewhere the transfer to the host is the copy, and the tree goes through as it is.

    Why: on the CPU backend Orbax reads the very buffers of the state, and a step that donates them waits until the save has let go of
    them: measured, the first step after an "asynchronous" save then takes as long as the save. The copy is written into the buffers of the
    copy before it (a fresh 1.2 GB costs 0.4 s in page faults alone, a used one 0.09 s), so one extra state stays allocated.
    """

    def __init__(self) -> None:
        self.copies = jax.default_backend() == "cpu"
        self._held: Any = None

    def take(self, tree: Any) -> Any:
        """Where this copies: a tree of arrays that no later step can touch, valid until the next `take`. Elsewhere the tree itself."""
        if not self.copies:
            return tree
        shardings = jax.tree.map(lambda x: x.sharding, tree)
        if self._held is None or jax.tree.map(_kind, self._held) != jax.tree.map(_kind, tree):
            self._held = jax.jit(_copy, out_shardings=shardings)(tree)
        else:
            self._held = jax.jit(_copy_into, donate_argnums=1, keep_unused=True, out_shardings=shardings)(tree, self._held)
        return self._held


def give_way() -> None:
    """Lowers the priority of this thread, and of those it starts, where the step is computed on the same cores (Linux, CPU backend).

    A save then runs in what the step leaves idle. It takes as long as ever when the loop waits for it, and longer while all cores compute.
    """
    if sys.platform == "linux" and jax.default_backend() == "cpu":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def _kind(x: jax.Array) -> tuple[Any, ...]:
    return x.shape, x.dtype, x.sharding


def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def _copy_into(tree: Any, held: Any) -> Any:
    """`held` is donated: its memory becomes the result's."""
    return _copy(tree)
