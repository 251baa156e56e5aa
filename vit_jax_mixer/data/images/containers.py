"""What an image's file says around its pixels: read for the orientation, and left out for the decoder.

Metadata of any size or damage then keeps nobody from the pixels, nor does it cost a decoder time.
Of an animation the first frame is left. Work and memory are a small multiple of the file's size.
"""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

JPEG = b"\xff\xd8"
_FILL = re.compile(rb"\xff+")
_GIF_BLOCK = re.compile(rb"[\x21\x2c\x3b]")


class Jpeg(NamedTuple):
    """What the header of a JPEG says.

    Attributes:
        orientation: 1 to 8, as its first EXIF segment has it.
        sequential: the offset of its frame header (ITU-T T.81, B.2.2) if the rows come one after the
            other and the file ends as it should; None for a progressive or a cut one.
        scans: how often the decoder passes over the image.
    """

    orientation: int
    sequential: int | None
    scans: int


def read_jpeg(data: bytes) -> Jpeg:
    """Read the segments before the first scan."""
    found, frame = None, None
    for marker, place, end in _segments(data):
        if frame is None and found is None and marker == 0xE1 and data[place + 4 : place + 10] == b"Exif\0\0":
            found = orientation(data[place + 4 : end])
        elif frame is None and 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = place
        elif marker == 0xDA:
            break
    else:
        place = 2
    once = (
        frame is not None
        and place > frame
        and data[frame + 1] in (0xC0, 0xC1, 0xC3, 0xC9, 0xCB)  # not progressive
        and data[place + 4 : place + 5] == data[frame + 9 : frame + 10]  # all components in the first scan
    )
    rows = frame is not None and data[frame + 1] in (0xC0, 0xC1) and data.endswith(b"\xff\xd9")
    return Jpeg(found or 1, frame if rows else None, 1 if once else data.count(b"\xff\xda", place))


def without_metadata(data: bytes) -> tuple[bytes, int]:
    """Return an image file without its metadata, and its EXIF orientation.

    A file of no known format comes back as it is; so does what is damaged, for the decoder to refuse.
    """
    if data[:2] == JPEG:
        return _bare_jpeg(data), read_jpeg(data).orientation
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return _bare_png(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _bare_webp(data)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return _bare_gif(data), 1
    return data, 1


def orientation(exif: bytes) -> int:
    """Return how an image is to be set upright, 1 to 8 (CIPA DC-008, section 4.6.4).

    Damaged EXIF, and any other value, is 1: as stored. EXIF is a TIFF file; see TIFF 6.0, section 2.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        first = struct.unpack_from(f"{order}I", exif, 4)[0]
        count = struct.unpack_from(f"{order}H", exif, first)[0]
        for place in range(first + 2, first + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from(f"{order}HHI", exif, place)
            if tag == 0x0112:
                code = {1: "B", 3: "H", 4: "I"}.get(kind)
                value = struct.unpack_from(order + code, exif, place + 8)[0] if code and values == 1 else 1
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, where it stands, where its segment ends) of a JPEG, up to its first scan."""
    place = 2
    size = len(data)
    while place + 4 <= size:
        if data[place] != 0xFF and (place := data.find(b"\xff", place)) < 0:  # decoders pass over what is between
            return
        if place + 4 > size:
            return
        marker = data[place + 1]
        if marker == 0xFF:  # fill bytes, of which there may be millions; the last begins the marker
            place = _FILL.match(data, place).end() - 1  # pyright: ignore[reportOptionalMemberAccess] # it is one
        elif marker <= 1 or 0xD0 <= marker <= 0xD8:  # no segment follows
            place += 2
        elif marker == 0xD9:
            return
        else:
            end = place + 2 + (data[place + 2] << 8) + data[place + 3]
            yield marker, place, end
            if marker == 0xDA:
                return
            place = max(end, place + 2)


def _bare_jpeg(data: bytes) -> bytes:
    """Leave out comments and all application segments but JFIF's and Adobe's, which say what the colours are."""
    kept, last = [JPEG], 2
    for marker, place, end in _segments(data):
        if not (marker == 0xFE or (0xE1 <= marker <= 0xEF and marker != 0xEE)):
            kept.append(data[place:end])
        last = end
    return b"".join((*kept, data[last:]))


def _bare_png(data: bytes) -> tuple[bytes, int]:
    """Leave out the ancillary chunks (PNG, third edition, 5.4), transparency and further frames among them."""
    kept, found, place = [data[:8]], None, 8
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if kind == b"eXIf" and found is None:
            found = orientation(data[place + 8 : end - 4])
        if not (kind.isalpha() and kind[:1].islower()):
            kept.append(data[place:end])
        place = end
    return b"".join(kept), found or 1


def _bare_webp(data: bytes) -> tuple[bytes, int]:
    """Leave the chunks of the picture, or of the first frame (RFC 9649, section 2.7)."""
    kept, found, frames, place = [], None, 0, 12
    size = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while place + 8 <= size:
        kind, length = struct.unpack_from("<4sI", data, place)
        end = place + 8 + length + length % 2
        if kind == b"EXIF" and found is None:
            found = orientation(data[place + 8 : place + 8 + length])
        elif kind == b"VP8X":  # of its flags, alpha and animation stay true
            kept.append(data[place : place + 8] + bytes([data[place + 8] & 0x12]) + data[place + 9 : end])
        elif kind in (b"VP8 ", b"VP8L", b"ALPH", b"ANIM") or (kind == b"ANMF" and not frames):
            kept.append(data[place:end])
            frames += kind == b"ANMF"
        place = end
    body = b"".join((b"WEBP", *kept))
    return b"RIFF" + struct.pack("<I", len(body)) + body, found or 1


def _bare_gif(data: bytes) -> bytes:
    """Leave the header, the first frame and its graphic control extension (GIF89a, section 23)."""
    if len(data) < 13:
        return data
    place, control = 13 + _colours(data[10]), b""
    head = data[:place]
    while place + 10 <= len(data) and data[place] != 0x3B:
        start = place
        if data[place] == 0x2C:
            end = _after_blocks(data, place + 11 + _colours(data[place + 9]))
            return b"".join((head, control, data[start:end]))
        if data[place] == 0x21:
            place = _after_blocks(data, place + 2)
            control = data[start:place] if data[start + 1] == 0xF9 else control
        else:
            block = _GIF_BLOCK.search(data, place)
            place = block.start() if block else len(data)
    return data


def _colours(flags: int) -> int:
    """Return how many bytes of colours follow, by the flags of a screen or a frame."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _after_blocks(data: bytes, place: int) -> int:
    while place < len(data) and data[place]:
        place += 1 + data[place]
    return place + 1
