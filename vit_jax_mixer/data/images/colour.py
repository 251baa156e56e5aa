"""Changes of colour: each maps u8[H, W, C], C = 1 or 3, to a new array of that shape, or returns it unchanged.

They do what Pillow's `ImageOps` and `ImageEnhance` do, to within 1 of 255, since the published
policies are defined by Pillow. OpenCV is several times faster and releases the interpreter lock.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

_VALUES = np.arange(256)
# ITU-R BT.601 with Pillow's rounding, and a half to round by; exact in float32, as the sums need 24 bits.
_LUMA = np.array([[19595, 38470, 7471, 32768]], np.float32) / 65536


# --- One table for all pixels ------------------------------------------------------------------------


def invert(image: np.ndarray) -> np.ndarray:
    """Each value v becomes 255 - v."""
    return _map(image, 255 - _VALUES)


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keep the ``bits`` highest bits of each value, 0 to 8; the others become 0."""
    return _map(image, _VALUES & (256 - 2 ** (8 - bits)))


def solarize(image: np.ndarray, threshold: int = 128) -> np.ndarray:
    """Invert the values that are not below ``threshold``; above 255 it changes nothing."""
    return _map(image, np.where(threshold > _VALUES, _VALUES, 255 - _VALUES))


def solarize_add(image: np.ndarray, addition: int, threshold: int = 128) -> np.ndarray:
    """Add to the values below ``threshold``, at most up to 255."""
    return _map(image, np.where(threshold > _VALUES, _VALUES + addition, _VALUES))


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Away from black: 0 is black, 1 the image, more is brighter."""
    return _map(image, _VALUES.astype(np.float32) * np.float32(factor))


def contrast(image: np.ndarray, factor: float, middle: int | None = None) -> np.ndarray:
    """Away from ``middle``, or else the mean of the grey image: 0 is that value everywhere, 1 the image."""
    if middle is None:
        middle = math.floor(cv2.mean(grey(image))[0] + 0.5)
    return _map(image, middle + np.float32(factor) * (_VALUES - middle).astype(np.float32))


def autocontrast(image: np.ndarray) -> np.ndarray:
    """Stretch each channel so that its lowest value is 0 and its highest 255."""

    def stretch(counts: np.ndarray) -> np.ndarray:
        used = np.flatnonzero(counts)
        low, high = used[0], used[-1]
        if low == high:
            return _VALUES
        scale = 255 / (high - low)
        return _VALUES * scale - low * scale

    return _map_channels(image, stretch)


def equalize(image: np.ndarray) -> np.ndarray:
    """Give each channel a nearly flat histogram."""

    def flatten(counts: np.ndarray) -> np.ndarray:
        # The highest value is left out, as it maps to 255 whatever its count.
        step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
        if step == 0:
            return _VALUES
        below = np.cumsum(counts) - counts
        return (below + step // 2) // step

    return _map_channels(image, flatten)


# --- More than a table -------------------------------------------------------------------------------


def grey(image: np.ndarray) -> np.ndarray:
    """Map u8[H, W, C] to its luma u8[H, W]."""
    if image.shape[2] == 1:
        return image[..., 0]
    return cv2.transform(image.astype(np.float32), _LUMA).astype(np.uint8)


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Away from grey: 0 is grey, 1 the image; no change to one channel. Pillow calls it Color."""
    if image.shape[2] == 1:
        return image
    return _blend(cv2.cvtColor(grey(image), cv2.COLOR_GRAY2RGB), image, factor)


def hue(image: np.ndarray, turn: float) -> np.ndarray:
    """Turn the hue by that part of the circle; no change to one channel."""
    if image.shape[2] == 1:
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)  # the circle is 256 steps, so uint8 wraps as it does
    hsv[..., 0] += np.uint8(round(256 * turn) % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Away from a 3x3 smoothing (the middle counts 5, each neighbour 1): 0 is smooth, 1 the image.

    The pixels at the border do not change.
    """
    kernel = np.ones((3, 3), np.float32) / 13
    kernel[1, 1] = 5 / 13
    smooth = cv2.filter2D(image, -1, kernel).reshape(image.shape)
    smooth[[0, -1]] = image[[0, -1]]
    smooth[:, [0, -1]] = image[:, [0, -1]]
    return _blend(smooth, image, factor)


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Convolve with a Gaussian of ``sigma`` pixels; the image is mirrored at its border."""
    return cv2.GaussianBlur(image, (0, 0), sigma).reshape(image.shape)


def _blend(start: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    """Return start + factor * (image - start), clipped."""
    # OpenCV rounds to the nearest where Pillow cuts off: hence the half, less what float errors take.
    return cv2.addWeighted(start, 1 - factor, image, factor, -0.499).reshape(image.shape)


def _map(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Look each value up in a table [256] or [1, 256, C], cut off to whole numbers in 0 .. 255."""
    return cv2.LUT(image, np.clip(table, 0, 255).astype(np.uint8)).reshape(image.shape)


def _map_channels(image: np.ndarray, table: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Map each channel by ``table``, a function of its histogram i64[256]."""
    channels = range(image.shape[2])
    counts = [cv2.calcHist([image], [c], None, [256], [0, 256]).reshape(256).astype(np.int64) for c in channels]
    return _map(image, np.stack([table(count) for count in counts], -1)[None])
