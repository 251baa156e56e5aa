"""Image operations: an ordered list in the config, as in ``decode(3)|resize(224)|value_range(-1, 1)``.

Host operations run in NumPy on one image, u8[H, W, C]; the last ones of the list may be device
operations, which run inside the jitted step on a batch, so that the host sends a byte a value.
"""

import dataclasses
import io
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vit_jax_mixer import specs
from vit_jax_mixer.errors import UserError

Encoded = bytes | np.ndarray
HostOp = Callable[[np.ndarray, np.random.Generator], np.ndarray]
DeviceOp = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Ops:
    """A parsed list of operations: ``ops(image, rng)`` on the host, ``ops.on_device(images)`` after."""

    host: tuple[Callable[..., np.ndarray], ...]
    device: tuple[DeviceOp, ...]

    def __call__(self, image: Encoded, rng: np.random.Generator) -> np.ndarray:
        """Map encoded bytes or u8[H, W, C] to u8[h, w, c]; all randomness comes from ``rng``."""
        for op in self.host:
            image = op(image, rng)
        return np.asarray(image)

    def on_device(self, images: jax.Array) -> jax.Array:
        """Map u8[B, h, w, c] to what the model reads, f32[B, h, w, c]."""
        for op in self.device:
            images = op(images)
        return images


def parse(spec: str, where: str) -> Ops:
    """Parse operations joined by ``|``.

    Raises:
        UserError: an operation or argument is not known, or a device operation is not last.
    """
    host, device = [], []
    for part in spec.split("|"):
        name = specs.parse(part, where)[0]
        if name in DEVICE_OPS:
            device.append(specs.build(DEVICE_OPS, part, where))
        elif device:
            raise UserError(f"{where}: {part.strip()!r} comes after a device operation; move it before.")
        else:
            host.append(specs.build({**HOST_OPS, **DEVICE_OPS}, part, where))
    return Ops(tuple(host), tuple(device))


# --- Host operations: each function returns the operation of those arguments -----------------------


def decode(channels: int = 3) -> Callable[[Encoded, np.random.Generator], np.ndarray]:
    """JPEG or PNG bytes, or an array u8[H, W, 1|3], to u8[H, W, channels] (1 grey, 3 RGB)."""
    mode = specs.lookup({"1": "L", "3": "RGB"}, str(channels), "decode: channels")

    def op(image: Encoded, rng: np.random.Generator) -> np.ndarray:
        del rng
        if isinstance(image, np.ndarray) and image.shape[-1] == channels:
            return image
        pillow = _to_pillow(image) if isinstance(image, np.ndarray) else _open(image)
        if pillow.mode.startswith(("I", "F")):
            raise UserError(f"its pixels have mode {pillow.mode}, not 8 bits a channel; convert it to 8 bits.")
        array = np.asarray(pillow.convert(mode))
        return array.reshape(*array.shape[:2], channels)

    return op


def resize(height: int, width: int | None = None) -> HostOp:
    """To exactly that size (square if one number is given), bilinear and antialiased."""
    return lambda image, rng: _resize(image, (height, width or height))


def resize_small(size: int) -> HostOp:
    """So that the smaller side has that size, keeping the aspect ratio."""

    def op(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        del rng
        scale = size / min(image.shape[:2])
        return _resize(image, (round(image.shape[0] * scale), round(image.shape[1] * scale)))

    return op


def center_crop(size: int) -> HostOp:
    """The middle square of that size."""

    def op(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        del rng
        top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
        if top < 0 or left < 0:
            raise UserError(f"center_crop({size}) of {image.shape[0]}x{image.shape[1]} pixels; resize_small it before.")
        return image[top : top + size, left : left + size]

    return op


def inception_crop(size: int, min_area: float = 0.05, max_area: float = 1.0) -> HostOp:
    """A random part, resized to size x size (Szegedy et al. 2014, arXiv 1409.4842, section 6).

    The part covers between ``min_area`` and ``max_area`` of the image, with an aspect ratio
    between 3/4 and 4/3; where none of ten draws fits into the image, the whole image is taken.
    """

    def op(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = image.shape[:2]
        for _ in range(10):
            area = rng.uniform(min_area, max_area) * height * width
            ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))  # width / height
            h, w = round(np.sqrt(area / ratio)), round(np.sqrt(area * ratio))
            if 0 < h <= height and 0 < w <= width:
                top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
                return _resize(image[top : top + h, left : left + w], (size, size))
        return _resize(image, (size, size))

    return op


def flip_lr() -> HostOp:
    """Left and right exchanged in one half of the cases."""
    return lambda image, rng: image[:, ::-1] if rng.random() < 0.5 else image


def random_shift(pixels: int) -> HostOp:
    """Moved by up to that many pixels each way; what comes in is black."""
    if pixels < 0:
        raise ValueError("pixels must be 0 or more")

    def op(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width, _ = image.shape
        top, left = rng.integers(0, 2 * pixels + 1, 2)
        canvas = np.zeros((height + 2 * pixels, width + 2 * pixels, image.shape[2]), image.dtype)
        canvas[pixels : pixels + height, pixels : pixels + width] = image
        return canvas[top : top + height, left : left + width]

    return op


# --- Device operations ------------------------------------------------------------------------------


def value_range(low: float, high: float) -> DeviceOp:
    """From [0, 255] to [low, high], float32."""
    return lambda images: low + (high - low) / 255 * images.astype(jnp.float32)


HOST_OPS: Mapping[str, Callable[..., Callable[..., np.ndarray]]] = {
    op.__name__: op for op in (decode, resize, resize_small, center_crop, inception_crop, flip_lr, random_shift)
}
DEVICE_OPS: Mapping[str, Callable[..., DeviceOp]] = {op.__name__: op for op in (value_range,)}


# --- Pillow -----------------------------------------------------------------------------------------


def _open(data: bytes) -> Image.Image:
    """Decode all of an image; a broken one is a `UserError` (the caller knows its name)."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        return image
    # A broken PNG is a SyntaxError to Pillow.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"it cannot be decoded as an image ({error}); restore or remove it.") from error


def _to_pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize u8[H, W, C] to ``size`` (height, width); Pillow's bilinear filter is antialiased."""
    height, width = size
    if image.shape[:2] == size:
        return image
    resized = np.asarray(_to_pillow(image).resize((width, height), Image.Resampling.BILINEAR))
    return resized.reshape(*size, image.shape[2])
