"""Names in pictures, in any script.

A leaf of the package, beside `errors`.
"""

import functools
import unicodedata

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from vit_jax_mixer.errors import printable

_FONTS = hasattr(cv2, "FontFace")  # from OpenCV 5 on it ships them, with most scripts of the world
# Fonts of systems, for scripts whose letters join or run from right to left, which OpenCV draws one by one
_OF_SYSTEMS = (
    "DejaVuSans.ttf",
    *(f"NotoSans{part}-Regular.ttf" for part in ("", "Arabic", "Hebrew", "Devanagari", "Bengali", "Tamil", "Thai")),
    "NotoEmoji-Regular.ttf",
    "FreeSans.ttf",
    "Arial Unicode.ttf",
    "Arial.ttf",
    "Nirmala.ttf",
    "LeelawUI.ttf",
    "seguiemj.ttf",
)


def line(text: str, size: int = 12) -> Image.Image:
    r"""Return one line of black text on white, "L"[h, w]; characters of no font at hand are escaped, as ``\u0e44``."""
    text = printable(unicodedata.normalize("NFC", text))  # fonts have é rather than e and an accent
    if not all(map(_has, text)):
        for name in _OF_SYSTEMS:
            font = _of_system(name, size)
            none = _by_pillow("\U0010ffff", font, size).tobytes() if font else b""
            if font and all(c == " " or _by_pillow(c, font, size).tobytes() != none for c in text):
                return Image.fromarray(_by_pillow(text, font, size))
    shown = "".join(c if _has(c) else c.encode("ascii", "backslashreplace").decode() for c in text)
    return Image.fromarray(_draw(shown, size))


def tile(pixels: np.ndarray, side: int) -> Image.Image:
    """Return an image u8[h, w, c], of c = 1 or 3 channels, whose longer side is ``side`` pixels."""
    picture = Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)).copy())
    scale = side / max(picture.size)
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC  # enlarged, pixels stay visible
    return picture.resize([max(round(edge * scale), 1) for edge in picture.size], method)


def short(text: str, most: int) -> str:
    """Return a text of at most ``most`` characters, its end left out."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


@functools.lru_cache(4096)
def _has(character: str) -> bool:
    """Say whether `_draw` can draw it; OpenCV draws a question mark for a character that it has none for."""
    if character.isascii():
        return True
    if unicodedata.bidirectional(character) in ("R", "AL") or unicodedata.category(character).startswith("M"):
        return False
    return _FONTS and not np.array_equal(_draw(character, 12), _draw("?", 12))


def _draw(text: str, size: int) -> np.ndarray:
    """Return u8[h, w]."""
    if not _FONTS:  # Pillow's own font has no more than ASCII
        return _by_pillow(text, ImageFont.load_default(size), size)
    font = cv2.FontFace("uni")
    _, _, width, _ = cv2.getTextSize((1, 1), text, (0, 0), font, size)
    strip = np.full((round(1.5 * size), width + 2), 255, np.uint8)
    cv2.putText(strip, text, (1, round(1.15 * size)), (0, 0, 0), font, size)
    return strip


def _by_pillow(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, size: int) -> np.ndarray:
    """Return u8[h, w]."""
    strip = Image.new("L", (int(font.getlength(text)) + 3, round(1.5 * size)), "white")
    ImageDraw.Draw(strip).text((1, round(1.15 * size)), text, "black", font, anchor="ls")
    return np.asarray(strip)


@functools.lru_cache(64)
def _of_system(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    """Return a font of this machine, if it has that one and Pillow can join letters."""
    try:
        return ImageFont.truetype(name, size) if features.check("raqm") else None
    except OSError:
        return None
