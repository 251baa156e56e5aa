"""What is printed of an evaluation, and its files."""

import csv
import json
import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vit_jax_mixer.errors import printable
from vit_jax_mixer.evaluation import Evaluated, confusion, scores


def lines(found: Evaluated) -> list[str]:
    """Return what is printed."""
    figures = found.figures
    text = [
        f"  images              {len(found.labels):,}",
        f"  accuracy            {100 * figures['accuracy']:.2f} %",
        f"  {f'top-{min(5, len(found.names))} accuracy':18}  {100 * figures['top5_accuracy']:.2f} %",
        f"  mean over classes   {100 * figures['mean_class_accuracy']:.2f} %",
        f"  cross-entropy       {figures['loss']:.4f}",
        f"  calibration error   {100 * figures['calibration_error']:.2f} %",
        f"  images per second   {found.images_per_second:,.0f}",
    ]
    if found.skipped:
        text.append(f"  skipped images      {len(found.skipped):,}")
    return [*text, *textwrap.wrap(printable(found.matched), 80)]


def write(out: Path, found: Evaluated, given: Mapping[str, str]) -> list[str]:
    """Write the files that the command's help lists, and return their names.

    Args:
        out: a folder.
        found: what is told in them.
        given: what was evaluated, for ``metrics.json``.
    """
    per_class = scores.per_class(found.labels, found.predictions, len(found.names))
    with (out / "per_class.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "name", "images", "correct", "accuracy"])
        for k in found.classes.tolist():
            accuracy = f"{per_class.accuracy[k]:.6f}" if per_class.count[k] else ""
            writer.writerow([k, confusion.cell(found.names[k]), per_class.count[k], per_class.correct[k], accuracy])
    counts = scores.confusion_counts(found.labels, found.predictions, len(found.names))
    files = ["metrics.json", "per_class.csv", "confusion.csv"]
    shown = np.union1d(found.classes, found.predictions)
    if len(shown) <= confusion.LARGEST:
        matrix, names = confusion.square(counts, shown), [found.names[k] for k in shown]
        confusion.write_square(out / "confusion.csv", matrix, names)
        confusion.draw(matrix, names).save(out / "confusion.png")
        files.append("confusion.png")
    else:
        confusion.write_list(out / "confusion.csv", counts, found.names)
        (out / "confusion.png").unlink(missing_ok=True)  # of another evaluation
    metrics = {
        **given,
        "images": len(found.labels),
        "classes": len(found.classes),
        "matched": found.matched,
        **found.figures,
        "images_per_second": found.images_per_second,
        "skipped": found.skipped,
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return files
