"""IDX files, MNIST's format."""

import contextlib
import dataclasses
import functools
import gzip
import io
import math
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from vit_jax_mixer.data.sources.base import Source, Splits, sample
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.files import most_unpacked, open_regular

_CHUNK = 1 << 20
_MAX_RANK = 8
_MOST = 4 << 30  # bytes of values, which are kept in memory


@dataclasses.dataclass(frozen=True)
class _Arrays:
    """Images u8[M, H, W, 1] with their labels, as read from two files."""

    images_file: Path
    labels_file: Path

    @functools.cached_property
    def images(self) -> np.ndarray:
        images = read_idx(self.images_file)
        if images.ndim != 3:
            raise UserError(f"{self.images_file} has the shape {images.shape}; images have three sizes. Fetch it anew.")
        if 0 in images.shape[1:]:
            raise UserError(f"{self.images_file} has the shape {images.shape}: images without a pixel. Fetch it anew.")
        return images[..., None]

    @functools.cached_property
    def labels(self) -> np.ndarray:
        return _read_labels(self.labels_file)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.images_file, self.labels_file)  # a copy reads the files itself

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": int(self.labels[index])}

    def traits(self) -> Iterator[bytes]:
        """Yield all labels and a few examples."""
        yield self.labels.tobytes()
        yield from sample(self)

    def where(self, index: int) -> str:
        """Say where an example comes from."""
        return f"{self.images_file}, image {index}"


def open_idx(place: str) -> Splits:
    """Return the splits of the folder with MNIST's four files: train and test."""
    root = Path(os.path.expanduser(place))
    return {"train": functools.partial(_open, root, "train"), "test": functools.partial(_open, root, "t10k")}


def _open(root: Path, prefix: str) -> Source:
    examples = _Arrays(_find(root, f"{prefix}-images", 3), _find(root, f"{prefix}-labels", 1))
    images, labels = examples.images, examples.labels
    if len(images) != len(labels):
        raise UserError(
            f"{examples.images_file} holds {len(images)} images, but {examples.labels_file} {len(labels)} labels; "
            "fetch both anew."
        )
    train_labels = labels if prefix == "train" else _read_labels(_find(root, "train-labels", 1))
    class_names = tuple(str(k) for k in range(int(train_labels.max(initial=0)) + 1))
    if labels.max(initial=0) >= len(class_names):
        raise UserError(
            f"{examples.labels_file} holds the label {labels.max()}; the largest of training is {class_names[-1]}. "
            "Fetch both anew."
        )
    return Source(examples, class_names, examples.where)


def _read_labels(path: Path) -> np.ndarray:
    labels = read_idx(path)
    if labels.ndim != 1:
        raise UserError(f"{path} has the shape {labels.shape}; labels have one size. Fetch it anew.")
    return labels


def _find(root: Path, stem: str, rank: int) -> Path:
    """Return the one of the names in use that exists, as in train-images-idx3-ubyte.gz."""
    names = [f"{stem}{mark}idx{rank}-ubyte{suffix}" for mark in "-." for suffix in ("", ".gz")]
    for name in names:
        if (root / name).is_file():
            return root / name
    raise UserError(f"{root} holds no {names[0]}, gzipped or not; give the folder with MNIST's four files.")


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of bytes: two zeros, type 8, rank, big-endian sizes, then the values.

    Reads no more than the header promises, and takes no memory for what is not there.

    Raises:
        UserError: the file is not of that form, or is cut short.
    """
    try:
        with open_regular(path) as stored, _unpacking(path, stored) as file:
            head = file.read(4)
            rank = head[3] if len(head) == 4 and head[:3] == b"\0\0\x08" else 0
            sizes = file.read(4 * rank)
            if not 0 < rank <= _MAX_RANK or len(sizes) < 4 * rank:
                raise UserError(f"{path} is not an IDX file of bytes (it starts with {head.hex()}); fetch it anew.")
            shape = struct.unpack(f">{rank}I", sizes)
            promised = math.prod(shape)
            size = os.fstat(stored.fileno()).st_size
            packed = path.suffix == ".gz"
            most = min(_MOST, most_unpacked(size)) if packed else _MOST
            if min(promised, promised if packed else size) > most:
                raise UserError(
                    f"{path}, of {size:,} bytes, promises {promised:,} values {shape}; of such a file no more than "
                    f"{most:,} are read. Fetch it anew."
                )
            values = bytearray()  # read(n) would take n bytes before it looks at the file
            while block := file.read(min(_CHUNK, promised + 1 - len(values))):
                values += block
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path} ({error}); fetch it anew.") from error
    if len(values) != promised:
        found = f"more than {promised}" if len(values) > promised else len(values)
        raise UserError(f"{path} holds {found} values, its header promises {shape}; fetch it anew.")
    return np.frombuffer(values, np.uint8).reshape(shape)


@contextlib.contextmanager
def _unpacking(path: Path, stored: BinaryIO) -> Iterator[BinaryIO]:
    """Give the file itself or, by its name, what is gzipped in it."""
    if path.suffix != ".gz":
        yield io.BufferedReader(stored)  # pyright: ignore[reportArgumentType] # it is a FileIO
        return
    with gzip.open(stored, "rb") as file:
        yield cast(BinaryIO, file)
