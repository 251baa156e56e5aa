"""Image files whose metadata is large or damaged, and such as promise far more than their bytes can hold."""

import io
import struct
import zlib
from functools import cache

import numpy as np
from PIL import Image


def photo(height=48, width=64):
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([3 * y, 2 * x, 100 + y - x], -1).astype(np.uint8))


def encoded(image, kind, **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def png(*chunks):
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def header(width, height, depth=8, colour=2):
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


def png_with(data, *chunks):
    """A PNG with chunks after its header."""
    return data[:33] + png(*chunks)[8:] + data[33:]


def jpeg_with(data, *segments):
    """A JPEG with (marker, body) after its first two bytes."""
    parts = [bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body for marker, body in segments]
    return b"".join((data[:2], *parts, data[2:]))


def webp_with(data, *chunks, size=None):
    """A lossy WebP of the photo in the extended format, with chunks after its picture."""
    parts = [kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2) for kind, body in chunks]
    extended = b"VP8X" + struct.pack("<IB3x", 10, 0x2C) + bytes([63, 0, 0, 47, 0, 0])
    body = b"WEBP" + extended + data[12:] + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


def gif_with(data, *extensions):
    """A GIF with (label, body) before its first frame."""
    start = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    parts = []
    for label, body in extensions:
        blocks = [body[i : i + 255] for i in range(0, len(body), 255)]
        parts += [bytes([0x21, label]), *(bytes([len(block)]) + block for block in blocks), b"\0"]
    return data[:start] + b"".join(parts) + data[start:]


def exif(orientation, kind=3, count=1, order="<"):
    """EXIF that holds an orientation and nothing else."""
    start = b"II*\0" if order == "<" else b"MM\0*"
    value = struct.pack(order + {1: "B3x", 2: "4s", 3: "H2x", 4: "I"}[kind], orientation)
    return start + struct.pack(order + "IHHHI", 8, 1, 0x0112, kind, count) + value + bytes(4)


DAMAGED_EXIF = {
    "empty": b"",
    "cut": exif(6)[:11],
    "far": b"II*\0\xff\xff\xff\x7f",
    "many": b"MM\0*\0\0\0\x08\xff\xff" + bytes(30),
    "text": b"XX" * 50,
    "not_a_number": exif(b"6\0\0\0", kind=2),
    "several": exif(6, count=9),
    "unknown_kind": exif(6)[:12] + b"\x63\0" + exif(6)[14:],
    "long": exif(1) + bytes(60_000),
}


