"""A run at a glance: ``metrics.png``, its curves, and ``report.html``, one page that loads nothing from elsewhere."""

import base64
import dataclasses
import html
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vit_jax_mixer import charts, config, files
from vit_jax_mixer.checkpoints import best
from vit_jax_mixer.errors import printable
from vit_jax_mixer.run.writers import METRICS, Scalars, is_evaluation, png, read_lines

CURVES, REPORT = "metrics.png", "report.html"
_POINTS = 1_000  # of a curve, at least, once there were so many
_CHARTS, _LINES = 12, 6  # on a page; in a chart
_PAUSE = 10  # seconds between two pages, at least; nor do they take more than a fiftieth of the time
_MOST = 16 << 20  # bytes of all pictures of a page
_SIZE = (420, 300)  # of a chart, in pixels
_FIRST = ("loss", "accuracy")  # charts
_FACTS = ("task.name", "model.name", "data.source", "steps", "batch_size", "optim.optimizer", "optim.learning_rate")


@dataclasses.dataclass
class Curve:
    """A metric over the steps, of which every ``stride``-th value is kept, so that memory has an end."""

    stride: int = 1
    count: int = 0
    points: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    last: tuple[int, float] = (0, math.nan)
    best: tuple[int, float] = (0, math.nan)

    def add(self, step: int, value: float, *, lowered: bool) -> None:
        """Take a finite value; ``lowered`` says whether less is better."""
        if self.count % self.stride == 0:
            self.points.append((step, value))
        self.count += 1
        if len(self.points) > 2 * _POINTS:
            self.points, self.stride = self.points[::2], 2 * self.stride
        self.last = (step, value)
        if not self.best[0] or (value < self.best[1] if lowered else value > self.best[1]):
            self.best = self.last

    def line(self) -> tuple[np.ndarray, np.ndarray]:
        """Return x and y, the last value among them."""
        points = self.points if self.points[-1] == self.last else [*self.points, self.last]
        x, y = np.array(points, np.float64).T
        return x, y


