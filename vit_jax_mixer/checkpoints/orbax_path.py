"""Folders as Orbax takes them: etils and TensorStore read more into a name than there is.

A leaf of the package.
"""

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from etils import epath
from etils.epath import gpath

from vit_jax_mixer.errors import UserError


class _Literal(gpath.PosixGPath):
    """A path whose own characters are never a pattern (``runs [v2]``), and that is always local (``/s3/runs``)."""

    @property
    def _uri_scheme(self) -> None:
        return None

    def glob(self, pattern: str) -> Iterator["_Literal"]:
        found = glob.glob(os.path.join(glob.escape(os.fspath(self)), pattern))
        return (self._new(path) for path in found)


def for_orbax(path: Path) -> epath.Path:
    r"""Return a local folder for Orbax, whatever its name is.

    Raises:
        UserError: TensorStore cannot open it: it takes ``\`` and ``name:/`` for something else, and only UTF-8.
    """
    text = os.fspath(path.absolute())
    if os.name == "nt":
        return epath.Path(text)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{text}: checkpoints cannot be below a folder whose name is not UTF-8; rename it.") from None
    for odd in ("\\", ":/"):
        if odd in text:
            raise UserError(f"{text}: checkpoints cannot be below a folder with {odd!r} in its name; rename it.")
    return _Literal(text)
