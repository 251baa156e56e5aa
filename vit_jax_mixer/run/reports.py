"""What a run tells while it goes on: metrics, how fast it is, and what is not finite."""

import collections
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm

from vit_jax_mixer.checkpoints import best
from vit_jax_mixer.errors import UserError, printable
from vit_jax_mixer.models import stacked
from vit_jax_mixer.run import gradient_norms
from vit_jax_mixer.run.more_writers import BY_NAME
from vit_jax_mixer.run.page import REPORT, Page
from vit_jax_mixer.run.step import MUST_BE_FINITE
from vit_jax_mixer.run.tensorboard import TensorBoard
from vit_jax_mixer.run.writers import Log, Scalars, Writer, open_writers


class Reports:
    """What the train loop tells: metrics in files and on the console, a few steps behind."""

    def __init__(
        self,
        workdir: Path,
        start: int,
        steps: int,
        log_every: int,
        batch_size: int,
        *,
        noun: str = "examples",
        writers: str = "",
        about: str = "",
        commands: Mapping[str, str] | None = None,
        least_seconds: float = 0.0,
        skips: int = 0,
        on_not_finite: Callable[[int], str] = lambda step: "",
        remark: Callable[[int, Scalars], str] = lambda step, metrics: "",
    ) -> None:
        """Open the files.

        Args:
            workdir: where they are.
            start: updates made before.
            steps: updates in all.
            log_every: steps between two lines.
            batch_size: examples of an update.
            noun: what they are called.
            writers: as ``config.writers``.
            about: a sentence on the run, for its page.
            commands: to go on with the run or use its model, by what they do, for its page.
            least_seconds: that the devices' peak would need for a step of the model; 0 if not known.
            skips: how many steps may be skipped because something in them is not finite.
            on_not_finite: is told the number of such a step, and returns what to say of it.
            remark: is told what is logged of a step, and returns what else to say.
        """
        self._remark = remark
        self._console = Console(start, steps)
        self._log = Log(workdir, start, self._console.line)
        page = partial(Page, steps=steps, about=about, commands=commands, say=self._console.line)
        board = partial(TensorBoard, say=self._console.line)
        self._opened = (
            self._log,
            *open_writers(writers, workdir, start, {**BY_NAME, "tensorboard": board, "report": page}),
        )
        self._writers: list[Any] = list(self._opened)
        self._speed = Speed(start, batch_size, noun, least_seconds)
        self._behind = Behind(skips, on_not_finite, self._console.line)
        self.waiting = self._speed.waiting
        self._start, self._steps, self._begun = start, steps, time.monotonic()
        self._page = workdir / REPORT if any(isinstance(one, Page) for one in self._opened) else None
        self._every = log_every
        self.line = self._console.line
        self.has_evaluation = self._log.has_evaluation
        self.evaluations = self._log.evaluations  # all of the run, by step

    def training(self, step: int, metrics: Any) -> None:
        """Take a step's metrics, still on the devices; report those of a few steps before."""
        self._report(self._behind.add(step, metrics))

    def catch_up(self) -> None:
        """Wait for all steps and report them; a `UserError` if one of them was not finite."""
        self._report(self._behind.fetch())

    def evaluation(self, step: int, scores: Scalars) -> None:
        """Report an evaluation; the speed of training does not count its time."""
        self._write(step, scores)
        self.evaluations[step] = scores
        self._console.evaluation(step, scores)
        self._speed.restart(step)

    def summary(self, step: int, done: str) -> None:
        """Tell how long it took, what the last evaluation found, beside the best ones, and what is ``done``."""
        page = f"; curves and pictures are in {self._page}" if self._page else ""
        if step > self._start:
            self.line(f"{step - self._start:,} steps took {_clock(time.monotonic() - self._begun)}{page}")
        last = self.evaluations.get(step, {})
        names = list(last)[:_MOST_FIGURES]
        for name in names:
            of_step = {at: scores[name] for at, scores in self.evaluations.items() if name in scores}
            at = (min if best.is_lowered(name) else max)(of_step, key=lambda at: of_step[at])
            width = max(map(len, names))
            self.line(f"  {name:{width}}  {last[name]:.4g}, best {of_step[at]:.4g} at step {at:,}")
        self._console.line(done, _GREEN)

    def pictures(self, step: int, pictures: Mapping[str, Any]) -> None:
        """Take pictures, and texts, by name; a writer that has no place for them is not told."""
        for name, picture in pictures.items():
            self._tell("picture", step, name, picture)

    def parameters(self, step: int, state: Callable[[], Any]) -> None:
        """Take a state's parameters where a writer wants their histograms, but for those that are spread over hosts."""
        takers = [writer for writer in self._writers if getattr(writer, "histograms", False)]
        if not takers:
            return
        for path, leaf in jax.tree.leaves_with_path(stacked.unstack(state().params)):
            if leaf.is_fully_addressable or leaf.is_fully_replicated:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                self._tell("histogram", step, f"parameters/{name}", np.asarray(leaf), to=takers)

    def _report(self, fetched: Iterator[tuple[int, dict[str, float]]]) -> None:
        for step, metrics in fetched:
            self._console.advance(step)
            if step % self._every == 0 or step == self._steps:
                speed = self._speed.measure(step)
                self._console.training(step, {k: v for k, v in metrics.items() if not _is_quiet(k)}, speed)
                self._console.line(self._remark(step, metrics))
                self._write(step, {f"train/{name}": value for name, value in metrics.items()} | speed)

    def _write(self, step: int, scalars: Scalars) -> None:
        self._tell("write", step, scalars)

    def _tell(self, method: str, *what: Any, to: Sequence[Writer] | None = None) -> None:
        """Call a method of all writers, or of some, that have it."""
        for writer in tuple(self._writers) if to is None else to:
            try:
                getattr(writer, method, lambda *nothing: None)(*what)
            except Exception:
                self._writers.remove(writer)  # so that what was trained can be reported, and saved
                raise

    def close(self) -> None:
        with ExitStack() as stack:  # each is closed, whatever another one's close raises
            for one in (self._console, *reversed(self._opened)):
                stack.callback(one.close)


