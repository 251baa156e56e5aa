"""Checksums of a checkpoint's files, which tell later whether a disk has kept them.

A leaf of the package.
"""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vit_jax_mixer import files
from vit_jax_mixer.errors import UserError

FILE = "checksums.json"
SCORES = "scores.json"  # of a checkpoint: may come later, and sums itself
_FIELD = "crc32"  # of a description that sums itself
_REMARKS = "_CHECKPOINT_METADATA"  # Orbax's, to which it adds the time after the seal
_TIMES = ("init_timestamp_nsecs", "commit_timestamp_nsecs")  # of those
_BLOCK = 1 << 20  # bytes read at once


class DamageError(Exception):
    """What is wrong with a folder, in a few words, for the sentence of whoever wanted to read it."""


def seal(folder: Path) -> None:
    """Write ``checksums.json``: the size and CRC-32 of each file below a folder.

    Args:
        folder: holds all that it is to hold.

    Raises:
        ValueError: it holds no files.
    """
    names = sorted(str(path.relative_to(folder)) for path in _files(folder))
    names = [name for name in names if name not in (FILE, SCORES)]
    if not names:
        raise ValueError(f"there is nothing to seal in {folder}")
    with ThreadPoolExecutor() as threads:
        sums = dict(zip(names, threads.map(lambda name: _sum(folder / name), names), strict=True))
    files.write_atomically(folder / FILE, json.dumps(sums, indent=1) + "\n")


def check(folder: Path) -> None:
    """Compare a sealed folder with its checksums; one without a seal passes.

    Sizes are compared first; then all bytes are read once, by several threads.

    Raises:
        DamageError: what is wrong with it.
    """
    if not os.path.lexists(folder / FILE):
        return
    try:
        sums = _expected(folder)
        for name, (size, _) in sums.items():
            path = folder / name
            if not path.exists():
                raise DamageError(f"{name} is missing")
            if not path.is_file() or (path.name != _REMARKS and path.stat().st_size != size):
                raise DamageError(f"{name} is not what was written")
        with ThreadPoolExecutor() as threads:
            for name, found in zip(sums, threads.map(lambda name: _sum(folder / name), sums), strict=True):
                if found != sums[name]:
                    raise DamageError(f"{name} is not what was written")
        if os.path.lexists(folder / SCORES):
            read_json(folder / SCORES)
    except (OSError, UserError) as error:
        raise DamageError(f"it cannot be read: {error}") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a description with a checksum of its own, in the field ``crc32``; at once or not at all.

    Raises:
        OSError: it cannot be written.
    """
    content = dict(json.loads(json.dumps(content)))  # as it will be read
    files.write_atomically(path, json.dumps({**content, _FIELD: _sum_of(content)}, indent=2) + "\n")


def read_json(path: Path, *, may_lack_it: bool = False) -> dict[str, Any]:
    """Read what `write_json` wrote, without its checksum.

    Args:
        path: the file.
        may_lack_it: take one without a checksum, as earlier versions or people write it. Its reader must
            refuse fields that it does not know: one of them may be the checksum, its name damaged.

    Raises:
        UserError: it is damaged.
    """
    content = files.read_json(path)
    found = content.pop(_FIELD, None)
    if found != _sum_of(content) and not (found is None and may_lack_it):
        raise UserError(
            f"{path} is damaged or was changed by hand (its field {_FIELD} says so); restore it, or, if you changed "
            f"it, take that field out."
        )
    return content


def _expected(folder: Path) -> dict[str, list[int]]:
    """Return the size and checksum of each file."""
    sums: dict[str, list[int]] = {}
    for name, found in files.read_json(folder / FILE).items():
        inside = ".." not in Path(name).parts and not Path(name).is_absolute() and "\0" not in name
        numbers = isinstance(found, list) and len(found) == 2 and all(type(number) is int for number in found)
        if not (inside and numbers):
            raise UserError(f"{FILE} is damaged ({name!r}: {found!r:.60} is not a size and a checksum)")
        sums[name] = found
    return sums


def _files(folder: Path) -> Iterator[Path]:
    return (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)


def _sum(path: Path) -> list[int]:
    size = checksum = 0
    if path.name == _REMARKS:
        remarks = {name: value for name, value in files.read_json(path).items() if name not in _TIMES}
        return [0, _sum_of(remarks)]
    with files.open_regular(path) as file:
        while block := file.read(_BLOCK):
            size += len(block)
            checksum = zlib.crc32(block, checksum)
    return [size, checksum]


def _sum_of(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
