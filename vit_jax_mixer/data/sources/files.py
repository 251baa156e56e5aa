"""Image files, with their labels where they have some: what folders and manifests share."""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax_mixer import classes
from vit_jax_mixer.data.sources.base import Source, evenly
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.files import read_bytes, read_text

MOST_BYTES = 1 << 29  # of an image file: as many pixels as are decoded, not compressed, in 16 bits


@dataclasses.dataclass(frozen=True)
class Files:
    """Files below a folder, a million in a few arrays, which pickle in no time.

    Attributes:
        root: the folder that relative paths start from.
        names: u8[sum of lengths], the paths one after the other, as the file system spells them.
        ends: int[N], where each path ends in ``names``.
        labels: int[N]; None where one has none.
    """

    root: str
    names: np.ndarray
    ends: np.ndarray
    labels: np.ndarray | None

    @classmethod
    def of(cls, root: str, files: Sequence[tuple[str, int | None]]) -> "Files":
        """Return the files, given as (path below ``root``, label), in that order."""
        names = [os.fsencode(path) for path, _ in files]
        labels = [label for _, label in files if label is not None]
        return cls(
            root,
            np.frombuffer(b"".join(names), np.uint8),
            np.cumsum([len(name) for name in names], dtype=np.int64),
            np.array(labels, np.int32) if len(labels) == len(files) else None,
        )

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = {"image": read_bytes(self.where(index), MOST_BYTES)}
        return image if self.labels is None else {**image, "label": int(self.labels[index])}

    def traits(self) -> Iterator[bytes]:
        """Yield all names and labels, and the sizes of at most 10,000 files."""
        yield self.names.tobytes()
        yield self.ends.tobytes()
        yield b"" if self.labels is None else self.labels.tobytes()
        yield np.array([_size(self.where(index)) for index in evenly(len(self), 10_000)], np.int64).tobytes()

    def where(self, index: int) -> str:
        """Return the path of an example."""
        index = range(len(self))[index]
        start = self.ends[index - 1] if index else 0
        return os.path.join(self.root, os.fsdecode(self.names[start : self.ends[index]].tobytes()))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def source_of_files(
    root: Path,
    files: Iterable[tuple[str, int | None]],
    class_names: Sequence[str],
    passed_over: Sequence[str] = (),
    notes: Sequence[str] = (),
    unlabelled: str = "",
) -> Source:
    """Return the files, given as (path below ``root``, label), in an order that is as good as random.

    The order is that of a hash of the path. So a slice is a fair part of all classes, and does
    not change but for the files that come or go.
    """

    def key(file: tuple[str, int | None]) -> tuple[bytes, bytes]:
        path = os.fsencode(file[0])
        return hashlib.blake2b(path, digest_size=8).digest(), path

    examples = Files.of(str(root), sorted(files, key=key))
    return Source(examples, tuple(class_names), examples.where, tuple(passed_over), tuple(notes), unlabelled)


def read_classes(folder: Path) -> tuple[str, ...] | None:
    """Return the lines of the folder's ``classes.txt``, the class of each label; None if it has none.

    Raises:
        UserError: a line is empty, or there twice but for what nobody sees; the file is empty or not UTF-8.
    """
    path = folder / "classes.txt"
    if not os.path.lexists(path):
        return None
    text = read_text(path).replace("\r\n", "\n").removesuffix("\n")
    if not text:
        raise UserError(f"{path} is empty; give it one class a line, or remove it.")
    lines = [line.strip(" \t") for line in text.split("\n")]  # no more: a name may hold any other character
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line or line in seen:
            raise UserError(
                f"{path}, line {number}: {line!r} is {'there twice' if line else 'empty'}; remove the line."
            )
        seen.add(line)
    classes.check_distinct(lines, str(path))
    return tuple(lines)