_BOLD, _GREEN = "1", "32"  # as terminals know them
_MOST_FIGURES = 8  # of the summary
_QUIET = ("grad_norm", "param_norm", "learning_rate", "skipped")  # logged, but not on the console


def _is_quiet(name: str) -> bool:
    return name in _QUIET or name.startswith(gradient_norms.PREFIX)


class Behind:
    """Metrics of steps that the devices may still work on; fetched a few steps later.

    So the host never waits for the step that it has just begun, and never runs far ahead.
    """

    def __init__(self, skips: int, on_not_finite: Callable[[int], str], line: Callable[[str], None]) -> None:
        self._skips = skips
        self._on_not_finite = on_not_finite
        self._line = line
        self._waiting: collections.deque[tuple[int, Any]] = collections.deque()

    def add(self, step: int, metrics: Any, lag: int = 4) -> Iterator[tuple[int, dict[str, float]]]:
        """Take a step's metrics; yield those that are due, ``lag`` steps later."""
        for value in jax.tree.leaves(metrics):
            value.copy_to_host_async()
        self._waiting.append((step, metrics))
        yield from self.fetch(lag)

    def fetch(self, lag: int = 0) -> Iterator[tuple[int, dict[str, float]]]:
        """Yield the metrics of all steps but the newest ``lag``, waiting for them; those of skipped steps partly.

        Raises:
            UserError: the loss, the gradient or the new parameters of a step are not finite, and
                no further step may be skipped.
        """
        while len(self._waiting) > lag:
            step, metrics = self._waiting[0]
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            if bad := [name for name in MUST_BE_FINITE if not math.isfinite(values[name])]:
                self._not_finite(step, f"step {step}: {bad[0]} is {values[bad[0]]}", int(values.get("skipped", 1)))
                values = {name: value for name, value in values.items() if math.isfinite(value)}
            self._waiting.popleft()
            yield step, values

    def _not_finite(self, step: int, what: str, count: int) -> None:
        more = self._on_not_finite(step)
        if count > self._skips:
            allowed = f" after {self._skips} steps that were skipped" if self._skips else ""
            raise UserError(
                f"{what}, so the run stops{allowed} and its last checkpoint stays{more}; "
                "lower config.optim.learning_rate or set config.optim.clip_norm, and look at the data."
            )
        self._line(f"{what}; the step is skipped, number {count} of at most {self._skips}{more}")


