"""A trace of a few training steps, for TensorBoard's profiler and Perfetto."""

import re
from pathlib import Path
from typing import Any

import jax

from vit_jax_mixer.errors import UserError


class Trace:
    """Traces the steps that ``config.profile`` names, as '10:15', to ``profile/`` in the workdir.

    Process 0 alone does: several would write to one folder, in which JAX looks for one trace.
    """

    def __init__(self, steps: str, workdir: Path, start: int, end: int) -> None:
        """Take ``config.profile``; the run makes the steps ``start + 1`` to ``end``."""
        match = re.fullmatch(r"([0-9]{1,18}):([0-9]{1,18})", steps) if steps else None
        if steps and (not match or not 1 <= int(match[1]) <= int(match[2])):
            raise UserError(f"config.profile is {steps[:80]!r}; name the first and the last step to trace, as '10:15'.")
        first, last = (int(match[1]), int(match[2])) if match else (0, 0)
        self._first, self._last = max(first, start + 1), min(last, end)
        self.notice = ""
        if match and self._first > self._last:
            self.notice = f"config.profile: no step from {first} to {last} is left, so that nothing is traced"
        self._folder = workdir / "profile"
        self._running = False

    def before(self, step: int) -> None:
        """Begin with the first of the steps."""
        if step == self._first <= self._last and jax.process_index() == 0:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._running = True

    def after(self, step: int, outputs: Any) -> str:
        """Wait for the last of the steps and write the trace; return what to say then, or ''."""
        if step != self._last or not self._running:
            return ""
        jax.block_until_ready(outputs)
        self.close()
        return f"traced steps {self._first} to {self._last}: {self._folder} (tensorboard --logdir, or ui.perfetto.dev)"

    def close(self) -> None:
        """Write what there is, if the run ends before the last of the steps."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
