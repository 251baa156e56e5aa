"""Operations inside the jitted step, on a batch: so the host sends a byte a value, not four.

Each maps (images [B, h, w, c], targets f32[B, K], key) to new images and targets. Those that draw
at random are for training alone: without a key, as in evaluation, they are an error.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax_mixer import specs
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.specs import Rate, Within

Images = jax.Array
Targets = jax.Array | None
_Value = Annotated[float, Within(-1e6, 1e6)]
_Alpha = Annotated[float, Within(0, 1000)]
_LEAST = 1e-30  # above 0; float32 has no number much nearer to it
DeviceOp = Callable[[Images, Targets, jax.Array | None], tuple[Images, Targets]]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of values in [0, 1]


def value_range(low: _Value, high: _Value) -> DeviceOp:
    """From [0, 255] to [low, high], float32."""
    if not np.float32(high) - np.float32(low) > _LEAST:
        raise UserError(f"value_range({low}, {high}) is no range; give the lower value, then the higher.")
    return lambda images, targets, key: (low + (high - low) / 255 * images.astype(jnp.float32), targets)


def normalize(mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD) -> DeviceOp:
    """From [0, 255] to (x / 255 - mean) / std for each channel, float32; ImageNet's figures if not given."""
    _check_numbers(mean, "mean", -1e6)
    _check_numbers(std, "std", 1e-6)
    if len(mean) != len(std):
        raise UserError("normalize: mean and std must be of one length.")

    def op(images: Images, targets: Targets, key: jax.Array | None) -> tuple[Images, Targets]:
        if images.shape[-1] != len(mean):
            raise UserError(
                f"normalize has {len(mean)} means for images of {images.shape[-1]} channels; give one each."
            )
        shift, scale = (jnp.asarray(v, jnp.float32).reshape(1, 1, 1, -1) for v in (mean, std))
        return (images.astype(jnp.float32) / 255 - shift) / scale, targets

    return op


def _check_numbers(values: object, name: str, least: float) -> None:
    """Raise a `UserError` unless these are numbers of at least that."""
    numbers = values if isinstance(values, Sequence) and not isinstance(values, str) else ()
    if not numbers or not all(type(v) in (int, float) and least <= v <= 1e6 for v in numbers):
        raise UserError(
            f"normalize: {name} must be a number for each channel, {least:g} to 1e6, as in (0.5, 0.5, 0.5)."
        )


def mixup(alpha: _Alpha) -> DeviceOp:
    """Images and targets each mixed with those of another row (Zhang et al. 2017, arXiv 1710.09412).

    A batch has one share of mixing, drawn from Beta(alpha, alpha); row i is mixed with row B - 1 - i.
    """
    return mixup_or_cutmix(mixup=alpha, cutmix=0)


def cutmix(alpha: _Alpha) -> DeviceOp:
    """A rectangle of each image taken from another row (Yun et al. 2019, arXiv 1905.04899).

    Its share of the area is drawn from Beta(alpha, alpha) and its place uniformly, both once a
    batch; the targets are mixed by the area that is really replaced.
    """
    return mixup_or_cutmix(mixup=0, cutmix=alpha)


def mixup_or_cutmix(mixup: _Alpha = 0.8, cutmix: _Alpha = 1.0, probability: Rate = 1.0, switch: Rate = 0.5) -> DeviceOp:
    """One of the two for each batch, as for ResMLP and DeiT (Touvron et al. 2020, arXiv 2012.12877, table 9).

    Args:
        mixup: its alpha; 0 for never.
        cutmix: its alpha; 0 for never.
        probability: of mixing at all.
        switch: the share of `cutmix` where both are possible.
    """
    if max(mixup, cutmix) == 0 or any(0 < alpha < _LEAST for alpha in (mixup, cutmix)):
        raise UserError(f"mixup or cutmix: alpha must be above 0, and {_LEAST:g} at least.")
    switch = switch if mixup and cutmix else float(cutmix > 0)

    def op(images: Images, targets: Targets, key: jax.Array | None) -> tuple[Images, Targets]:
        if key is None or targets is None:
            raise UserError("mixup and cutmix are for training alone; leave them out of evaluation.")
        of_choice, of_use, of_mixup, of_cutmix, of_box = jax.random.split(key, 5)
        images = images.astype(jnp.float32)
        height, width = images.shape[1:3]
        # The share of a row's own image at each pixel, f32[h, w].
        blend = jnp.broadcast_to(jax.random.beta(of_mixup, mixup or 1, mixup or 1), (height, width))
        area = 1 - jax.random.beta(of_cutmix, cutmix or 1, cutmix or 1)
        patch = ~_box(of_box, jnp.sqrt(area) * height, jnp.sqrt(area) * width, height, width)
        own = jnp.where(jax.random.bernoulli(of_choice, switch), patch.astype(jnp.float32), blend)
        own = jnp.where(jax.random.bernoulli(of_use, probability), own, 1.0)
        share, own = jnp.mean(own), own[None, :, :, None]
        # The batch reversed: most partners are far away, so not another view of the same example.
        return own * images + (1 - own) * images[::-1], share * targets + (1 - share) * targets[::-1]

    return op


