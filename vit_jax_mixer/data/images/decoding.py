"""From an encoded image to u8[H, W, C]: JPEG by libjpeg-turbo, all else by Pillow."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

from vit_jax_mixer import specs
from vit_jax_mixer.errors import UserError

Encoded = bytes | np.ndarray
HostOp = Callable[[Any, np.random.Generator], np.ndarray]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # no other of Pillow's readers sees a user's file
MAX_PIXELS = 2**26  # 67 million: more is taken for a decompression bomb, as a small file can promise any size

_JPEG = b"\xff\xd8"
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


def jpeg_shape(image: Encoded) -> tuple[int, int] | None:
    """Return (height, width) as it is upright, from the header of a JPEG; None for anything else.

    Raises:
        UserError: it has too many pixels.
    """
    if isinstance(image, np.ndarray) or image[:2] != _JPEG:
        return None
    try:
        height, width = (int(side) for side in simplejpeg.decode_jpeg_header(image)[:2])
    except ValueError:
        return None  # `to_array` says what is wrong with it
    _check_pixels(height, width)
    return (width, height) if _jpeg_header(image)[0] >= 5 else (height, width)


def to_array(image: Encoded, channels: int, reduce: int = 1, rows: int | None = None) -> np.ndarray:
    """Decode to u8[H, W, channels].

    Args:
        image: encoded bytes, or an array u8[H, W, 1|3].
        channels: 1 (grey) or 3 (RGB).
        reduce: 1, 2, 4 or 8: a JPEG may come back smaller by that factor (rounded up), which its
            transform gives nearly for free. The width of the result tells whether it did.
        rows: how many rows are needed, from the top and before any reduction; of a JPEG, no more
            than these and a few others may come back.

    Raises:
        UserError: it is no image of a known format, is damaged, or has too many pixels.
    """
    if isinstance(image, np.ndarray):
        return image if image.shape[-1] == channels else _convert(_to_pillow(image), channels)
    if image[:2] == _JPEG:
        orientation, sequential = _jpeg_header(image)
        cut = sequential if rows is not None and orientation == 1 else None
        array = (
            None if cut is None else _decode_jpeg(_with_height(image, cut, rows or 1), channels, reduce, strict=False)
        )
        array = _decode_jpeg(image, channels, reduce) if array is None else array
        if array is not None:
            return _upright(array, orientation)
    pillow = _open(image)
    return _upright(_convert(pillow, channels), _orientation(pillow.getexif()))


def _decode_jpeg(data: bytes, channels: int, reduce: int, strict: bool = True) -> np.ndarray | None:
    """Decode by libjpeg-turbo, as stored; None where Pillow must judge.

    That is a file with a fault, which may be a harmless one, and one in CMYK.
    """
    try:
        *shape, colours, _ = simplejpeg.decode_jpeg_header(data)
        height, width = (int(side) for side in shape)
        _check_pixels(height, width)
        if colours not in ("YCbCr", "Gray", "RGB"):
            return None
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
    except ValueError:
        return None


def _jpeg_header(data: bytes) -> tuple[int, int | None]:
    """Return a JPEG's orientation, and where its frame header stands if its rows come one after the other.

    That is the offset of an SOF0 or SOF1 segment (ITU-T T.81, B.2.2) of a file that ends as it
    should; None for a progressive or a cut one.
    """
    orientation, place = None, 2
    while data[place : place + 1] == b"\xff" and place + 10 < len(data):
        if data[place + 1] == 0xFF:  # a fill byte
            place += 1
            continue
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == 0xE1 and data[place + 4 : place + 10] == b"Exif\0\0" and orientation is None:
            orientation = _orientation_in(data[place + 4 : place + 2 + length])
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame header
            sequential = marker in (0xC0, 0xC1) and data.endswith(b"\xff\xd9")
            return orientation or 1, place if sequential else None
        place += 2 + length
    return orientation or 1, None


def _with_height(data: bytes, frame: int, rows: int) -> bytes:
    """Return a JPEG whose header promises that many rows, so that the decoder stops there.

    And some more: colours are interpolated from the rows below, which come in blocks of up to 32.
    """
    height = int.from_bytes(data[frame + 5 : frame + 7], "big")
    least = min(-(-rows // 32) * 32 + 32, height)
    return b"".join((data[: frame + 5], least.to_bytes(2, "big"), data[frame + 7 :]))


def _open(data: bytes) -> Image.Image:
    """Decode all of an image; a broken one is a `UserError` (the caller knows its name)."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_pixels(image.height, image.width)
        image.load()
        return image
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"it has more than the {MAX_PIXELS:,} pixels that are read; make it smaller.") from error
    # Whatever a decoder says of bytes that anyone may have written: a broken PNG is a SyntaxError.
    except Exception as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = ("no " + ", ".join(FORMATS) if data else "it is empty") if unknown else error
        raise UserError(f"it cannot be decoded as an image ({reason}); restore or remove it.") from error


def _check_pixels(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise UserError(
            f"it has {width} x {height} pixels, more than the {MAX_PIXELS:,} that are read; make it smaller."
        )


def _convert(image: Image.Image, channels: int) -> np.ndarray:
    if image.mode.startswith("I"):  # grey of 16 bits
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray(((np.clip(values, 0, 65535) + 128) // 257).astype(np.uint8))
    if isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # Pillow warns of a palette with several transparent colours
    array = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    return array.reshape(*array.shape[:2], channels)


def _to_pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    return np.ascontiguousarray(_UPRIGHT.get(orientation, lambda a: a)(array))


def _orientation_in(data: bytes) -> int:
    exif = Image.Exif()
    try:
        exif.load(data)
    except Exception:  # whatever a camera wrote there: the pixels are what counts
        return 1
    return _orientation(exif)


def _orientation(exif: Image.Exif) -> int:
    try:
        return int(exif.get(ExifTags.Base.Orientation, 1))
    except Exception:  # as above
        return 1
