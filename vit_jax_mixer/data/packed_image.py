"""An image as it is packed: no larger than it is used, and upright."""

import io

import numpy as np
import simplejpeg
from PIL import Image

from vit_jax_mixer.data.images.containers import JPEG, read_jpeg
from vit_jax_mixer.data.images.decoding import Encoded, format_of, to_array
from vit_jax_mixer.data.images.geometry import resize_small
from vit_jax_mixer.errors import UserError

_KEPT = {"JPEG RGB", "JPEG L", "PNG RGB", "PNG L"}  # what every reader takes alike
_RNG = np.random.default_rng(0)  # which nothing draws from


def packed(image: Encoded, side: int, quality: int) -> tuple[bytes, bool]:
    """Return an image as encoded bytes, and whether it was reduced.

    One whose shorter side is above ``side`` becomes a JPEG with that side, reduced by an antialiased bicubic filter.
    Others stay the bytes that they are, if these are a JPEG or PNG of a common kind, upright; or become a PNG.

    Args:
        image: encoded bytes, or u8[H, W, 1|3].
        side: pixels.
        quality: of the JPEG.

    Raises:
        UserError: it cannot be decoded.
    """
    kind = format_of(image) if isinstance(image, np.ndarray) else _kind(image)
    grey = kind.endswith((" L", " 1", " 1 channel(s)"))
    array = to_array(image, 1 if grey else 3)  # also of those that stay as they are, which may be damaged
    if min(array.shape[:2]) > side:
        array = np.ascontiguousarray(resize_small(side, "bicubic")(array, _RNG))
        how = dict(colorspace="GRAY") if grey else dict(colorspace="RGB", colorsubsampling="420")
        return simplejpeg.encode_jpeg(array, quality=quality, **how), True
    upright = isinstance(image, np.ndarray) or image[:2] != JPEG or read_jpeg(image).orientation == 1
    if isinstance(image, bytes) and kind in _KEPT and upright:
        return image, False
    return _png(array), False


def _kind(image: bytes) -> str:
    try:
        return format_of(image)
    except Exception:  # `to_array` says what is wrong with it
        to_array(image, 3)
        raise UserError("its format cannot be told; save it as JPEG or PNG.") from None


def _png(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(stream, "PNG")
    return stream.getvalue()
