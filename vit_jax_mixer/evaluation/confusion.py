"""The confusion matrix as a table and as a picture."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LARGEST = 2_000  # classes of a square table; one of 21,843 would have 477 million cells
_NUMBERS, _NAMES = 30, 100  # up to so many classes have the counts in the cells, and their names beside them
_DARKEST = np.array([8, 48, 107])  # blue; 0 is white

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


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
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *names])
        writer.writerows([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))


def write_list(path: Path, counts: np.ndarray, names: Sequence[str]) -> None:
    """Write a CSV file with a row for each pair of classes that occurs: true, predicted, count."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["true", "predicted", "count"])
        writer.writerows([names[true], names[predicted], count] for true, predicted, count in counts.tolist())


def draw(matrix: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Return a picture of the matrix, where a cell is the darker, the larger a share of its row it has.

    The darkness is the cube root of the share, so that rare confusions are seen. With few classes
    there are counts in the cells and names beside them.
    """
    size = len(matrix)
    cell = 40 if size <= _NUMBERS else max(1, min(15, LARGEST // size))
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    darkness = np.cbrt(shares)[..., None]  # [S, S, 1]
    colours = (255 + darkness * (_DARKEST - 255)).round().astype(np.uint8)
    cells = Image.fromarray(np.kron(colours, np.ones((cell, cell, 1), np.uint8)))
    font = ImageFont.load_default(12)
    labels = [_short(name) for name in names] if size <= _NAMES else []
    margin = 26 + int(max((font.getlength(label) for label in labels), default=0)) + (6 if labels else 0)
    picture = Image.new("RGB", (margin + cells.width + 10, margin + cells.height + 10), "white")
    picture.paste(cells, (margin, margin))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((margin - 1, margin - 1, margin + cells.width, margin + cells.height), outline="grey")
    middle = margin + cells.width // 2
    draw.text((middle, 5), "predicted", "black", font, anchor="ma")
    _upright(picture, "true", (5, middle), font, "centre")
    for i, label in enumerate(labels):
        place = margin + i * cell + cell // 2
        draw.text((margin - 5, place), label, "black", font, anchor="rm")
        _upright(picture, label, (place - 7, margin - 5), font, "end")
    if size <= _NUMBERS:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            colour = "white" if darkness[row, column, 0] > 0.6 else "black"
            centre = (margin + column * cell + cell // 2, margin + row * cell + cell // 2)
            draw.text(centre, _count(int(matrix[row, column])), colour, font, anchor="mm")
    return picture


def _upright(picture: Image.Image, text: str, place: tuple[int, int], font: Font, at: str) -> None:
    """Write from below to above, with ``place`` the text's left side and its centre, or its lower end."""
    length = int(font.getlength(text)) + 1
    strip = Image.new("RGB", (length, 14), "white")
    ImageDraw.Draw(strip).text((0, 7), text, "black", font, anchor="lm")
    x, y = place
    picture.paste(strip.rotate(90, expand=True), (x, y - (length // 2 if at == "centre" else length)))


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"


def _count(count: int) -> str:
    """Return a count that fits its cell."""
    return str(count) if count < 100_000 else f"{count / 1e6:.3g}M" if count >= 1_000_000 else f"{count // 1000}k"
