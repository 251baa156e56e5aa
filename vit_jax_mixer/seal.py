"""Checksums of a checkpoint's files, which tell later whether a disk has kept them."""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

FILE = "checksums.json"


def seal(folder: Path) -> None:
    """Write ``checksums.json``: the size and CRC-32 of each file below the folder's folders.

    Files of the folder itself are Orbax's remarks, which it still changes; nothing of the state is in them.
    """
    sums = {str(path.relative_to(folder)): _sum(path) for path in _files(folder)}
    (folder / FILE).write_text(json.dumps(sums, indent=1) + "\n")


def damage(folder: Path) -> str:
    """Return what is wrong with a sealed folder, in a few words; '' if nothing is, or it has no seal."""
    path = folder / FILE
    if not path.exists():
        return ""
    try:
        for name, expected in json.loads(path.read_text()).items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if _sum(folder / name) != expected:
                return f"{name} is not what was written"
    except (OSError, ValueError, AttributeError) as error:
        return f"it cannot be read: {error}"
    return ""


def _files(folder: Path) -> Iterator[Path]:
    inner = (path for path in sorted(folder.iterdir()) if path.is_dir())
    return (path for one in inner for path in sorted(one.rglob("*")) if path.is_file())


def _sum(path: Path) -> list[int]:
    size = checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            size += len(block)
            checksum = zlib.crc32(block, checksum)
    return [size, checksum]
