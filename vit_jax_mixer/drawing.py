"""Names in pictures, in any script.

A leaf of the package, beside `errors`.
"""

import functools
import unicodedata

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vit_jax_mixer.errors import printable

_FONTS = hasattr(cv2, "FontFace")  # from OpenCV 5 on it ships them, with most scripts of the world


def line(text: str, size: int = 12) -> Image.Image:
    r"""Return one line of black text on white, "L"[h, w]; characters of no font at hand are escaped, as ``\u0e44``."""
    text = printable(unicodedata.normalize("NFC", text))  # fonts have é rather than e and an accent
    shown = "".join(c if c.isascii() or _has(c) else c.encode("ascii", "backslashreplace").decode() for c in text)
    return Image.fromarray(_draw(shown, size))


def short(text: str, most: int) -> str:
    """Return a text of at most ``most`` characters, its end left out."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


@functools.lru_cache(4096)
def _has(character: str) -> bool:
    """Say whether there is a glyph; OpenCV draws a question mark for a character that it has none for."""
    return _FONTS and not np.array_equal(_draw(character, 12), _draw("?", 12))


def _draw(text: str, size: int) -> np.ndarray:
    """Return u8[h, w]."""
    height, base = round(1.5 * size), round(1.15 * size)
    if not _FONTS:  # Pillow's own font has no more than ASCII
        font = ImageFont.load_default(size)
        strip = Image.new("L", (int(font.getlength(text)) + 2, height), "white")
        ImageDraw.Draw(strip).text((1, base), text, "black", font, anchor="ls")
        return np.asarray(strip)
    font = cv2.FontFace("uni")
    _, _, width, _ = cv2.getTextSize((1, 1), text, (0, 0), font, size)
    strip = np.full((height, width + 2), 255, np.uint8)
    cv2.putText(strip, text, (1, base), (0, 0, 0), font, size)
    return strip
