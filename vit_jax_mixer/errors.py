"""The one error that a user can mend.

A leaf of the package: every room may import it, and it imports none of them.
"""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """Bad input, told in one sentence: where, what was found, what was expected, what to do.

    The commands print its message without a traceback and exit with a code other than 0; every
    other exception is a defect of ours and keeps its traceback.
    """


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
