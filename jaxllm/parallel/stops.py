"""Requests to stop: SIGTERM and Ctrl-C become a question the loop asks at each step, answered alike in all processes."""

import os
import signal
from types import FrameType, TracebackType

from jax._src import distributed
from jax.experimental import multihost_utils


class StopRequests:
    """While entered, the first SIGTERM or Ctrl-C asks for a stop; the second Ctrl-C exits at once, with code 1.

    With a runtime of several processes SIGTERM belongs to JAX, whose notice makes all of them stop at the same step; a handler of our own
    would silence it. Enter after `hosts.start` and before anything slow.
    """

    def __init__(self) -> None:
        self._asked, self._interrupts = False, 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequests":
        self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        if distributed.global_state.client is None:
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._terminate)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def __call__(self, step: int) -> bool:
        """True when the loop shall save and stop at this step; several processes must ask at every step, and all get the same answer."""
        if distributed.global_state.client is None:
            return self._asked
        return multihost_utils.reached_preemption_sync_point(step)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += 1
        if self._interrupts > 1:
            os._exit(1)
        if distributed.global_state.process_id == 0:
            os.write(2, b"\nStopping after this step, with a save. Ctrl-C again leaves at once, without.\n")
        if distributed.global_state.client is None:
            self._asked = True
        else:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX passes it on to the others
