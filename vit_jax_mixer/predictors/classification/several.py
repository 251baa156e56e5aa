"""Examples of several classes each: which ones, and how good predictions of them are. N examples, K classes."""

import csv
import dataclasses
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vit_jax_mixer import classes, files
from vit_jax_mixer.errors import UserError, printable
from vit_jax_mixer.predictors import base
from vit_jax_mixer.predictors.classification import confusion

BETWEEN = ";"  # the labels of an example, as 'cat;dog'; alone it is the label of one that has none


def labels_in(name: str) -> list[str]:
    """Return the labels that a source's label stands for, as 'cat' and 'dog' of 'cat; dog'."""
    return list(dict.fromkeys(word for part in name.split(BETWEEN) if (word := part.strip())))


def names_in(source_classes: Sequence[str], where: str) -> tuple[str, ...]:
    """Return all labels that a source's classes stand for, in the order of their names, or of whole numbers' values.

    Raises:
        UserError: there are none.
    """
    found = {label for name in source_classes for label in labels_in(name)}
    if not found:
        raise UserError(f"{where} has no label but {BETWEEN!r}; name some, as 'cat' or 'cat{BETWEEN}dog'.")
    numbers = {label: classes.number(label) for label in found}
    by_value = None not in numbers.values()
    return tuple(sorted(found, key=lambda label: (int(numbers[label] or 0) if by_value else 0, label)))


def table_of(source_classes: Sequence[str], places: Mapping[str, int], count: int) -> np.ndarray:
    """Return f32[J, K], 1 where a class of the source stands for a label of that place."""
    table = np.zeros((len(source_classes), count), np.float32)
    for row, name in enumerate(source_classes):
        table[row, [places[label] for label in labels_in(name)]] = 1
    return table


@dataclasses.dataclass(frozen=True)
class PerClass:
    """What is found of each class, [K] each.

    Attributes:
        count: i64, examples that have it.
        predicted: i64, those that are said to.
        average_precision: f64, the area under precision by recall, as scikit-learn has it; NaN without an example.
        precision: f64, of those that are said to have it the share that do; 0 where there are none.
        recall: f64, the share that is found; NaN without an example.
        f1: f64, the harmonic mean of both; NaN without an example.
    """

    count: np.ndarray
    predicted: np.ndarray
    average_precision: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def per_class(wanted: np.ndarray, probabilities: np.ndarray, threshold: float) -> PerClass:
    """Return the figures of bool[N, K] labels and f32[N, K] probabilities, of which those from a threshold on count."""
    from sklearn.metrics import average_precision_score

    said = probabilities >= threshold
    count, predicted, right = wanted.sum(0), said.sum(0), (wanted & said).sum(0)
    there = count > 0
    average = np.full(len(count), np.nan)
    for k in np.flatnonzero(there):
        average[k] = average_precision_score(wanted[:, k], probabilities[:, k])
    return PerClass(
        count,
        predicted,
        average,
        precision=right / np.maximum(predicted, 1),
        recall=np.where(there, right / np.maximum(count, 1), np.nan),
        f1=np.where(there, 2 * right / np.maximum(count + predicted, 1), np.nan),
    )


def summary(wanted: np.ndarray, probabilities: np.ndarray, losses: np.ndarray, threshold: float) -> dict[str, float]:
    """Return the figures of an evaluation; means over classes are over those that have an example.

    Args:
        wanted: bool[N, K], the labels.
        probabilities: f32[N, K].
        losses: f32[N].
        threshold: from which on a label is told.
    """
    found, said = per_class(wanted, probabilities, threshold), probabilities >= threshold
    there = found.count > 0
    mean = lambda values: float(values[there].mean()) if there.any() else float("nan")
    return {
        "loss": float(losses.mean(dtype=np.float64)),
        "mean_average_precision": mean(found.average_precision),
        "mean_class_f1": mean(found.f1),
        "f1": float(2 * (wanted & said).sum() / max(int(wanted.sum() + said.sum()), 1)),
        "all_right": float((wanted == said).all(1).mean()),
    }


@dataclasses.dataclass(frozen=True)
class Evaluated(base.Evaluated):
    """What an evaluation found.

    Attributes:
        names: of the model's classes.
        matched: how the data's labels were matched with the model's; '' if they are the same.
        wanted: bool[N, K], the labels.
        probabilities: f32[N, K].
        losses: f32[N].
        threshold: from which on a label is told.
        images_per_second: reading and all, but for the compilation.
        skipped: a sentence for each bad example.
        where: the name of example i, where the examples have names.
    """

    names: tuple[str, ...]
    matched: str
    wanted: np.ndarray
    probabilities: np.ndarray
    losses: np.ndarray
    threshold: float
    images_per_second: float
    skipped: Sequence[str]
    where: Callable[[int], str] | None = None

    @property
    def figures(self) -> dict[str, float]:  # pyright: ignore[reportIncompatibleVariableOverride] # as read
        return summary(self.wanted, self.probabilities, self.losses, self.threshold)

    def lines(self) -> list[str]:
        """Return what is printed."""
        found = self.figures
        text = [
            f"  images                  {len(self.wanted):,}",
            f"  mean average precision  {100 * found['mean_average_precision']:.2f} %",
            f"  F1 over all labels      {100 * found['f1']:.2f} %  (mean over classes "
            f"{100 * found['mean_class_f1']:.2f} %; labels from a probability of {self.threshold:g} on)",
            f"  all labels right        {100 * found['all_right']:.2f} %",
            f"  cross-entropy           {found['loss']:.4f}",
            f"  images per second       {self.images_per_second:,.0f}",
        ]
        more = [f"  skipped images          {len(self.skipped):,}"] if self.skipped else []
        return [*text, *more, *textwrap.wrap(printable(self.matched), 80)]

    def write(self, out: Path, given: Mapping[str, str]) -> list[str]:
        """Write metrics.json, per_class.csv and, where examples have names, predictions.csv."""
        rows = [["class", "name", "images", "predicted", "average_precision", "precision", "recall", "f1"]]
        found = per_class(self.wanted, self.probabilities, self.threshold)
        for k, name in enumerate(self.names):
            shares = [found.average_precision[k], found.precision[k], found.recall[k], found.f1[k]]
            told = [f"{share:.6f}" if found.count[k] else "" for share in shares]
            rows.append([f"{k}", confusion.cell(name), f"{found.count[k]}", f"{found.predicted[k]}", *told])
        _write_csv(out / "per_class.csv", rows)
        metrics = {
            **given,
            "images": len(self.wanted),
            "classes": int((found.count > 0).sum()),
            "matched": self.matched,
            "threshold": self.threshold,
            **self.figures,
            "images_per_second": self.images_per_second,
            "skipped": self.skipped,
        }
        files.write_atomically(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        if not self.where:
            return ["metrics.json", "per_class.csv"]
        told = self.probabilities >= self.threshold
        words = lambda row: confusion.cell(BETWEEN.join(self.names[k] for k in np.flatnonzero(row)))
        rows = [["file", "true", "predicted", "correct", "loss"]]
        for i, (true, said, loss) in enumerate(zip(self.wanted, told, self.losses, strict=True)):
            right = int(np.array_equal(true, said))
            rows.append([confusion.cell(self.where(i)), words(true), words(said), f"{right}", f"{loss:.6g}"])
        _write_csv(out / "predictions.csv", rows)
        return ["metrics.json", "per_class.csv", "predictions.csv"]


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
