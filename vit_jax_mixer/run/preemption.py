"""SIGTERM and SIGINT as a wish: finish the step, save, and end well."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):  # noqa: N818 # it is no error
    """Ends an evaluation early; its text is the signal's name."""


class Interruption:
    """Whether someone asked the run to stop, and at which step all processes do."""

    def __init__(self, start: int) -> None:
        """Take the step from which the run goes on."""
        self._start = start
        self._asked = ""

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt  # Ctrl-C again: at once, and nothing is saved
        self._asked = signal.Signals(number).name
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # which JAX tells the other processes

    def agreed(self, step: int) -> str:
        """Return why all processes stop after this step, or ''; every process asks after each step."""
        if jax.process_count() == 1:
            return self._asked
        # JAX's own notice of SIGTERM: one process has it, and all get the same later step. JAX counts from
        # 0, and before it was asked for the first time it takes 1 for the next.
        return "SIGTERM" if multihost_utils.reached_preemption_sync_point(step - self._start) else ""

    def check(self) -> None:
        """Raise `Stopped` in the middle of work that can be left; several processes finish it together."""
        if self._asked and jax.process_count() == 1:
            raise Stopped(self._asked)

    @contextmanager
    def heeded(self) -> Iterator["Interruption"]:
        """Take the signals while the block runs."""
        # With several processes SIGTERM is JAX's; the handlers belong to the main thread alone.
        mine = _SIGNALS if jax.process_count() == 1 else (signal.SIGINT,)
        try:
            before = {number: signal.signal(number, self._ask) for number in mine}
        except ValueError:
            before = {}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
