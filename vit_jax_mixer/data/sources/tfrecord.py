"""Random access to TFRecord files, without TensorFlow.

A record is its length (8 bytes, little-endian), a checksum of the length (4), the data, and a
checksum of the data (4): masked CRC-32C, all of which are compared. Where each record begins is
found once, by reading the lengths, and kept in a small file beside the shards or, where nothing
can be written there, in the user's cache.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import google_crc32c
import numpy as np

from vit_jax_mixer import files, startup
from vit_jax_mixer.errors import UserError

_HEAD, _TAIL = 12, 4
_LARGEST = 1 << 28  # bytes of a record; a larger one is no image
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
                record = os.pread(file.fileno(), length, offset)
        except OSError as error:
            raise UserError(f"cannot read {shard} ({error.strerror}); restore it.") from error
        if len(record) != length or _length(record) != length - _HEAD - _TAIL:
            raise UserError(f"{shard} has no record of {length} bytes at byte {offset} any more; start again.")
        data = record[_HEAD:-_TAIL]
        if record[-_TAIL:] != checksum(data):
            raise UserError(
                f"{shard}: the record at byte {offset} is not what was written; copy or prepare the dataset again."
            )
        return data

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
    for shard, size, count in zip(shards, stamps[:, 0].tolist(), counts, strict=True):
        if not 0 <= count <= size // (_HEAD + _TAIL):
            raise UserError(
                f"{shard} has {size} bytes, which hold no {count} records, as dataset_info.json says; "
                "copy or prepare the dataset again."
            )
    ends = np.cumsum(counts, dtype=np.int64)  # in records
    caches = _caches(shards, split)
    for cache in caches:
        starts = _load(cache, stamps, int(ends[-1]) + 1)
        if starts is not None and np.array_equal(starts[ends], shard_ends):
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
                if len(head) == _HEAD and head[8:] != checksum(head[:8]):
                    raise UserError(
                        f"{shard} is damaged: the length of record {len(lengths)} of {count}, at byte {position}, "
                        f"is not what was written; {remedy}."
                    )
                if step > _LARGEST and position + step <= size:
                    raise UserError(
                        f"{shard}: record {len(lengths)}, at byte {position}, has {step:,} bytes, and the most that is "
                        f"read is {_LARGEST:,}; {remedy}."
                    )
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
    key = hashlib.blake2b(os.fsencode(folder), digest_size=12).hexdigest()
    return [folder / f"{split}.tfrecord_index", startup.cache_folder() / f"{key}-{split}.tfrecord_index"]


def _load(cache: Path, stamps: np.ndarray, count: int) -> np.ndarray | None:
    """Return the ``count`` numbers that the file keeps, unless it is missing, damaged, or of other shards."""
    size = 4 + 8 * (stamps.size + count)
    try:
        kept = files.read_bytes(cache, size)
    except UserError:
        return None
    if len(kept) != size or kept[:4] != zlib.crc32(kept[4:]).to_bytes(4, "little"):
        return None
    numbers = np.frombuffer(kept, "<i8", offset=4).astype(np.int64)
    starts = numbers[stamps.size :]
    good = np.array_equal(numbers[: stamps.size], stamps.ravel()) and not starts[0]
    return starts if good and np.all(np.diff(starts) >= _HEAD + _TAIL) else None


def _store(caches: Sequence[Path], starts: np.ndarray, stamps: np.ndarray) -> None:
    """Write the first of the files that can be; where none can, the next run scans again."""
    numbers = np.concatenate([stamps.ravel(), starts]).astype("<i8").tobytes()
    for cache in caches:
        with contextlib.suppress(OSError):
            cache.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomically(cache, zlib.crc32(numbers).to_bytes(4, "little") + numbers)
            return


def checksum(data: bytes) -> bytes:
    """Return the masked CRC-32C of the format, 4 bytes."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
