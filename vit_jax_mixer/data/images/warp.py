"""Changes of place: each maps u8[H, W, C], C = 1 or 3, to a new array of that shape.

A warp is a matrix f64[2, 3] that says, as Pillow's does, where in the image the point (x, y) of the
result comes from. Points are measured in pixels from the upper left corner of the upper left pixel,
so that the middle of that pixel is (0.5, 0.5) and the middle of the image is (W / 2, H / 2).
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from vit_jax_mixer.errors import UserError


def warp(image: np.ndarray, matrix: np.ndarray, fill: Sequence[int], interpolation: int) -> np.ndarray:
    """Take each pixel from where ``matrix`` says; ``fill`` (a value a channel) comes in from outside.

    Args:
        image: u8[H, W, C].
        matrix: f64[2, 3], from points of the result to points of the image.
        fill: the colour of what lies outside.
        interpolation: one of OpenCV's, as ``cv2.INTER_NEAREST``.
    """
    height, width, _ = image.shape
    if max(height, width) >= 2**15 - 1:
        raise UserError(f"it has {width} x {height} pixels, too many a side for OpenCV's warps; resize it before.")
    matrix = np.array(matrix, np.float64)
    matrix[:, 2] += (matrix[:, :2].sum(1) - 1) / 2  # to OpenCV, the middle of the first pixel is (0, 0)
    warped = cv2.warpAffine(
        image,
        matrix,
        (width, height),
        flags=interpolation | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=tuple(fill),
    )
    return warped.reshape(image.shape)


def rotation(degrees: float, height: int, width: int) -> np.ndarray:
    """Counter-clockwise about the middle."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn, middle = np.array([[cos, -sin], [sin, cos]]), np.array([width / 2, height / 2])
    return np.column_stack([turn, middle - turn @ middle])


def shear_x(slope: float, height: int, width: int) -> np.ndarray:
    """Each row to the left, by ``slope`` times its distance from the top."""
    del height, width
    return np.array([[1, slope, 0], [0, 1, 0]])


def shear_y(slope: float, height: int, width: int) -> np.ndarray:
    """Each column up, by ``slope`` times its distance from the left."""
    del height, width
    return np.array([[1, 0, 0], [slope, 1, 0]])


def translate_x(pixels: float, height: int, width: int) -> np.ndarray:
    """To the left."""
    del height, width
    return np.array([[1, 0, pixels], [0, 1, 0]])


def translate_y(pixels: float, height: int, width: int) -> np.ndarray:
    """Up."""
    del height, width
    return np.array([[1, 0, 0], [0, 1, pixels]])


def translate_x_rel(part: float, height: int, width: int) -> np.ndarray:
    """To the left, by a part of the width."""
    return translate_x(part * width, height, width)


def translate_y_rel(part: float, height: int, width: int) -> np.ndarray:
    """Up, by a part of the height."""
    return translate_y(part * height, height, width)


def erase(image: np.ndarray, size: int, fill: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Fill a square about a pixel drawn uniformly; what of it lies outside the image is cut off.

    DeVries & Taylor 2017, arXiv 1708.04552, section 3.2: so the square may be smaller at the border.
    """
    top, left = (int(rng.integers(side)) - size // 2 for side in image.shape[:2])
    erased = image.copy()
    erased[max(0, top) : max(0, top + size), max(0, left) : max(0, left + size)] = fill
    return erased
