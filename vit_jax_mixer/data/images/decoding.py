"""From an encoded image to u8[H, W, C]: JPEG by libjpeg-turbo, all else by Pillow."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from vit_jax_mixer import specs
from vit_jax_mixer.data.images import room
from vit_jax_mixer.data.images.containers import JPEG, Jpeg, read_jpeg, without_metadata
from vit_jax_mixer.errors import UserError

Encoded = bytes | np.ndarray
HostOp = Callable[[Any, np.random.Generator], np.ndarray]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # no other of Pillow's readers sees a user's file

# Bytes that a pixel takes at most while it is decoded, and changed after that.
_JPEG_ROOM, _PILLOW_ROOM = 12, 20
_STRIP = 2**20  # pixels that are converted at once
_TO_8_BITS = ((np.arange(2**16) + 128) // 257).astype(np.uint8)
# How to set an image upright, by its EXIF orientation (CIPA DC-008, section 4.6.4); 1 is upright.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


def decode(channels: int = 3) -> HostOp:
    """Encoded bytes, or an array u8[H, W, 1|3], to u8[H, W, channels] (1 grey, 3 RGB), upright.

    Transparency is dropped, 16 bits become 8, CMYK becomes RGB, of an animation the first frame is
    taken, and the EXIF orientation is applied.
    """
    check_channels(channels)
    return lambda image, rng: to_array(image, channels)


def check_channels(channels: int) -> None:
    """Raise a `UserError` unless ``channels`` is 1 or 3."""
    specs.lookup({"1": "grey", "3": "RGB"}, str(channels), "channels")


def jpeg_shape(image: Encoded) -> tuple[tuple[int, int], Jpeg] | None:
    """Return (height, width) as it is upright, and the rest of the header, of a JPEG; None for anything else.

    Raises:
        UserError: it has too many pixels.
    """
    if isinstance(image, np.ndarray) or image[:2] != JPEG:
        return None
    try:
        height, width = (int(side) for side in simplejpeg.decode_jpeg_header(image)[:2])
    except ValueError:
        return None  # `to_array` says what is wrong with it
    header = read_jpeg(image)
    room.check(height, width, image, header.scans)
    return ((width, height) if header.orientation >= 5 else (height, width)), header


def to_array(
    image: Encoded, channels: int, reduce: int = 1, rows: int | None = None, header: Jpeg | None = None
) -> np.ndarray:
    """Decode to u8[H, W, channels].

    Args:
        image: encoded bytes, or an array u8[H, W, 1|3].
        channels: 1 (grey) or 3 (RGB).
        reduce: 1, 2, 4 or 8: a JPEG may come back smaller by that factor (rounded up), which its
            transform gives nearly for free. The width of the result tells whether it did.
        rows: how many rows are needed, from the top and before any reduction; of a JPEG, no more
            than these and a few others may come back.
        header: of a JPEG, where it is read already.

    Raises:
        UserError: it is no image of a known format, is damaged, or has too many pixels.
    """
    if isinstance(image, np.ndarray):
        return image if image.shape[-1] == channels else _convert(_to_pillow(image), channels)
    if image[:2] == JPEG:
        header = header or read_jpeg(image)
        cut = header.sequential if rows is not None and header.orientation == 1 else None
        array = (
            None
            if cut is None
            else _decode_jpeg(_with_height(image, cut, rows or 1), header.scans, channels, reduce, strict=False)
        )
        array = _decode_jpeg(image, header.scans, channels, reduce) if array is None else array
        if array is not None:
            return _upright(array, header.orientation)
    return _decode_by_pillow(image, channels)


def format_of(image: Encoded) -> str:
    """Return the format of an image that can be decoded, and its mode, as Pillow names them."""
    if isinstance(image, np.ndarray):
        return f"array of {image.shape[-1]} channel(s)"
    header = Image.open(io.BytesIO(without_metadata(image)[0]), formats=FORMATS)  # reads no more than the header
    return f"{header.format} {header.mode}"


def _decode_jpeg(data: bytes, scans: int, channels: int, reduce: int, strict: bool = True) -> np.ndarray | None:
    """Decode by libjpeg-turbo, as stored; None where Pillow must judge.

    That is a file with a fault, which may be a harmless one, and one in CMYK.
    """
    try:
        *shape, colours, _ = simplejpeg.decode_jpeg_header(data)
        height, width = (int(side) for side in shape)
        room.check(height, width, data, scans)
        if colours not in ("YCbCr", "Gray", "RGB"):
            return None
        room.ROOM.take(height * width * _JPEG_ROOM)
        small = (-(-height // reduce), -(-width // reduce)) if reduce > 1 else (0, 0)
        return simplejpeg.decode_jpeg(
            data,
            "RGB" if channels == 3 else "GRAY",
            min_height=small[0],
            min_width=small[1],
            min_factor=reduce,
            strict=strict,
        )
    except UserError:
        raise
    except (ValueError, MemoryError):
        return None


def _with_height(data: bytes, frame: int, rows: int) -> bytes:
    """Return a JPEG whose header promises that many rows, so that the decoder stops there.

    And some more: colours are interpolated from the rows below, which come in blocks of up to 32.
    """
    height = int.from_bytes(data[frame + 5 : frame + 7], "big")
    least = min(-(-rows // 32) * 32 + 32, height)
    return b"".join((data[: frame + 5], least.to_bytes(2, "big"), data[frame + 7 :]))


def _decode_by_pillow(data: bytes, channels: int) -> np.ndarray:
    """Decode all of an image, upright; a broken one is a `UserError` (the caller knows its name)."""
    bare, orientation = without_metadata(data)
    try:
        image = Image.open(io.BytesIO(bare), formats=FORMATS)
        room.check(image.height, image.width, bare, read_jpeg(bare).scans if image.format == "JPEG" else 1)
        room.ROOM.take(image.height * image.width * _PILLOW_ROOM)
        image.load()
        return _upright(_convert(image, channels), orientation)
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"it has more than the {room.MAX_PIXELS:,} pixels that are read; make it smaller.") from error
    # Whatever a decoder says of bytes that anyone may have written: a broken PNG is a SyntaxError.
    except Exception as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = ("no " + ", ".join(FORMATS) if data else "it is empty") if unknown else _first_line(error)
        raise UserError(f"it cannot be decoded as an image ({reason}); restore or remove it.") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:100]


def _convert(image: Image.Image, channels: int) -> np.ndarray:
    """Return a Pillow image as u8[H, W, channels], made in strips: each step of it takes memory of its own."""
    rows = max(1, _STRIP // image.width)
    if rows >= image.height:
        return _convert_strip(image, channels)
    array = np.empty((image.height, image.width, channels), np.uint8)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        array[top:bottom] = _convert_strip(image.crop((0, top, image.width, bottom)), channels)
    return array


def _convert_strip(image: Image.Image, channels: int) -> np.ndarray:
    if image.mode.startswith("I"):  # grey of 16 bits
        image = Image.fromarray(_TO_8_BITS[np.clip(np.asarray(image), 0, 2**16 - 1)])
    mode = "RGB" if channels == 3 else "L"
    array = np.asarray(image if image.mode == mode else image.convert(mode))
    return array.reshape(*array.shape[:2], channels)


def _to_pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    return np.ascontiguousarray(_UPRIGHT.get(orientation, lambda a: a)(array))
