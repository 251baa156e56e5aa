"""What an evaluation of a classifier found, what is printed of it, and its files."""

import csv
import dataclasses
import json
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vit_jax_mixer.errors import printable
from vit_jax_mixer.predictors import base
from vit_jax_mixer.predictors.classification import confusion, scores


@dataclasses.dataclass(frozen=True)
class Evaluated(base.Evaluated):
    """What an evaluation found.

    Attributes:
        names: of the model's classes.
        classes: i32[J], those of them that the data have, sorted.
        matched: how the data's classes were matched with the model's; '' if they are the same.
        labels: i32[N], the true classes.
        predictions: i32[N], the likeliest classes.
        figures: those of `scores.summary`.
        images_per_second: reading and all, but for the compilation.
        skipped: a sentence for each bad example.
        losses: f32[N].
        confidences: f32[N], the probabilities of the predictions.
        where: the name of example i, where the examples have names.
        worst: a picture of those with the largest loss.
    """

    names: tuple[str, ...]
    classes: np.ndarray
    matched: str
    labels: np.ndarray
    predictions: np.ndarray
    figures: dict[str, float]
    images_per_second: float
    skipped: Sequence[str]
    losses: np.ndarray
    confidences: np.ndarray
    where: Callable[[int], str] | None = None
    worst: Image.Image | None = None

    def lines(self) -> list[str]:
        """Return what is printed."""
        figures = self.figures
        text = [
            f"  images              {len(self.labels):,}",
            f"  accuracy            {100 * figures['accuracy']:.2f} %",
            f"  {f'top-{min(5, len(self.names))} accuracy':18}  {100 * figures['top5_accuracy']:.2f} %",
            f"  mean over classes   {100 * figures['mean_class_accuracy']:.2f} %  "
            f"(precision {100 * figures['mean_class_precision']:.2f} %, F1 {100 * figures['mean_class_f1']:.2f} %)",
            f"  cross-entropy       {figures['loss']:.4f}",
            f"  calibration error   {100 * figures['calibration_error']:.2f} %",
            f"  images per second   {self.images_per_second:,.0f}",
        ]
        if self.skipped:
            text.append(f"  skipped images      {len(self.skipped):,}")
        return [*text, *textwrap.wrap(printable(self.matched), 80)]

    def write(self, out: Path, given: Mapping[str, str]) -> list[str]:
        """Write the files that the command's help lists, each at once or not at all, and return their names.

        Args:
            out: a folder.
            given: what was evaluated, for ``metrics.json``.
        """
        with tempfile.TemporaryDirectory(prefix=".new_", dir=out) as new:
            names = self._write(Path(new), given)
            for name in names:
                Path(new, name).replace(out / name)
        for name in {"confusion.png", "predictions.csv", "worst.png"} - {*names}:
            (out / name).unlink(missing_ok=True)  # of another evaluation
        return names

    def _write(self, out: Path, given: Mapping[str, str]) -> list[str]:
        per_class = scores.per_class(self.labels, self.predictions, len(self.names))
        with (out / "per_class.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["class", "name", "images", "correct", "accuracy", "predicted", "precision", "f1"])
            of = {name: getattr(per_class, name) for name in ("accuracy", "precision", "f1")}
            for k in self.classes.tolist():
                shares = {name: f"{values[k]:.6f}" if per_class.count[k] else "" for name, values in of.items()}
                row = [k, confusion.cell(self.names[k]), per_class.count[k], per_class.correct[k], shares["accuracy"]]
                writer.writerow([*row, per_class.predicted[k], shares["precision"], shares["f1"]])
        counts = scores.confusion_counts(self.labels, self.predictions, len(self.names))
        files = ["metrics.json", "per_class.csv", "confusion.csv"]
        shown = np.union1d(self.classes, self.predictions)
        if len(shown) <= confusion.LARGEST:
            matrix, names = confusion.square(counts, shown), [self.names[k] for k in shown]
            confusion.write_square(out / "confusion.csv", matrix, names)
            confusion.draw(matrix, names).save(out / "confusion.png")
            files.append("confusion.png")
        else:
            confusion.write_list(out / "confusion.csv", counts, self.names)
        if self.where:
            self._write_predictions(out / "predictions.csv", self.where)
            files.append("predictions.csv")
        if self.worst:
            self.worst.save(out / "worst.png")
            files.append("worst.png")
        metrics = {
            **given,
            "images": len(self.labels),
            "classes": len(self.classes),
            "matched": self.matched,
            **self.figures,
            "images_per_second": self.images_per_second,
            "skipped": self.skipped,
        }
        (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        return files

    def _write_predictions(self, path: Path, where: Callable[[int], str]) -> None:
        """Write a row for each example, in the order of the data: which ones are wrong, and how sure the model was."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "true", "predicted", "probability", "correct", "loss"])
            rows = zip(self.labels.tolist(), self.predictions.tolist(), self.confidences, self.losses, strict=True)
            for i, (label, predicted, confidence, loss) in enumerate(rows):
                names = [confusion.cell(self.names[k]) for k in (label, predicted)]
                file_name = confusion.cell(where(i))
                writer.writerow([file_name, *names, f"{confidence:.6g}", int(label == predicted), f"{loss:.6g}"])
