"""Random access to TFRecord files, without TensorFlow.

A record is its length (8 bytes, little-endian), a checksum of the length (4), the data, and a
checksum of the data (4). Where each record begins is found once, by reading the lengths, and
kept in a small file beside the shards or, where nothing can be written there, in the user's
cache.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import os
import struct
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vit_jax_mixer.errors import UserError

_HEAD, _TAIL = 12, 4
_THREADS = 16  # the scan waits for the disk


@dataclasses.dataclass(frozen=True)
class TFRecords:
    """The records of a split; its shards are thought of as one long file.

    Attributes:
        shards: the path of each.
        shard_ends: int64[S], where each shard ends in the long file.
        starts: int64[N + 1], where each record begins, and at last the end.
    """

    shards: tuple[str, ...]
    shard_ends: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> bytes:
        """Return the data of a record; any number of threads and processes may."""
        index = range(len(self))[index]
        start, length = int(self.starts[index]), int(self.starts[index + 1] - self.starts[index])
        shard, offset = self._locate(start)
        try:
            # Opening costs microseconds, and leaves no handle to keep, count, close or share.
            with open(shard, "rb", buffering=0) as file:
                record = os.pread(file.fileno(), length - _TAIL, offset)
        except OSError as error:
            raise UserError(f"cannot read {shard} ({error.strerror}); restore it.") from error
        if len(record) != length - _TAIL or _length(record) != length - _HEAD - _TAIL:
            raise UserError(f"{shard} has no record of {length} bytes at byte {offset} any more; start again.")
        return record[_HEAD:]

    def where(self, index: int) -> str:
        """Say where a record is."""
        shard, offset = self._locate(int(self.starts[range(len(self))[index]]))
        return f"{shard}, byte {offset}"

    def _locate(self, position: int) -> tuple[str, int]:
        shard = int(np.searchsorted(self.shard_ends, position, side="right"))
        return self.shards[shard], position - (int(self.shard_ends[shard - 1]) if shard else 0)


def open_tfrecords(shards: Sequence[str], counts: Sequence[int], split: str) -> TFRecords:
    """Open the shards of a split, and find their records unless that was done before.

    Args:
        shards: the path of each, in order.
        counts: how many records each must hold.
        split: names the file that keeps what was found.

    Raises:
        UserError: a shard is missing, cut short, damaged, or holds another number of records.
    """
    if not shards:
        return TFRecords((), np.zeros(0, np.int64), np.zeros(1, np.int64))
    # i64[S, 2]: what tells a shard from another of the same name
    stamps = np.array([_stamp(shard) for shard in shards], np.int64).reshape(-1, 2)
    shard_ends = np.cumsum(stamps[:, 0])
    ends = np.cumsum(counts, dtype=np.int64)  # in records
    caches = _caches(shards, split)
    for cache in caches:
        starts = _load(cache, stamps)
        if starts is not None and len(starts) == ends[-1] + 1 and np.array_equal(starts[ends], shard_ends):
            return TFRecords(tuple(shards), shard_ends, starts)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(_scan, shards, stamps[:, 0].tolist(), counts))
    starts = np.concatenate([[0], *found], dtype=np.int64).cumsum()
    _store(caches, starts, stamps)
    return TFRecords(tuple(shards), shard_ends, starts)


def _stamp(shard: str) -> tuple[int, int]:
    try:
        status = os.stat(shard)
    except OSError as error:
        raise UserError(f"cannot read {shard} ({error.strerror}); restore it, or prepare the dataset again.") from error
    return status.st_size, status.st_mtime_ns


def _scan(shard: str, size: int, count: int) -> np.ndarray:
    """Return how many bytes each record of a shard takes, its frame included."""
    lengths: list[int] = []
    position = 0
    remedy = "copy or prepare the dataset again"
    try:
        with open(shard, "rb", buffering=0) as file:
            while position < size:
                head = os.pread(file.fileno(), _HEAD, position)
                step = _HEAD + _length(head) + _TAIL if len(head) == _HEAD else size + 1
                if position + step > size:
                    raise UserError(
                        f"{shard} is damaged or cut short: its {size} bytes end within record {len(lengths)}, "
                        f"which begins at byte {position}, of {count}; {remedy}."
                    )
                lengths.append(step)
                position += step
    except OSError as error:
        raise UserError(f"cannot read {shard} ({error.strerror}); {remedy}.") from error
    if len(lengths) != count:
        raise UserError(f"{shard} holds {len(lengths)} records, dataset_info.json says {count}; {remedy}.")
    return np.array(lengths, np.int64)


def _length(head: bytes) -> int:
    return struct.unpack_from("<Q", head)[0]


def _caches(shards: Sequence[str], split: str) -> list[Path]:
    """Return the files that may keep the positions, the preferred one first."""
    folder = Path(shards[0]).absolute().parent
    user = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    key = hashlib.blake2b(os.fsencode(folder), digest_size=12).hexdigest()
    return [folder / f"{split}.tfrecord_index.npz", user / "vit_jax_mixer" / f"{key}-{split}.tfrecord_index.npz"]


def _load(cache: Path, stamps: np.ndarray) -> np.ndarray | None:
    """Return what the file keeps, unless it is missing, damaged, or of other shards."""
    try:
        with cache.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            starts, old = kept["starts"], kept["stamps"]
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
    good = starts.dtype == np.int64 and starts.ndim == 1 and bool(np.all(np.diff(starts) >= _HEAD + _TAIL))
    return starts if good and np.array_equal(old, stamps) else None


def _store(caches: Sequence[Path], starts: np.ndarray, stamps: np.ndarray) -> None:
    """Write the first of the files that can be; where none can, the next run scans again."""
    for cache in caches:
        with contextlib.suppress(OSError):
            cache.parent.mkdir(parents=True, exist_ok=True)
            with _replacing(cache) as path, path.open("wb") as file:
                np.savez(file, starts=starts, stamps=stamps)
            return


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a file to write, which then takes the place of ``path`` at once, or goes."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
