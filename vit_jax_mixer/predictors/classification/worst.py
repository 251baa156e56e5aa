"""A sheet of the examples that a classifier was most wrong about."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from vit_jax_mixer import drawing

MOST = 36  # examples on a sheet
_SIDE, _GAP, _LINE, _COLUMNS = 120, 10, 15, 6  # pixels; 6 in a row
_WRONG = (190, 30, 30)


def sheet(images: Sequence[np.ndarray], captions: Sequence[Sequence[str]], wrong: Sequence[bool]) -> Image.Image:
    """Return the images in rows, each with lines below it, and a red frame where the answer is wrong.

    Args:
        images: u8[h, w, c] each, as the model reads them.
        captions: lines of each; as many for all.
        wrong: of each.
    """
    height = _SIDE + 2 + _LINE * len(captions[0])
    columns = min(_COLUMNS, len(images))
    rows = -(-len(images) // columns)
    size = (_GAP + columns * (_SIDE + 2 + _GAP), _GAP + rows * (height + _GAP))
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for i, pixels in enumerate(images):
        x, y = _GAP + i % columns * (_SIDE + 2 + _GAP), _GAP + i // columns * (height + _GAP)
        tile = drawing.tile(pixels, _SIDE)
        picture.paste(tile, (x + 1, y + 1))
        draw.rectangle((x, y, x + tile.width + 1, y + tile.height + 1), outline=_WRONG if wrong[i] else "grey")
        for number, caption in enumerate(captions[i]):
            strip = drawing.line(drawing.short(caption, 40), 11)
            strip = strip.crop((0, 0, min(strip.width, _SIDE + 4), _LINE))
            picture.paste(strip, (x, y + _SIDE + 2 + number * _LINE))
    return picture
