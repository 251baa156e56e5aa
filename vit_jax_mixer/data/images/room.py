"""How much memory images may take: each by the bytes of its file, and all threads of a process together."""

import threading
from typing import Annotated

from vit_jax_mixer.errors import UserError
from vit_jax_mixer.specs import Within

MAX_PIXELS = 2**26  # 67 million: as large as any camera's
MAX_SIDE = 2**16 - 1  # as JPEG has it
Side = Annotated[int, Within(1, 2**13)]  # of what an operation makes: MAX_PIXELS, if it is square
# A file of few bytes can promise any number of pixels. So many are read of any file, and so many more of a larger
# one: 1,024 is what deflate makes of a byte at most, and no photograph comes near a hundredth of it.
_ANY_PIXELS = 2**22
_PIXELS_PER_BYTE = 2**10
_PIXELS_PER_RUN_BYTE = 2**7  # of a run-length BMP, where two bytes give 255 pixels
_SCANS = 16  # so many passes of a JPEG count as one; encoders make about ten

_SMALL = 16 << 20  # bytes: less needs no room
_MOST = 1 << 30


def check(height: int, width: int, file: bytes, scans: int = 1) -> None:
    """Raise a `UserError` if an image is larger than what its file can plausibly hold."""
    pixels = height * width
    if pixels > MAX_PIXELS or max(height, width) > MAX_SIDE:
        most = f"the {MAX_PIXELS:,} that are read" if pixels > MAX_PIXELS else f"the {MAX_SIDE:,} a side that are read"
        raise UserError(f"it has {width} x {height} pixels, more than {most}; make it smaller.")
    run_length = file[:2] == b"BM" and file[30:34] in (b"\1\0\0\0", b"\2\0\0\0")
    plausible = _PIXELS_PER_RUN_BYTE * len(file) if run_length else max(_ANY_PIXELS, _PIXELS_PER_BYTE * len(file))
    if pixels * -(-scans // _SCANS) > plausible:
        passes = f" in {scans} scans" if scans > _SCANS else ""
        raise UserError(
            f"it has {width} x {height} pixels{passes} in {len(file):,} bytes, more than can be in so few; "
            "save it anew, or remove it."
        )


class Room:
    """Memory that the threads of a process share.

    A thread takes room for one image at a time, so none waits for another that waits for it.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: dict[int, int] = {}  # bytes, by thread
        self._changed = threading.Condition()

    def take(self, size: int) -> None:
        """Wait until there is room for so many bytes (where it is more than all, until no one has any)."""
        self.give_back()
        if size < _SMALL:
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or sum(self._taken.values()) + size <= self._most)
            self._taken[threading.get_ident()] = size

    def give_back(self) -> None:
        """Give back what this thread took, if anything."""
        if threading.get_ident() in self._taken:
            with self._changed:
                del self._taken[threading.get_ident()]
                self._changed.notify_all()


ROOM = Room(_MOST)
