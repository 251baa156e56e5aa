"""The one error that a user can mend.

A leaf of the package: every room may import it, and it imports none of them.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """Bad input, told in one sentence: where, what was found, what was expected, what to do.

    The commands print its message without a traceback and exit with a code other than 0; every
    other exception is a defect of ours and keeps its traceback.
    """

    def __str__(self) -> str:
        return printable(super().__str__(), keep="\n")


def printable(text: object, keep: str = "") -> str:
    r"""Return a text from outside, as a name of a file or class, fit for a terminal, a report or a page.

    What a terminal would obey, or what turns around the text beside it, is shown escaped, as ``\x1b``;
    bytes of a file's name that are not UTF-8 likewise, as ``\xe9``.

    Args:
        text: is made a string.
        keep: characters that stay as they are, as a newline.
    """

    def shown(character: str) -> str:
        if character.isprintable() or character in keep:
            return character
        code = ord(character)
        if 0xDC80 <= code <= 0xDCFF:  # a byte, as `os.fsdecode` marks it
            return f"\\x{code - 0xDC00:02x}"
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    text = str(text)
    return text if text.isprintable() else "".join(map(shown, text))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make a failure to write to ``path``, while the block runs, a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to {path} ({error.strerror}); make room or mend the disk.") from error


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'? Known: x, y, z."`` for a name that is not known; long lists are left out."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    if len(known) > 30:  # as TFDS's thousand datasets
        return hint
    return f"{hint} Known: {', '.join(known) or 'none'}."


def span(text: str) -> str:
    """Return, for Markdown, code from outside within a line; no run of backticks in it ends it."""
    text = printable(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{text}{fence}" if len(fence) == 1 else f"{fence} {text} {fence}"
