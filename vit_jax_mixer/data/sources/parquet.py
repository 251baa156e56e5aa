"""Parquet files, looked at before they are unpacked."""

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vit_jax_mixer import files
from vit_jax_mixer.errors import UserError

_FREE, _TIMES = 64 << 20, 100  # bytes that a file may unpack to: these, and so many for each of its own
_SMALL = 1 << 30  # bytes; more than this is read by whoever has it, and takes its time


def check_parquet(paths: Sequence[Path]) -> None:
    """Raise a `UserError` if files unpack to far more than they hold, or are damaged.

    A column may be a word and how often it is repeated, and so gigabytes in a few bytes. Where that could be,
    it is unpacked in small pieces, which are counted.
    """
    sizes = []
    for path in paths:
        with files.open_regular(path) as file:
            sizes.append(os.fstat(file.fileno()).st_size)
    if sum(sizes) > _SMALL:
        return
    for path, size in zip(paths, sizes, strict=True):
        try:
            with pq.ParquetFile(path, memory_map=True) as file:
                unpacked = _unpacked(file, _FREE + _TIMES * size)
        except (pa.ArrowException, OSError, MemoryError) as error:
            raise UserError(f"{path} cannot be read as Parquet ({str(error).splitlines()[0][:200]}).") from error
        if unpacked > _FREE + _TIMES * size:
            raise UserError(f"{path} has {size:,} bytes and unpacks to over {unpacked:,}; remove what repeats in it.")


def _unpacked(file: pq.ParquetFile, most: int) -> int:
    """Return how many bytes a file unpacks to; of more than ``most``, only that it is more."""
    total = 0
    for group in range(file.metadata.num_row_groups):
        part = file.metadata.row_group(group)
        total += max(part.total_byte_size, 8 * part.num_rows)
        if total > most:
            return total
        for column in range(part.num_columns):
            chunk = part.column(column)
            if not chunk.has_dictionary_page:
                continue
            largest = max(chunk.total_uncompressed_size, 1)  # that one value may have
            if chunk.num_values * largest <= most - total:
                continue
            rows = max(1, min(1024, most // largest))
            name = chunk.path_in_schema.partition(".")[0]
            for batch in file.iter_batches(rows, row_groups=[group], columns=[name], use_threads=False):
                total += batch.nbytes
                if total > most:
                    return total
    return total