@cache
def sound():
    """By name, files with odd metadata, each with the plain file of the same pixels."""
    jpeg, plain, webp = encoded(photo(), "JPEG"), encoded(photo(), "PNG"), encoded(photo(), "WEBP")
    cmyk, grey = encoded(photo().convert("CMYK"), "JPEG"), encoded(photo().convert("LA"), "PNG")
    palette, gif = photo().quantize(8), encoded(photo().quantize(), "GIF")
    few = encoded(palette, "PNG")
    big = 3 << 20
    compressed = zlib.compress(bytes(200 << 20), 9)
    files = {}
    for name, body in DAMAGED_EXIF.items():
        prefixed = b"Exif\0\0" + body
        files[f"exif_{name}.jpg"] = jpeg_with(jpeg, (0xE1, prefixed)), jpeg
        files[f"exif_{name}_cmyk.jpg"] = jpeg_with(cmyk, (0xE1, prefixed)), cmyk
        files[f"exif_{name}.png"] = png_with(plain, (b"eXIf", body)), plain
        files[f"exif_{name}.webp"] = webp_with(webp, (b"EXIF", body)), webp
    return files | {
        "texts.png": (png_with(plain, (b"tEXt", b"a\0" + bytes(big)), (b"zTXt", b"a\0\0" + compressed)), plain),
        "broken_texts.png": (png_with(plain, (b"zTXt", b"a\0\1xyz"), (b"iTXt", b""), (b"tEXt", b"\xff" * 99)), plain),
        "profile.png": (png_with(plain, (b"iCCP", b"a\0\0" + compressed), (b"iCCP", b"a")), plain),
        "small_chunks.png": (png_with(plain, (b"gAMA", b""), (b"pHYs", b"1"), (b"cHRM", b""), (b"sRGB", b"")), plain),
        "frames.png": (png_with(plain, (b"acTL", b"\xff" * 8), (b"fcTL", b"\xff" * 26)), plain),
        "wrong_sum_of_a_text.png": (plain[:33] + b"\0\0\0\1tEXtabcde" + plain[33:], plain),
        "text_beyond_the_end.png": (plain[:-12] + b"\0\xff\xff\xfftEXtabc", plain),
        "transparency.png": (png_with(few, (b"PLTE", bytes(range(24))), (b"tRNS", bytes(5000))), None),
        "transparency_of_rgb.png": (png_with(plain, (b"tRNS", b"123")), plain),
        "transparency_of_grey.png": (png_with(grey, (b"tRNS", b"1")), grey),
        "profiles.jpg": (jpeg_with(jpeg, *[(0xE2, b"ICC_PROFILE\0\x09\x09" + bytes(60_000))] * 50), jpeg),
        "segments_cmyk.jpg": (jpeg_with(cmyk, *[(0xE1, b"Exif\0\0" + bytes(65_000))] * 200), cmyk),
        "photoshop_cmyk.jpg": (jpeg_with(cmyk, (0xED, b"Photoshop 3.0\x008BIM\4\4"), (0xE2, b"MPF\0II*\0")), cmyk),
        "fill_bytes.jpg": (jpeg[:2] + b"\xff" * big + jpeg[2:], jpeg),
        "comment.jpg": (jpeg_with(jpeg, (0xFE, b"\x1b[2J" * 9000)), jpeg),
        "chunks.webp": (webp_with(webp, (b"ICCP", bytes(big)), (b"XMP ", b"<" * big), (b"????", b"abc")), webp),
        "cut_chunk.webp": (webp_with(webp, (b"XMP ", bytes(999)))[:-500], webp),
        "size_beyond_the_end.webp": (webp_with(webp, (b"EXIF", b"abcd"), size=99_999)[:-4], webp),
        "comments.gif": (gif_with(gif, (0xFE, bytes(range(1, 250)) * 20_000), (0xFF, b"XMP DataXMP" + bytes(99))), gif),
    }


def scans(size, count):
    """A progressive JPEG of one colour whose last scan is there again and again."""
    data = encoded(Image.new("RGB", size, (90, 60, 30)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + data[-2:]


def runs(width, height, body):
    """A BMP of 8 bits and run lengths."""
    start = 54 + 4 * 256
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + info + bytes(1024) + body


@cache
def bombs():
    """By name, files that a few bytes make gigapixels, or hours, of."""
    blank = Image.new("RGB", (8192, 8192))
    lossless = encoded(blank, "WEBP", lossless=True)
    zeros = zlib.compress(bytes(8192 * (3 * 8192 + 1)), 9)
    return {
        "lossless.webp": lossless,
        "16383.webp": encoded(Image.new("L", (16_383, 4096)), "WEBP", lossless=True),
        "canvas.webp": b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\2\0\0\0" + b"\xff\x3f\0" * 2 + b"ANMF\0\0\0\0",
        "scans.jpg": scans((2000, 2000), 900),
        "scans_of_many.jpg": scans((8000, 8000), 300),
        "lines.bmp": runs(8192, 8192, b"\1\0\0\0" * 200),
        "jumps.bmp": runs(8192, 8192, b"\0\2\xff\xff" * 200),
        "wide.bmp": runs(2**26, 1, b"\0\2\xff\xff" * 200),
        "tall.png": png(header(1, 2**26, 1, 0), (b"IDAT", zlib.compress(bytes(2**27), 9)), (b"IEND", b"")),
        "cut.png": png(header(8192, 8192), (b"IDAT", zeros[:4000]), (b"IEND", b"")),
        "canvas.gif": b"GIF89a"
        + struct.pack("<HHBBB", 8192, 8192, 0x80, 0, 0)
        + bytes(6)
        + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
    }


@cache
def largest():
    """As many pixels as are read, in as few bytes as are plausible."""
    zeros = zlib.compress(bytes(8192 * (3 * 8192 + 1)), 9)
    return png(header(8192, 8192), (b"IDAT", zeros), (b"IEND", b""))