class Page:
    """A writer that draws instead: at the end, and at evaluations before, where that takes next to no time.

    What it cannot draw or write is told, and ends nothing.
    """

    def __init__(
        self,
        workdir: Path,
        start: int,
        *,
        steps: int = 0,
        about: str = "",
        commands: Mapping[str, str] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """Take up the curves of the run before ``start``.

        Args:
            workdir: takes the files; has the rest of what the page shows.
            start: updates made before.
            steps: of the run.
            about: a sentence on it.
            commands: by what they do.
            say: is told what went wrong.
        """
        self._workdir, self._steps, self._about = workdir, steps, about
        self._commands, self._say = commands or {}, say
        self._curves: dict[str, Curve] = {}
        for line in read_lines(workdir / METRICS):
            if line["step"] <= start:
                self._add(int(line.pop("step")), line)
        self._due = time.monotonic() + _PAUSE

    def write(self, step: int, scalars: Scalars) -> None:
        self._add(step, scalars)
        if is_evaluation(scalars) and time.monotonic() > self._due:
            begun = time.monotonic()
            self._draw()
            now = time.monotonic()
            self._due = now + max(_PAUSE, 50 * (now - begun))

    def close(self) -> None:
        if self._curves:
            self._draw()

    def _add(self, step: int, scalars: Mapping[str, Any]) -> None:
        for name, value in scalars.items():
            if isinstance(value, int | float) and math.isfinite(value) and _group(name):
                self._curves.setdefault(name, Curve()).add(step, value, lowered=best.is_lowered(name))

    def _draw(self) -> None:
        try:
            drawn = self._charts()
            files.write_atomically(self._workdir / CURVES, png(charts.beside(drawn, 3)))
            files.write_atomically(self._workdir / REPORT, self._html(drawn))
        except Exception as error:  # a picture is not worth a run
            self._say(f"{self._workdir / REPORT} is not written ({type(error).__name__}: {error}); the run goes on")

    def _charts(self) -> list[Image.Image]:
        groups: dict[str, list[str]] = {}
        for name in self._curves:
            groups.setdefault(_group(name), []).append(name)
        names = sorted(groups, key=lambda name: (_place(name, groups[name]), name))[:_CHARTS]
        return [*self._range_test(), *(self._chart(name, groups[name][:_LINES]) for name in names)]

    def _range_test(self) -> list[Image.Image]:
        """Return the chart of a run whose rate is `schedules.rising`: the loss by the rate."""
        rate, loss = (self._curves.get(f"train/{name}") for name in ("learning_rate", "loss"))
        if not rate or not loss or not str(self._fields().get("optim.schedule")).startswith("rising"):
            return []
        by_step = dict(zip(*rate.line(), strict=True))
        points = [(by_step[step], value) for step, value in zip(*loss.line(), strict=True) if by_step.get(step)]
        x, y = np.array(points).T
        for i in range(1, len(y)):
            y[i] = 0.7 * y[i - 1] + 0.3 * y[i]
        y = np.minimum(y, 2 * y[0] - y.min())  # what comes after it diverges would flatten the rest
        title = f"range test: least at {x[np.argmin(y)]:.2g}"
        return [charts.lines(title, "log10 of the learning rate", "loss", [("", np.log10(x), y)], fit=True, size=_SIZE)]

    def _fields(self) -> Mapping[str, Any]:
        path = self._workdir / "config.json"
        return config.flat(files.read_json(path)) if path.exists() else {}

    def _chart(self, title: str, names: list[str]) -> Image.Image:
        series = [(_legend(name) if names[1:] else "", *self._curves[name].line()) for name in names]
        return charts.lines(title, "step", "", series, fit=True, size=_SIZE)

    def _html(self, drawn: Iterable[Image.Image]) -> str:
        fields = self._fields()
        scores = [
            (name, f"{curve.last[1]:.4g}", f"{curve.best[1]:.4g}", f"{curve.best[0]:,}")
            for name, curve in self._curves.items()
            if is_evaluation([name])
        ]
        parts = [
            f"<p>{_escaped(self._about)}</p>",
            _table([(name, fields[name]) for name in _FACTS if name in fields]),
            "<h2>Evaluation</h2>" + _table(scores, ("metric", "last", "best", "at step")) if scores else "",
            "<h2>Curves</h2><div class=row>" + "".join(map(_shown, map(png, drawn))) + "</div>",
            *self._pictures(),
            *(f"<h2>{_escaped(what)}</h2><pre>{_escaped(line)}</pre>" for what, line in self._commands.items()),
            f"<details><summary>All {len(fields)} fields of the config</summary>{_table(fields.items())}</details>",
        ]
        done = max(curve.last[0] for curve in self._curves.values())
        of = f" of {self._steps:,}" if self._steps else ""
        return _PAGE.format(
            name=_escaped(self._workdir.resolve().name), step=f"step {done:,}{of}", body="\n".join(parts)
        )

    def _pictures(self) -> list[str]:
        """Return the newest of each name of ``pictures/``, and those of ``evaluation/``, as far as there is room."""
        newest: dict[str, tuple[int, Path]] = {}
        for path in (self._workdir / "pictures").glob("*_*.*"):
            if match := re.fullmatch(r"(.+)_(\d{1,18})\.(png|txt)", path.name):
                newest[match[1]] = max(newest.get(match[1], (-1, path)), (int(match[2]), path))
        found = [(f"{name.replace('_', ' ')}, step {step:,}", path) for name, (step, path) in sorted(newest.items())]
        found += [(f"evaluation: {path.stem}", path) for path in sorted((self._workdir / "evaluation").glob("*.png"))]
        shown, left = [], _MOST
        for title, path in found:
            data = files.read_bytes(path, _MOST)
            if len(data) <= left:
                left -= len(data)
                inner = (
                    _shown(data) if path.suffix == ".png" else f"<pre>{_escaped(data.decode(errors='replace'))}</pre>"
                )
                shown.append(f"<h2>{_escaped(title)}</h2>{inner}")
        return shown


def _group(name: str) -> str:
    """Return the chart of a metric, '' for none: 'loss' of train/loss, test/loss and test/loss_ema."""
    kind, _, rest = name.partition("/")
    if kind == "perf":
        return rest.replace("_", " ") if rest.endswith("_per_second") else ""
    if rest.startswith("grad_norm/"):
        return "gradient norm of each layer"
    return (rest or name).removesuffix("_ema").replace("_", " ")


def _legend(name: str) -> str:
    """Return what tells a metric from the others of its chart."""
    kind, _, rest = name.partition("/")
    return rest.partition("/")[2] or kind + " (mean)" * rest.endswith("_ema")


def _place(group: str, names: Iterable[str]) -> int:
    """Return where a chart stands: loss and accuracy, what is evaluated, what belongs to training alone."""
    if group in _FIRST:
        return _FIRST.index(group)
    return len(_FIRST) + (not any(is_evaluation([name]) for name in names))


def _shown(data: bytes) -> str:
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(data).decode()}">'


def _table(rows: Iterable[Iterable[Any]], head: Iterable[str] = ()) -> str:
    cells = lambda row, tag: "".join(f"<{tag}>{_escaped(cell)}</{tag}>" for cell in row)
    lines = [*([cells(head, "th")] if head else []), *(cells(row, "td") for row in rows)]
    return f"<div class=wide><table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table></div>"


def _escaped(text: Any) -> str:
    return html.escape(printable(text, keep="\n"))


_PAGE = """\
<!doctype html>
<html lang=en>
<meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">
<title>{name}: {step}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1300px; margin: 0 auto; padding: 1em; color: #222; }}
h1 small {{ font-weight: normal; color: #666; }}
img {{ max-width: 100%; height: auto; }}
pre {{ background: #f4f4f4; padding: .6em; white-space: pre-wrap; overflow-wrap: anywhere; }}
table {{ border-collapse: collapse; }}
td, th {{ text-align: left; padding: .1em 1.2em .1em 0; vertical-align: top; overflow-wrap: anywhere; }}
.row {{ display: flex; flex-wrap: wrap; }}
.wide {{ overflow-x: auto; }}
</style>
<h1>{name} <small>{step}</small></h1>
{body}
</html>
"""
