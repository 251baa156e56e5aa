"""Crops, sizes and flips of u8[H, W, C]."""

from typing import Annotated

import cv2
import numpy as np
from PIL import Image

from vit_jax_mixer import specs
from vit_jax_mixer.data.images.decoding import Encoded, HostOp, check_channels, jpeg_shape, to_array
from vit_jax_mixer.data.images.room import MAX_PIXELS, Side
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.specs import Rate, Within

_METHODS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
Box = tuple[int, int, int, int]  # top, left, height, width


def resize(height: Side, width: Annotated[int | None, Within(1, 2**13)] = None, method: str = "bilinear") -> HostOp:
    """To exactly that size (square if one number is given), 'bilinear' or 'bicubic', antialiased."""
    filter_ = specs.lookup(_METHODS, method, "method")
    size = height, height if width is None else width
    return lambda image, rng: _resize(image, size, filter_)


def resize_small(size: Side, method: str = "bilinear") -> HostOp:
    """So that the smaller side has that size, keeping the aspect ratio."""
    filter_ = specs.lookup(_METHODS, method, "method")

    def op(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        scale = size / min(image.shape[:2])
        height, width = (round(side * scale) for side in image.shape[:2])
        return _resize(image, (height, width), filter_)

    return op


def center_crop(size: Side) -> HostOp:
    """The middle square of that size."""

    def op(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
        if top < 0 or left < 0:
            raise UserError(f"center_crop({size}) of {image.shape[0]}x{image.shape[1]} pixels; resize_small it before.")
        return image[top : top + size, left : left + size]

    return op


def inception_crop(size: Side, min_area: Rate = 0.05, max_area: Rate = 1.0, method: str = "bilinear") -> HostOp:
    """A random part, resized to size x size (Szegedy et al. 2014, arXiv 1409.4842, section 6).

    The part covers between ``min_area`` and ``max_area`` of the image, with an aspect ratio
    between 3/4 and 4/3; where none of ten draws fits into the image, the whole image is taken.
    """
    filter_ = specs.lookup(_METHODS, method, "method")
    check_areas(min_area, max_area)

    def op(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        top, left, height, width = sample_box(rng, image.shape, min_area, max_area)
        return _resize(image[top : top + height, left : left + width], (size, size), filter_)

    return op


def decode_crop(size: Side, min_area: Rate = 0.05, max_area: Rate = 1.0, channels: int = 3) -> HostOp:
    """``decode(channels)|inception_crop(size, min_area, max_area)`` in one, and much faster.

    The same part is drawn. A JPEG is decoded down to the part's last row, at 1/2, 1/4 or 1/8 of
    its size where the part stays large enough, and `quick_resize` takes the place of the exact
    bilinear filter: a difference of 0.6/255 on average for the two photographs of scikit-learn (640 x
    427 pixels) and size 224, of 1 to 2/255 for sizes 100 and 50.
    """
    check_channels(channels)
    check_areas(min_area, max_area)

    def op(image: Encoded, rng: np.random.Generator) -> np.ndarray:
        found = jpeg_shape(image)
        if found is None:
            pixels = to_array(image, channels)
            box = sample_box(rng, pixels.shape, min_area, max_area)
        else:
            shape, header = found
            box = sample_box(rng, shape, min_area, max_area)
            pixels = to_array(image, channels, _reduction(min(box[2:]), size), rows=box[0] + box[2], header=header)
            box = _scaled(box, 1 / round(shape[1] / pixels.shape[1]))  # its sides were rounded up
        top, left, height, width = box
        return quick_resize(pixels[top : top + height, left : left + width], (size, size))

    return op


def flip_lr() -> HostOp:
    """Left and right exchanged in one half of the cases."""
    return lambda image, rng: _with_channels(cv2.flip(image, 1)) if rng.random() < 0.5 else image


def random_shift(pixels: Annotated[int, Within(0, 2**13)]) -> HostOp:
    """Moved by up to that many pixels each way; what comes in is black."""

    def op(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        up, left = rng.integers(0, 2 * pixels + 1, 2) - pixels
        (to_y, from_y), (to_x, from_x) = _overlap(image.shape[0], up), _overlap(image.shape[1], left)
        moved = np.zeros_like(image)
        moved[to_y, to_x] = image[from_y, from_x]
        return moved

    return op


def _overlap(side: int, move: int) -> tuple[slice, slice]:
    """Return where what stays in sight comes to, and from, when ``side`` pixels move back by ``move``."""
    back, forth = max(move, 0), max(-move, 0)
    return slice(forth, max(side - back, 0)), slice(back, max(side - forth, 0))


def check_areas(least: float, most: float) -> None:
    """Raise a `UserError` unless both are shares of an image's area, in that order."""
    if not 0 < least <= most <= 1:
        raise UserError("areas must be above 0, up to 1, and min_area at most max_area.")


def sample_box(rng: np.random.Generator, shape: tuple[int, ...], min_area: float, max_area: float) -> Box:
    """Draw the part that `inception_crop` takes of an image of that (height, width, ...)."""
    height, width = shape[:2]
    for _ in range(10):
        area = rng.uniform(min_area, max_area) * height * width
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))  # width / height
        h, w = round(np.sqrt(area / ratio)), round(np.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    return 0, 0, height, width


def quick_resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize u8[H, W, C] to ``size`` (height, width), nearly as the antialiased bilinear filter would.

    Where r > 1 input pixels fall on an output pixel, that filter is a triangle of half-width r and
    variance r^2 / 6 (in input pixels squared). Three fast steps come to the same variance: the mean
    of k x k pixels, (k^2 - 1) / 12; a smoothing (a, 1 - 2a, a) of those, 2a k^2; and interpolation
    between them, k^2 / 6. Here k is as large as leaves a >= 0.
    """
    height, width = size
    ratios = image.shape[1] / width, image.shape[0] / height  # horizontal, vertical
    blocks = [max(k for k in range(1, max(int(r), 1) + 1) if k == 1 or _side_weight(r, k) >= 0) for r in ratios]
    if max(blocks) > 1:
        smaller = image.shape[1] // blocks[0], image.shape[0] // blocks[1]
        image = _with_channels(cv2.resize(image, smaller, interpolation=cv2.INTER_AREA))
    side = [max(_side_weight(r, k), 0) for r, k in zip(ratios, blocks, strict=True)]
    if max(side) > 0:
        along, across = (np.array([a, 1 - 2 * a, a], np.float32) for a in side)
        image = cv2.sepFilter2D(image, -1, along, across, borderType=cv2.BORDER_REFLECT)
    return _with_channels(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR))


def _side_weight(ratio: float, block: int) -> float:
    """Return the a of `quick_resize` for r = ``ratio`` and k = ``block``."""
    return (ratio**2 / block**2 - 1 - (1 - 1 / block**2) / 2) / 12


def _reduction(side: int, size: int) -> int:
    """Return the largest of 1, 2, 4, 8 that leaves twice ``size`` of ``side`` pixels, or else 1.

    Twice, so that rounding the part to the smaller pixels moves it by less than 1/4 of a final one.
    """
    return next((factor for factor in (8, 4, 2) if side >= 2 * factor * size), 1)


def _scaled(box: Box, factor: float) -> Box:
    """Return the same part of an image whose sides are ``factor`` of what they were."""
    top, left, height, width = box
    bottom, right = round((top + height) * factor), round((left + width) * factor)
    top, left = round(top * factor), round(left * factor)
    return top, left, bottom - top, right - left


def _resize(image: np.ndarray, size: tuple[int, int], method: Image.Resampling) -> np.ndarray:
    """Resize u8[H, W, C] to ``size`` (height, width); Pillow's filters are antialiased."""
    height, width = size
    if image.shape[:2] == size:
        return image
    # Pillow brings the image to its new width first.
    if max(height, image.shape[0]) * width > MAX_PIXELS:
        raise UserError(
            f"{image.shape[0]}x{image.shape[1]} pixels would become {height}x{width}; crop it, or remove it."
        )
    pillow = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return _with_channels(np.asarray(pillow.resize((width, height), method)))


def _with_channels(image: np.ndarray) -> np.ndarray:
    """Give a grey image back the axis that OpenCV and Pillow leave out."""
    return image[..., None] if image.ndim == 2 else image
