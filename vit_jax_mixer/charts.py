"""Small charts as pictures: lines and bars on axes.

A leaf of the package, beside `drawing`.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from vit_jax_mixer import drawing

COLOURS = ((8, 81, 156), (217, 95, 2), (27, 120, 55), (117, 112, 179), (231, 41, 138), (102, 102, 102))
_GREY = (190, 190, 190)
Line = tuple[str, np.ndarray, np.ndarray]  # its name, x and y


def lines(
    title: str,
    x_name: str,
    y_name: str,
    series: Sequence[Line],
    *,
    diagonal: bool = False,
    dots: bool = False,
    fit: bool = False,
    size: tuple[int, int] = (420, 400),
) -> Image.Image:
    """Return a chart of lines from 0 to 1 on both axes, or as far as they go.

    Args:
        title: above it.
        x_name: below the axis.
        y_name: above the other.
        series: the lines, at most six.
        diagonal: whether a grey line shows where x is y.
        dots: whether points are marked.
        fit: whether the axes go from the least to the most also within 0 and 1; then names stand above the lines.
        size: width and height in pixels.
    """
    width, height = size
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = 56, 44 + 14 * (fit and len(series) > 3), width - 14, height - 44
    x_low, x_high = _span([x for _, x, _ in series], fit)
    y_low, y_high = _span([y for _, _, y in series], fit)
    place = lambda x, y: (
        left + (x - x_low) / (x_high - x_low) * (right - left),
        bottom - (y - y_low) / (y_high - y_low) * (bottom - top),
    )
    for tick in _ticks(x_low, x_high):
        x, _ = place(tick, y_low)
        draw.line((x, top, x, bottom), (235, 235, 235))
        _write(picture, f"{tick:,.6g}", (x, bottom + 12), "middle", 10)
    for tick in _ticks(y_low, y_high):
        _, y = place(x_low, tick)
        draw.line((left, y, right, y), (235, 235, 235))
        _write(picture, f"{tick:,.6g}", (left - 6, y), "right", 10)
    draw.rectangle((left, top, right, bottom), outline=_GREY)
    if diagonal:
        ends = max(x_low, y_low), min(x_high, y_high)
        draw.line([place(ends[0], ends[0]), place(ends[1], ends[1])], _GREY)
    for number, (name, x, y) in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        points = [place(float(a), float(b)) for a, b in zip(x, y, strict=True)]
        if len(points) > 1:
            draw.line(points, colour, 2)
        for a, b in points if dots else ():
            draw.ellipse((a - 3, b - 3, a + 3, b + 3), colour)
        x, y = (left + number % 3 * 118, 32 + number // 3 * 14) if fit else (right - 130, bottom - 16 - 16 * number)
        if name:
            draw.line((x, y, x + 18, y), colour, 3)
            _write(picture, drawing.short(name, 20 if not fit else 14), (x + 22, y), "left", 11)
    _write(picture, title, (width / 2, 12), "middle", 13)
    _write(picture, x_name, ((left + right) / 2, height - 12), "middle", 11)
    _write(picture, y_name, (8, 32), "left", 11)
    return picture


def bars(title: str, names: Sequence[str], values: np.ndarray, spreads: np.ndarray | None = None) -> Image.Image:
    """Return a chart with a bar to the right for each name, and a thin line as long as its spread to both sides."""
    row, left, width = 20, 200, 640
    picture = Image.new("RGB", (width, 40 + row * len(names) + 8), "white")
    draw = ImageDraw.Draw(picture)
    least, most = min(0.0, float(np.min(values, initial=0))), max(0.0, float(np.max(values, initial=0)))
    place = lambda value: left + (value - least) / ((most - least) or 1.0) * (width - left - 80)
    for number, (name, value) in enumerate(zip(names, values.tolist(), strict=True)):
        y = 40 + row * number
        draw.rectangle((min(place(0), place(value)), y + 3, max(place(0), place(value)), y + row - 4), COLOURS[0])
        if spreads is not None and spreads[number]:
            low, high = place(value - spreads[number]), place(value + spreads[number])
            draw.line((low, y + row // 2, high, y + row // 2), COLOURS[1], 2)
        _write(picture, drawing.short(name, 28), (left - 8, y + row / 2), "right", 11)
        _write(picture, f"{value:.4g}", (max(place(value), place(0)) + 30, y + row / 2), "left", 10)
    _write(picture, title, (width / 2, 16), "middle", 13)
    return picture


def histogram(title: str, below: str, counts: Sequence[float], names: Sequence[str] = ()) -> Image.Image:
    """Return a small chart of counts as bars upwards, with names under them or one line below them all."""
    width, height = 200, 130
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    base, most, step = height - 34, max([*counts, 1]), (width - 16) / max(len(counts), 1)
    for number, count in enumerate(counts):
        x = 8 + step * number
        if count:
            top = min(base - (base - 24) * count / most, base - 1)
            draw.rectangle((x + 1, top, max(x + step - 1, x + 1), base), COLOURS[0])
    draw.line((8, base + 1, width - 8, base + 1), _GREY)
    for number, name in enumerate(names):
        _write(
            picture, drawing.short(name, max(int(step // 7), 4)), (8 + step * (number + 0.5), base + 10), "middle", 9
        )
    _write(picture, drawing.short(title, 28), (width / 2, 10), "middle", 12)
    _write(picture, below, (width / 2, height - 9), "middle", 9)
    return picture


def beside(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Return pictures in a grid of so many columns."""
    width = max(picture.width for picture in pictures)
    height = max(picture.height for picture in pictures)
    columns = min(columns, len(pictures))
    sheet = Image.new("RGB", (width * columns, height * -(-len(pictures) // columns)), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % columns * width, number // columns * height))
    return sheet


def _span(values: Sequence[np.ndarray], fit: bool = False) -> tuple[float, float]:
    """Return the ends of an axis: 0 and 1 where all is within them, unless they are to ``fit``."""
    together = np.concatenate([np.asarray(one, np.float64).ravel() for one in values] or [np.zeros(1)])
    low, high = float(together.min(initial=np.inf)), float(together.max(initial=-np.inf))
    if low >= 0 and high <= 1 and not fit:
        return 0.0, 1.0
    return (low, high) if low < high else (low - (abs(low) or 1), low + (abs(low) or 1))


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers from ``low`` to ``high``: four to eleven multiples of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(power * times for times in (1, 2, 5, 10) if (high - low) / (power * times) <= 7)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _write(picture: Image.Image, text: str, place: tuple[float, float], align: str, size: int) -> None:
    """Write a line whose left end, middle or right end is at a place; it is darker than what lies under it."""
    strip = drawing.line(text, size).convert("RGB")
    shift = {"left": 0.0, "middle": strip.width / 2, "right": strip.width}[align]
    corner = (round(place[0] - shift), round(place[1] - strip.height / 2))
    under = picture.crop((*corner, corner[0] + strip.width, corner[1] + strip.height))
    mixed = np.minimum(np.asarray(under), np.asarray(strip))
    box = Image.fromarray(mixed)
    picture.paste(box, corner)
