"""What is drawn on a page, as the images of handwritten digits are: by its own size, in the middle."""

import numpy as np
from PIL import Image

from vit_jax_mixer.errors import UserError

# Those of MNIST have 28 pixels, the ink fits 20, and its centre of mass lies in the middle (its page says so); in those
# of 8 pixels, which scikit-learn has, it fills the image.
_MNIST, _MNIST_INK = 28, 20


def fitted(drawn: np.ndarray | None, side: int) -> Image.Image:
    """Return a sketch as a grey image of ``side`` pixels.

    Args:
        drawn: u8[h, w], ink is white.
        side: pixels.

    Raises:
        UserError: there is no ink.
    """
    if drawn is None or not drawn.any():
        raise UserError("nothing is drawn; draw something, or give a file.")
    rows, columns = (np.flatnonzero(drawn.any(axis)) for axis in (1, 0))
    ink = Image.fromarray(drawn[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    most = _MNIST_INK if side == _MNIST else side
    width, height = (max(round(length * most / max(ink.size)), 1) for length in ink.size)
    small = np.asarray(ink.resize((width, height), Image.Resampling.BOX), np.float64)
    left, top = (side - width) // 2, (side - height) // 2
    if side == _MNIST:
        mass = small / small.sum()
        centre = [(mass.sum(axis) * (np.arange(mass.shape[1 - axis]) + 0.5)).sum() for axis in (0, 1)]
        left, top = (
            int(np.clip(round(side / 2 - at), 0, side - length))
            for at, length in zip(centre, (width, height), strict=True)
        )
    whole = np.zeros((side, side), np.uint8)
    whole[top : top + height, left : left + width] = small.round()
    return Image.fromarray(whole)