def random_erase(
    probability: Rate = 0.25, mode: str = "noise", min_area: Rate = 0.02, max_area: Rate = 1 / 3
) -> DeviceOp:
    """A rectangle of some images replaced (Zhong et al. 2017, arXiv 1708.04896, algorithm 1).

    Args:
        probability: the share of images.
        mode: by 'noise', a normal draw for each value, as timm's 'pixel'; or by 'zero'.
        min_area: the least share of the image, and
        max_area: the largest; the ratio of the sides is between 0.3 and 1 / 0.3. Where none of ten
            draws fits into the image, it stays as it is.
    """
    noisy = specs.lookup({"noise": True, "zero": False}, mode, "mode")
    if not 0 < min_area <= max_area:
        raise UserError("random_erase: min_area must be above 0 and at most max_area.")

    def op(images: Images, targets: Targets, key: jax.Array | None) -> tuple[Images, Targets]:
        if key is None:
            raise UserError("random_erase is for training alone; leave it out of evaluation.")
        of_boxes, of_noise = jax.random.split(key)
        erased = jax.vmap(lambda k: _erased(k, images.shape[1:3], probability, min_area, max_area))(
            jax.random.split(of_boxes, len(images))
        )
        new = jax.random.normal(of_noise, images.shape, images.dtype) if noisy else jnp.zeros_like(images)
        return jnp.where(erased[..., None], new, images), targets

    return op


def _erased(key: jax.Array, shape: tuple[int, ...], probability: float, min_area: float, max_area: float) -> jax.Array:
    """Return which pixels of one image are erased, bool[h, w]."""
    height, width = shape
    of_use, of_area, of_ratio, of_box = jax.random.split(key, 4)
    area = jax.random.uniform(of_area, (10,), minval=min_area, maxval=max_area) * height * width
    ratio = jnp.exp(jax.random.uniform(of_ratio, (10,), minval=jnp.log(0.3), maxval=-jnp.log(0.3)))
    heights, widths = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits)
    h, w = heights[first], widths[first]
    of_top, of_left = jax.random.split(of_box)
    top = jnp.floor(jax.random.uniform(of_top) * (height - h + 1))
    left = jnp.floor(jax.random.uniform(of_left) * (width - w + 1))
    used = fits[first] & jax.random.bernoulli(of_use, probability)
    return used & inside(top, h, height)[:, None] & inside(left, w, width)[None, :]


def _box(key: jax.Array, box_height: jax.Array, box_width: jax.Array, height: int, width: int) -> jax.Array:
    """Return a rectangle around a uniform centre, clipped at the borders, bool[h, w]."""
    of_y, of_x = jax.random.split(key)
    sides = []
    for part, size, side in ((of_y, box_height, height), (of_x, box_width, width)):
        start = jnp.floor(jax.random.uniform(part) * side) - jnp.floor(size / 2)
        sides.append(inside(start, jnp.floor(size), side))
    return sides[0][:, None] & sides[1][None, :]


def inside(start: jax.Array, length: jax.Array | int, size: int) -> jax.Array:
    """Return which of ``size`` pixels lie in so many from ``start`` on, bool[size]."""
    position = jnp.arange(size)
    return (position >= start) & (position < start + length)


DEVICE_OPS: Mapping[str, Callable[..., DeviceOp]] = {
    op.__name__: op for op in (value_range, normalize, mixup, cutmix, mixup_or_cutmix, random_erase)
}
