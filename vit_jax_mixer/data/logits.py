"""A teacher's logits on disk, one row for each position in the order of training.

That order, with the draws of the augmentation, is a function of (seed, position), and so is what a teacher
says of the image that the student will see there. A folder holds ``logits.json``, which says of what the
logits are, and ``logits_0000000.bin``, ``logits_0000001.bin``, ... for so many positions each:
f32[rows, K], little-endian, and after it the CRC-32 of these bytes, 4 bytes.
"""

import dataclasses
import functools
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax_mixer import files, specs
from vit_jax_mixer.checkpoints import checksums
from vit_jax_mixer.data import record
from vit_jax_mixer.data.pipeline import Batch, Dataset
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.specs import Count

FILE = "logits.json"
FIELD = "taught"  # of a batch: f32[B, K]
_MOST = 1 << 22  # numbers of a file
_WIDTH = 4  # bytes of a number, and of a checksum

_BY_HOST = "by the host"


@dataclasses.dataclass(frozen=True)
class Of:
    """What logits are of; they fit no other.

    Attributes:
        data: the dataset, as `record.of_source` says it; its classes are those of the logits, in their order.
        order: what of the config the order and the images depend on.
        teacher: its name, for people.
        digest: of the teacher.
        rows: how many positions a file has.
    """

    data: Mapping[str, Any]
    order: Mapping[str, Any]
    teacher: str
    digest: str
    rows: Count

    @property
    def classes(self) -> int:
        """K."""
        return len(self.data["classes"])


def order_of(dataset: Dataset, seed: int, ops: str, host_ops: int) -> dict[str, Any]:
    """Return what the order of training and its images depend on; what is done on the device is no part of it."""
    made_by = [part.strip() for part in ops.split("|")[:host_ops]]
    drawn = _BY_HOST if dataset.in_step is None else "in the step"
    balance = {"balance": "classes"} if dataset.balance else {}
    return {"seed": seed, "views": dataset.views, "train_ops": "|".join(made_by), "draws": drawn, **balance}


def rows_of_a_file(classes: int) -> int:
    """Return a power of two: 4,096 positions, or fewer of so many classes that the file would be large."""
    return 1 << min(12, max(6, (_MOST // classes).bit_length() - 1))


class Logits:
    """A folder of logits. Called by the loader, it adds those of a batch; worker processes get a copy."""

    def __init__(self, folder: Path) -> None:
        """Open it.

        Raises:
            UserError: there are none, or what tells of what they are is damaged.
        """
        self.folder = folder
        path = folder / FILE
        self.of: Of = specs.call(Of, checksums.read_json(path), str(path))
        self.digest = self.of.digest

    @classmethod
    def begin(cls, folder: Path, of: Of) -> "Logits":
        """Open a folder to write logits to; a new one, or one with some of these already.

        Raises:
            UserError: it holds others.
            OSError: it cannot be written.
        """
        if (folder / FILE).exists():
            found = cls(folder)
            if _plain(found.of) != _plain(of):
                raise UserError(f"{folder} holds logits of another teacher, dataset or order; name another folder.")
            return found
        folder.mkdir(parents=True, exist_ok=True)
        checksums.write_json(folder / FILE, _plain(of))
        return cls(folder)

    def check(self, data: Mapping[str, Any], order: Mapping[str, Any], positions: int) -> None:
        """Raise a `UserError` unless these are the logits of so many positions of a dataset in an order."""
        if changed := record.changes({"training": self.of.data}, {"training": data}):
            raise UserError(f"{self.folder} holds logits of other data: {changed[0]}; {_ADVICE}")
        written = {"draws": _BY_HOST, **self.of.order}
        if other := [name for name in {**order, **written} if written.get(name) != order.get(name)]:
            was, now = written.get(other[0]), order.get(other[0])
            raise UserError(
                f"{self.folder} holds logits of another order: its {other[0]} is {was!r:.200}, that of this run "
                f"{now!r:.200}; {_ADVICE}"
            )
        there = self.of.rows * self.count()
        if there < positions:
            raise UserError(
                f"{self.folder} holds logits of {there:,} examples, and this run reads {positions:,}; write the rest, "
                "by the same command with the steps and batch size of this run."
            )

    def of_host(self) -> bool:
        """Say whether they are of images as the host draws them; all were, before they said so."""
        return self.of.order.get("draws", _BY_HOST) == _BY_HOST

    def count(self) -> int:
        """Return how many files there are without a gap."""
        there = {path.name for path in self.folder.glob("logits_*.bin")}
        return next(number for number in range(len(there) + 1) if self._path(number).name not in there)

    def whole(self) -> int:
        """Return how many files there are without a gap or damage, which reads them all."""
        for number in range(self.count()):
            try:
                _read(self._path(number), self.of.rows, self.of.classes)
            except UserError:
                return number
        return self.count()

    def write(self, number: int, logits: np.ndarray) -> None:
        """Write a file, at once or not at all; ``logits`` are f32[rows, K]."""
        data = np.ascontiguousarray(logits, "<f4").tobytes()
        files.write_atomically(self._path(number), data + zlib.crc32(data).to_bytes(_WIDTH, "little"))

    def __call__(self, positions: np.ndarray, batch: Batch) -> Batch:
        """Add `FIELD`, the logits at these positions, which follow one another."""
        first, rows = positions[0] // self.of.rows, self.of.rows
        numbers = range(first, positions[-1] // rows + 1)
        found = np.concatenate([_read(self._path(number), rows, self.of.classes) for number in numbers])
        return {**batch, FIELD: found[positions - first * rows]}

    def _path(self, number: int) -> Path:
        return self.folder / f"logits_{number:07d}.bin"


_ADVICE = "write those of this run, by python -m vit_jax_mixer.teacher, or set its config to theirs."


def _plain(of: Of) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(of)))


@functools.lru_cache(maxsize=8)  # threads are in a few files at once
def _read(path: Path, rows: int, classes: int) -> np.ndarray:
    """Return f32[rows, K]."""
    size = rows * classes * _WIDTH
    data = files.read_bytes(path, size + _WIDTH)
    if len(data) != size + _WIDTH or zlib.crc32(data[:size]) != int.from_bytes(data[size:], "little"):
        raise UserError(f"{path} is damaged; remove it, and write it again by the same command.")
    return np.frombuffer(data, "<f4", rows * classes).reshape(rows, classes)
