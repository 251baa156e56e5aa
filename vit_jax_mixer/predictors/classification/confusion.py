"""The confusion matrix as a table and as a picture."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from vit_jax_mixer import drawing
from vit_jax_mixer.classes import number
from vit_jax_mixer.errors import printable

LARGEST = 2_000  # classes of a square table; one of 21,843 would have 477 million cells
_NUMBERS, _NAMES = 30, 100  # up to so many classes have the counts in the cells, and their names beside them
_FEW = 12  # up to so many classes, the cells are large
_RIGHT, _WRONG = np.array([8, 48, 107]), np.array([150, 10, 20])  # the darkest of hits and of errors; 0 is white


def square(counts: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the matrix i64[S, S]: row i, column j counts examples of class i that are predicted as j.

    Args:
        counts: of `scores.confusion_counts`.
        classes: i64[S], sorted, those that have a row and a column; all that occur.
    """
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    rows, columns = np.searchsorted(classes, counts[:, 0]), np.searchsorted(classes, counts[:, 1])
    matrix[rows, columns] = counts[:, 2]
    return matrix


def write_square(path: Path, matrix: np.ndarray, names: Sequence[str]) -> None:
    """Write a CSV file with the predicted classes for a header, and the true ones in the first column."""
    words = list(map(cell, names))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *words])
        writer.writerows([name, *row] for name, row in zip(words, matrix.tolist(), strict=True))


def write_list(path: Path, counts: np.ndarray, names: Sequence[str]) -> None:
    """Write a CSV file with a row for each pair of classes that occurs: true, predicted, count."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["true", "predicted", "count"])
        writer.writerows([cell(names[int(a)]), cell(names[int(b)]), count] for a, b, count in counts.tolist())


def cell(name: str) -> str:
    """Return a class's name for a CSV file: printable, and no formula, which a spreadsheet would run."""
    name = printable(name)
    return f"'{name}" if name.startswith(("=", "+", "-", "@")) and number(name) is None else name


def draw(matrix: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Return a picture of the matrix, where a cell is the darker, the larger a share of its row it has.

    Hits are blue, errors red. The darkness is the cube root of the share, so that rare confusions are
    seen. With few classes there are counts in the cells and names beside them.
    """
    size = len(matrix)
    side = 54 if size <= _FEW else 40 if size <= _NUMBERS else max(1, min(15, LARGEST // size))
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    darkness = np.cbrt(shares)[..., None]  # [S, S, 1]
    darkest = np.where(np.eye(size, dtype=bool)[..., None], _RIGHT, _WRONG)
    colours = (255 + darkness * (darkest - 255)).round().astype(np.uint8)
    cells = Image.fromarray(np.kron(colours, np.ones((side, side, 1), np.uint8)))
    labels = list(map(_label, names)) if size <= _NAMES else []
    margin = 26 + max((label.width for label in labels), default=0) + (6 if labels else 0)
    picture = Image.new("RGB", (margin + cells.width + 10, margin + cells.height + 10), "white")
    picture.paste(cells, (margin, margin))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((margin - 1, margin - 1, margin + cells.width, margin + cells.height), outline="grey")
    middle = margin + cells.width // 2
    predicted, true = _label("predicted"), _label("true")
    _put(picture, predicted, (middle - predicted.width // 2, 2))
    _put(picture, true, (2, middle - true.width // 2), upright=True)
    for i, label in enumerate(labels):
        top = margin + i * side + side // 2 - label.height // 2
        _put(picture, label, (margin - 5 - label.width, top))
        _put(picture, label, (top, margin - 5 - label.width), upright=True)
    if size <= _NUMBERS:
        font = ImageFont.load_default(16 if size <= _FEW else 12)
        for row, column in zip(*np.nonzero(matrix), strict=True):
            colour = "white" if darkness[row, column, 0] > 0.6 else "black"
            centre = (margin + column * side + side // 2, margin + row * side + side // 2)
            draw.text(centre, _count(int(matrix[row, column])), colour, font, anchor="mm")
    return picture


def _put(picture: Image.Image, strip: Image.Image, place: tuple[int, int], upright: bool = False) -> None:
    """Write a line, from below to above if it is upright; the lines of small cells overlap in their white parts."""
    strip = strip.rotate(90, expand=True) if upright else strip
    picture.paste("black", place, ImageOps.invert(strip))


def _label(name: str) -> Image.Image:
    """Return a name in a line of a limited length."""
    strip = drawing.line(drawing.short(name, 24))
    return strip.crop((0, 0, min(strip.width, 300), strip.height))


def _count(count: int) -> str:
    """Return a count that fits its cell."""
    return str(count) if count < 100_000 else f"{count / 1e6:.3g}M" if count >= 1_000_000 else f"{count // 1000}k"
