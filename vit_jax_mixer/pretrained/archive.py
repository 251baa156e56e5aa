"""Zip archives from strangers: what they promise is held against their size before it is believed."""

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained.checks import check_count

# Weights hardly compress; a fresh model's zeros do, but are not most of it.
MAX_RATIO = 20
SMALL = 1 << 24  # bytes that may be promised by any file, however small
_CHUNK = 1 << 18  # bytes that stay in a core's cache


@contextmanager
def open_archive(path: Path, kind: str) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive whose members are safe to read; ``kind`` is what it should be, for the sentence.

    Raises:
        UserError: it is no zip archive, is damaged (also while the caller reads), promises more
            than it can hold, or has members that are encrypted, doubled or named with "..".
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check(archive, path)
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not {kind} ({error}); download it again.") from error


def _check(archive: zipfile.ZipFile, path: Path) -> None:
    size = path.stat().st_size
    members = archive.infolist()
    check_count(len(members), path)
    names = set()
    for member in members:
        check_name(member.filename, path)
        if member.filename in names:
            raise UserError(
                f"{path} holds {member.filename} twice, so that it is not clear which counts; do not use it."
            )
        names.add(member.filename)
        if member.flag_bits & 1:
            raise UserError(f"{path}: {member.filename} is encrypted; give a file that is not.")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(
                f"{path}: {member.filename} is compressed in a way that weights are not "
                f"(method {member.compress_type}); save it with np.savez."
            )
    promised = sum(member.file_size for member in members)
    stored = sum(member.compress_size for member in members)
    if stored > size or promised > max(MAX_RATIO * size, SMALL):
        raise UserError(
            f"{path} has {size:,} bytes and promises {promised:,}, which weights cannot do; it is damaged or a trap."
        )


def check_name(name: str, path: Path) -> None:
    """Refuse what is no sane name of a parameter; it is only ever a key, but others may use it as a path.

    Raises:
        UserError: a part of it is empty, "." or "..", or it cannot be printed.
    """
    if not name.isprintable() or len(name) > 1000:
        raise UserError(
            f"{path} holds an array with the name {name[:40]!r}..., which cannot be printed; do not use it."
        )
    if {"", ".", ".."} & set(name.rstrip("/").split("/")):
        raise UserError(f"{path} holds an array with the name {name!r}, a path out of its folder; do not use it.")


def read_member(archive: zipfile.ZipFile, name: str, count: int, skip: int = 0) -> np.ndarray:
    """Return ``count`` bytes of a member behind the first ``skip``, which are its last: u8[count].

    They go to their place in small pieces, so that nothing but the result takes memory.

    Raises:
        ValueError: the member is shorter, or its checksum is wrong.
    """
    data = np.empty(count, np.uint8)
    view = data.data
    with archive.open(name) as file:
        assert isinstance(file, zipfile.ZipExtFile)
        file.read(skip)
        done = 0
        while done < count:
            got = file.readinto(view[done : done + _CHUNK])
            if not got:
                raise ValueError(f"{name} ends after {done:,} of {count:,} bytes")
            done += got
        file.read(1)  # past the end, where the checksum is compared
    return data


def size_of(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Return the bytes of an array; Python's integers do not overflow as NumPy's do."""
    return math.prod(shape) * dtype.itemsize
