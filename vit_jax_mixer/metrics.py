"""Where numbers go: ``metrics.jsonl``, TensorBoard and the console."""

import collections
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import tensorboardX
import tqdm

from vit_jax_mixer.errors import UserError

Scalars = Mapping[str, float]


class Reports:
    """What the train loop tells: metrics in files and on the console, a few steps behind."""

    def __init__(self, workdir: Path, start: int, steps: int, log_every: int, batch_size: int) -> None:
        self._log = Log(workdir, start)
        self._console = Console(start, steps, batch_size)
        self._behind = Behind()
        self._steps = steps
        self._every = log_every
        self.line = self._console.line
        self.has_evaluation = self._log.has_evaluation

    def training(self, step: int, metrics: Any) -> None:
        """Take a step's metrics, still on the devices; report those of a few steps before."""
        self._report(self._behind.add(step, metrics))

    def catch_up(self) -> None:
        """Wait for all steps and report them; a `UserError` if one of them was not finite."""
        self._report(self._behind.fetch())
        self._log.flush()

    def evaluation(self, step: int, scores: Scalars) -> None:
        """Report an evaluation; the speed of training does not count its time."""
        self._log.write(step, scores)
        self._console.evaluation(step, scores)
        self._console.restart(step)

    def _report(self, fetched: Iterator[tuple[int, dict[str, float]]]) -> None:
        for step, metrics in fetched:
            self._console.advance(step)
            if step % self._every == 0 or step == self._steps:
                speed = self._console.training(step, {k: v for k, v in metrics.items() if k not in _QUIET})
                self._log.write(step, {f"train/{name}": value for name, value in metrics.items()} | speed)

    def close(self) -> None:
        self._log.close()
        self._console.close()


_QUIET = ("grad_norm", "param_norm", "learning_rate")  # logged, but not on the console


class Log:
    """The metrics of a run in its workdir; process 0 writes, the others stay silent.

    ``metrics.jsonl`` holds one JSON object a line: ``step`` (updates made), then names.
    """

    def __init__(self, workdir: Path, start: int) -> None:
        """Open the files; what a killed run wrote after its checkpoint at ``start`` is taken back."""
        self._file = self._board = None
        path = workdir / "metrics.jsonl"
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= start]
        self._last: Scalars = json.loads(kept[-1]) if kept else {}
        if jax.process_index() == 0:
            new = path.with_suffix(".jsonl.new")
            new.write_text("".join(kept))
            new.replace(path)
            self._file = path.open("a", buffering=1)
            self._board = tensorboardX.SummaryWriter(str(workdir), purge_step=start + 1, flush_secs=10)

    def write(self, step: int, scalars: Scalars) -> None:
        """Write numbers that belong to the state after ``step`` updates."""
        if self._file and self._board:
            self._file.write(json.dumps({"step": step, **scalars}) + "\n")
            for name, value in scalars.items():
                self._board.add_scalar(name, value, step)

    def has_evaluation(self, step: int) -> bool:
        """Say whether the last line that was found is an evaluation of ``step``."""
        return self._last.get("step") == step and not any(name.startswith("train/") for name in self._last)

    def flush(self) -> None:
        """Let what was written survive a kill; ``metrics.jsonl`` does at once."""
        if self._board:
            self._board.flush()

    def close(self) -> None:
        if self._file and self._board:
            self._file.close()
            self._board.close()


def _lines(path: Path) -> Iterator[str]:
    """Yield the complete lines of a file that a kill may have cut."""
    if path.exists():
        yield from (line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n"))


class Behind:
    """Metrics of steps that the devices may still work on; fetched a few steps later.

    So the host never waits for the step that it has just begun, and never runs far ahead.
    """

    def __init__(self, lag: int = 4) -> None:
        self._lag = lag
        self._waiting: collections.deque[tuple[int, Any]] = collections.deque()

    def add(self, step: int, metrics: Any) -> Iterator[tuple[int, dict[str, float]]]:
        """Take a step's metrics; yield those that are due."""
        for value in jax.tree.leaves(metrics):
            value.copy_to_host_async()
        self._waiting.append((step, metrics))
        yield from self.fetch(self._lag)

    def fetch(self, lag: int = 0) -> Iterator[tuple[int, dict[str, float]]]:
        """Yield the metrics of all steps but the newest ``lag``, waiting for them.

        Raises:
            UserError: the loss, the gradient or the new parameters of a step are not finite.
        """
        while len(self._waiting) > lag:
            step, metrics = self._waiting[0]
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            for name in ("loss", "grad_norm", "param_norm"):
                if not math.isfinite(values[name]):
                    raise UserError(
                        f"step {step}: {name} is {values[name]}, so the run stops and its last checkpoint stays; "
                        "lower config.optim.learning_rate or set config.optim.clip_norm, and look at the data."
                    )
            self._waiting.popleft()
            yield step, values


class Console:
    """Progress on the console: a bar on a terminal, else plain lines."""

    def __init__(self, start: int, steps: int, batch_size: int) -> None:
        self._steps = steps
        self._batch_size = batch_size
        self._visible = jax.process_index() == 0
        on_terminal = self._visible and sys.stdout.isatty()
        self._bar = tqdm.tqdm(
            total=steps, initial=start, unit="step", file=sys.stdout, dynamic_ncols=True, disable=not on_terminal
        )
        self.restart(start)

    def restart(self, step: int) -> None:
        """Measure speed from now on, as after an evaluation."""
        self._since = (step, time.perf_counter())

    def advance(self, step: int) -> None:
        """Move the bar to a step that is done."""
        self._bar.update(step - self._bar.n)

    def training(self, step: int, scalars: Scalars) -> dict[str, float]:
        """Show a step's metrics; return the speed since the last call, as perf/images_per_second."""
        then, begun = self._since
        self.restart(step)
        steps_per_second = (step - then) / max(self._since[1] - begun, 1e-9)
        speed = steps_per_second * self._batch_size
        if self._bar.disable:
            left = (self._steps - step) / max(steps_per_second, 1e-9)
            self.line(f"step {step}/{self._steps}  {_words(scalars)}  {speed:,.0f} images/s  {_clock(left)} left")
        else:
            self._bar.set_postfix_str(f"{_words(scalars)}  {speed:,.0f} images/s", refresh=False)
        return {"perf/images_per_second": speed}

    def line(self, text: str) -> None:
        """Show a line above the bar."""
        if self._visible and self._bar.disable:
            print(text, flush=True)
        elif self._visible:
            self._bar.write(text, file=sys.stdout)

    def evaluation(self, step: int, scalars: Scalars) -> None:
        self.line(f"step {step}/{self._steps}  evaluation: {_words(scalars)}")

    def close(self) -> None:
        self._bar.close()


def _words(scalars: Scalars) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
