"""What an evaluation of rows found, what is printed of it, and its files."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vit_jax_mixer import charts, files
from vit_jax_mixer.data.tables.target import Target
from vit_jax_mixer.errors import printable
from vit_jax_mixer.predictors import base
from vit_jax_mixer.predictors.tables.figures import probabilities
from vit_jax_mixer.predictors.tables.importance import Importance

_WORDS = {
    "loss": "loss",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "auc": "area under ROC",
    "average_precision": "average precision",
    "calibration_error": "calibration error",
    "mae": "mean absolute error",
    "rmse": "root of mean squares",
    "r2": "R2",
}
_SHARES = ("accuracy", "balanced_accuracy", "precision", "recall", "calibration_error")
_BINS = 10  # of the calibration curve


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluated(base.Evaluated):
    """What an evaluation found.

    Attributes:
        target: what the rows were asked for.
        threshold: least probability at which the positive class of two is told.
        labels: i32[N], or f32[N] in deviations.
        logits: f32[N, K].
        figures: those of `figures.figures`.
        rows_per_second: reading and all, but for the compilation.
        importance: of the columns; None where they are too many.
    """

    target: Target
    threshold: float
    labels: np.ndarray
    logits: np.ndarray
    figures: dict[str, float]
    rows_per_second: float
    importance: Importance | None = None

    def lines(self) -> list[str]:
        """Return what is printed."""
        shown = [f"  rows                  {len(self.labels):,}"]
        for name, value in self.figures.items():
            said = f"{100 * value:.2f} %" if name in _SHARES else f"{value:.4f}"
            shown.append(f"  {_WORDS[name]:20}  {said}")
        if self.target.kind == "two":
            shown.append(f"  threshold             {self.threshold:.4f} for {self.target.class_names[1]!r}")
        if self.importance:
            best = self.importance.names[:5]
            shown.append(f"  most important        {', '.join(map(printable, best))}")
        return [*shown, f"  rows per second       {self.rows_per_second:,.0f}"]

    def write(self, out: Path, given: Mapping[str, str]) -> list[str]:
        """Write metrics.json, the picture of the kind and that of the columns, each at once or not at all."""
        metrics = {
            **given,
            "rows": len(self.labels),
            "target": self.target.name,
            **({"threshold": self.threshold} if self.target.kind == "two" else {}),
            **self.figures,
            "rows_per_second": self.rows_per_second,
        }
        pictures = {"fit.png" if self.target.kind == "number" else "curves.png": self.picture()}
        texts = {"metrics.json": json.dumps(metrics, indent=2) + "\n"}
        if self.importance:
            pictures["importance.png"] = self.importance.picture(_WORDS[self.importance.metric])
            texts["importance.csv"] = self.importance.table()
        for name, picture in pictures.items():
            new = out / f".new_{name}"
            picture.save(new, "PNG")
            new.replace(out / name)
        for name, text in texts.items():
            files.write_atomically(out / name, text)
        return [*texts, *pictures]

    def picture(self) -> Image.Image:
        """Return the ROC and calibration curves of classes; of a number, what was told against what is true."""
        if self.target.kind == "number":
            true, told = (side * self.target.deviation + self.target.mean for side in (self.labels, self.logits[:, 0]))
            means = _by_bins(told, true)
            return charts.lines(
                f"{self.target.name}: true, by what is told", "told", "true, mean of the rows told so", [("", *means)],
                diagonal=True, dots=True,
            )  # fmt: skip
        from sklearn.metrics import roc_curve

        p = probabilities(self.target, self.logits)
        of_class = [p] if self.target.kind == "two" else list(p.T)
        names = self.target.class_names[1:] if self.target.kind == "two" else self.target.class_names
        roc, calibration = [], []
        frequent = np.argsort([-(self.labels == self._number(i)).sum() for i in range(len(names))], kind="stable")
        for i in sorted(frequent[: len(charts.COLOURS)]):
            positive = self.labels == self._number(int(i))
            if 0 < positive.sum() < len(positive):
                false, true, _ = roc_curve(positive, of_class[i])
                roc.append((names[i], false, true))
            calibration.append((names[i], *_by_bins(of_class[i], positive.astype(np.float64), (0.0, 1.0))))
        return charts.beside(
            [
                charts.lines("ROC", "share of others told to be it", "share of it found", roc, diagonal=True),
                charts.lines("Calibration", "probability told", "share of it", calibration, diagonal=True, dots=True),
            ],
            2,
        )

    def _number(self, place: int) -> int:
        """Return the class of a curve: of two, there is one for the positive class alone."""
        return place + 1 if self.target.kind == "two" else place


def _by_bins(x: np.ndarray, y: np.ndarray, span: Sequence[float] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of x and of y in bins of x, equally wide in a span or else equally full; without empty ones."""
    if span:
        of_row = np.clip(((x - span[0]) / (span[1] - span[0]) * _BINS).astype(int), 0, _BINS - 1)
    else:
        of_row = np.argsort(np.argsort(x, kind="stable"), kind="stable") * _BINS // len(x)
    count = np.bincount(of_row, minlength=_BINS)
    there = count > 0
    return tuple((np.bincount(of_row, side, _BINS)[there] / count[there]) for side in (x, y))  # pyright: ignore
