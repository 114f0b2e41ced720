"""A window of steps under the profiler, written where xprof and TensorBoard's profile tab read it."""

import os
from collections.abc import Callable

import jax


class ProfilerWindow:
    """Profiles steps `start` to `start + steps - 1`, counted from 1 as in metrics.jsonl.

    Args:
      folder: receives plugins/profile/<time>/*.xplane.pb; read it with `xprof --logdir FOLDER`.
      start: the first step of the window; 0: no window.
      steps: how many.
    """

    def __init__(self, folder: os.PathLike | str, start: int, steps: int = 3):
        if start < 0 or steps < 1:
            raise ValueError(
                f"profile.start={start}, profile.steps={steps} is no window. Give a first step >= 1 (0: none) and at least one step."
            )
        self._folder, self._start, self._steps, self._open = os.fspath(folder), start, steps, False

    def reached(self, step: int, wait: Callable[[], None]) -> None:
        """Opens the window before its first step and closes it after its last; a run that starts inside it profiles the rest.

        Args:
          step: the last step that was handed to the device.
          wait: returns once the device has finished it.
        """
        inside = self._start > 0 and self._start <= step + 1 < self._start + self._steps
        if inside and not self._open:
            wait()
            jax.profiler.start_trace(self._folder)
            self._open = True
        elif self._open and not inside:
            wait()
            self.close()

    def close(self) -> None:
        """Ends the window, if it is open."""
        if self._open:
            jax.profiler.stop_trace()
            self._open = False