class Speed:
    """What the run's time goes into, between two lines of the log."""

    def __init__(self, step: int, batch_size: int, noun: str, least_seconds: float) -> None:
        self._batch_size = batch_size
        self._noun = noun
        self._least_seconds = least_seconds
        self.restart(step)

    def restart(self, step: int) -> None:
        """Measure from now on, as after an evaluation."""
        self._since = (step, time.perf_counter())
        self._waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        begun = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begun

    def measure(self, step: int) -> dict[str, float]:
        """Return the means since the last call, as 'perf/...'; what is not known here is left out."""
        then, begun = self._since
        seconds, waited = max(time.perf_counter() - begun, 1e-9), self._waited
        self.restart(step)
        steps_per_second = max(step - then, 1) / seconds
        found = {
            f"{self._noun}_per_second": steps_per_second * self._batch_size,
            "step_seconds": 1 / steps_per_second,
            "data_wait": min(waited / seconds, 1.0),
        }
        if self._least_seconds:
            found["model_flop_utilisation"] = self._least_seconds * steps_per_second
        memory = jax.local_devices()[0].memory_stats() or {}  # a CPU has none
        if "peak_bytes_in_use" in memory:
            found["peak_bytes"] = float(memory["peak_bytes_in_use"])
        return {f"perf/{name}": value for name, value in found.items()}


class Console:
    """Progress on the console: a bar on a terminal, else plain lines."""

    def __init__(self, start: int, steps: int) -> None:
        self._steps = steps
        self._visible = jax.process_index() == 0
        on_terminal = self._visible and sys.stdout.isatty()
        self._bar = tqdm.tqdm(
            total=steps,
            initial=start,
            file=sys.stdout,
            ncols=_columns(),
            bar_format="{percentage:3.0f}% |{bar:10}| {n_fmt}/{total_fmt} {remaining} left{postfix}",
            disable=not on_terminal,
        )

    def advance(self, step: int) -> None:
        """Move the bar to a step that is done."""
        self._bar.update(step - self._bar.n)

    def training(self, step: int, scalars: Scalars, speed: Scalars) -> None:
        """Show a step's metrics, and how fast it goes."""
        how = _speed_words(speed)
        if self._bar.disable:
            left = (self._steps - step) * speed["perf/step_seconds"]
            self.line(f"step {step}/{self._steps}  {_words(scalars)}  {how}  {_clock(left)} left")
        else:
            self._bar.ncols = columns = _columns()
            rest = len(f"100% |          | {self._steps}/{self._steps} 100:00:00 left, ")
            first = {name: scalars[name] for name in sorted(scalars, key=lambda name: name != "loss")}
            self._bar.set_postfix_str(_as_fits(f"{_words(first)}  {how}", columns - rest), refresh=False)

    def line(self, text: str, colour: str = "") -> None:
        """Show a line above the bar, in colour on a terminal; an empty one is nothing to show."""
        if not text or not self._visible:
            return
        if self._bar.disable:
            print(printable(text, keep="\n"), flush=True)
        else:
            shown = printable(text, keep="\n")
            plain = not colour or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or os.name == "nt"
            self._bar.write(shown if plain else f"\x1b[{colour}m{shown}\x1b[0m", file=sys.stdout)

    def evaluation(self, step: int, scalars: Scalars) -> None:
        self.line(f"step {step}/{self._steps}  evaluation: {_words(scalars)}", _BOLD)

    def close(self) -> None:
        self._bar.close()


def _columns() -> int:
    return shutil.get_terminal_size().columns


def _as_fits(words: str, room: int) -> str:
    """Return as many of the figures, which two blanks part, as there is room for."""
    while len(words) > room and words:
        words = words.rpartition("  ")[0]
    return words


def _words(scalars: Scalars) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())


def _speed_words(speed: Scalars) -> str:
    """Return the speed in words, and what keeps it down, where that is more than a trace."""
    rate = next(name for name in speed if name.endswith("_per_second"))
    words = f"{speed[rate]:,.0f} {rate.removeprefix('perf/').removesuffix('_per_second')}/s"
    if speed["perf/data_wait"] > 0.05:
        words += f"  {speed['perf/data_wait']:.0%} waiting for data"
    if "perf/model_flop_utilisation" in speed:
        words += f"  {speed['perf/model_flop_utilisation']:.0%} MFU"
    if "perf/peak_bytes" in speed:
        words += f"  {speed['perf/peak_bytes'] / 1e9:.1f} GB"
    return words


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
