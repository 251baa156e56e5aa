"""Random operations for the config's list: each returns an op(image, rng) of u8[H, W, C], C = 1 or 3.

They draw from ``rng`` alone, never write into the image, and give contiguous arrays.
"""

from collections.abc import Callable, Mapping
from typing import Annotated

import numpy as np

from vit_jax_mixer.data.images import colour, warp
from vit_jax_mixer.data.images.decoding import HostOp
from vit_jax_mixer.data.images.policies import autoaugment, randaugment, timm_randaugment
from vit_jax_mixer.data.images.room import Side
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.specs import Rate, Within

_Amount = Annotated[float, Within(0, 100)]


def color_jitter(
    brightness: _Amount = 0.4,
    contrast: _Amount = 0.4,
    saturation: _Amount = 0.4,
    hue: Annotated[float, Within(0, 0.5)] = 0.0,
    probability: Rate = 1.0,
) -> HostOp:
    """Change brightness, contrast, saturation and hue, in a random order, as torchvision's ColorJitter does.

    Args:
        brightness: the factor is uniform in [max(0, 1 - brightness), 1 + brightness].
        contrast: likewise.
        saturation: likewise; without effect on grey images, as is hue.
        hue: the hue turns by a part of the circle that is uniform in [-hue, hue]; at most 0.5.
        probability: of any change.
    """
    changes: list[tuple[Callable[[np.ndarray, float], np.ndarray], float, float]] = [
        (change, max(0.0, 1 - amount), 1 + amount)
        for change, amount in (
            (colour.brightness, brightness),
            (colour.contrast, contrast),
            (colour.saturation, saturation),
        )
        if amount
    ]
    if hue:  # even a turn of 0 loses a little, on the way to 8 bits of hue and back
        changes.append((colour.hue, -hue, hue))

    def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for i in rng.permutation(len(changes)):
            change, low, high = changes[i]
            image = change(image, rng.uniform(low, high))
        return image

    return _sometimes(probability, transform)


def grayscale(probability: Rate = 0.2) -> HostOp:
    """Every channel the luma, in that part of the cases."""
    return _sometimes(probability, lambda image, rng: colour.saturation(image, 0.0))


def solarize(probability: Rate, threshold: Annotated[int, Within(0, 1000)] = 128) -> HostOp:
    """Values of ``threshold`` and more inverted, in that part of the cases (BYOL, arXiv 2006.07733, appendix B)."""
    return _sometimes(probability, lambda image, rng: colour.solarize(image, threshold))


def gaussian_blur(probability: Rate, min_sigma: _Amount = 0.1, max_sigma: _Amount = 2.0) -> HostOp:
    """Blurred in that part of the cases, by a sigma uniform in that range (SimCLR, arXiv 2002.05709, appendix A).

    Args:
        probability: of being blurred.
        min_sigma: in pixels, more than 0.
        max_sigma: in pixels.
    """
    if not 0 < min_sigma <= max_sigma:
        raise UserError("min_sigma must be more than 0 and at most max_sigma.")
    return _sometimes(probability, lambda image, rng: colour.gaussian_blur(image, rng.uniform(min_sigma, max_sigma)))


def cutout(size: Side) -> HostOp:
    """A black square of ``size`` pixels about a random pixel (DeVries & Taylor 2017, arXiv 1708.04552).

    What of the square lies outside the image is cut off, so it may be smaller at the border.
    """
    return _sometimes(1.0, lambda image, rng: warp.erase(image, size, (0,), rng))


def _sometimes(probability: float, transform: HostOp) -> HostOp:
    """Apply ``transform`` in that part of the cases."""

    def op(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        image = np.ascontiguousarray(image)
        return transform(image, rng) if rng.random() < probability else image

    return op


AUGMENT_OPS: Mapping[str, Callable[..., HostOp]] = {
    op.__name__: op
    for op in (
        randaugment,
        timm_randaugment,
        autoaugment,
        color_jitter,
        grayscale,
        solarize,
        gaussian_blur,
        cutout,
    )
}
