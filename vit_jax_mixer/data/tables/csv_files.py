"""CSV files, as they lie on people's disks: with a byte order mark, any delimiter, quotes, and faults."""

import contextlib
import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from vit_jax_mixer import files
from vit_jax_mixer.errors import UserError

DELIMITERS = ",;\t|"
MOST_COLUMNS = 16_384
_LONGEST_NAME = 1_000  # characters
_MOST_BYTES = 4 << 30  # of a file
_OPEN = "a quote is not closed before the end of the file, it begins"


def read(path: Path, delimiter: str) -> tuple[pa.Table, np.ndarray]:
    """Return all columns as text, and i64[N], the line of each row.

    Args:
        path: the file.
        delimiter: between the cells of a line; '' for that of `DELIMITERS` which the first line has most of.

    Raises:
        UserError: it is no table; with the line where that can be told.
    """
    raw = files.read_bytes(path, _MOST_BYTES)
    header = _header(path, raw)
    delimiter = delimiter or max(DELIMITERS, key=lambda one: len(_cells(header, one)))
    names = [name.strip() for name in _cells(header, delimiter)]
    names = [name or f"column_{place}" for place, name in enumerate(names, 1)]
    if all(np.isfinite(number(name)) for name in names):
        raise UserError(f"{path}, line 1, has numbers alone ({header[:60]!r}); put a line of names above it.")
    check_names(path, names)
    skipped = raw.index(header.encode()) + len(header.encode())
    if skipped == len(raw):
        raise UserError(no_row(path))
    try:
        table = pacsv.read_csv(
            pa.BufferReader(pa.py_buffer(raw).slice(skipped)),
            # One block: a line may be as long as the file, and rows are counted.
            pacsv.ReadOptions(column_names=names, block_size=len(raw) + 1, use_threads=False),
            pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            pacsv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
        )
    except pa.ArrowException as error:
        raise UserError(_csv_fault(path, raw, str(error), delimiter, names)) from error
    if raw.count(b'"') % 2 and table.num_rows:
        for name in names:
            if "\n" in (cell := table[name][-1].as_py().rstrip("\n")) or table[name][-1].as_py().endswith("\n"):
                raise UserError(f"{path}, line {table.num_rows + 1}, column {name}: {_OPEN} {cell[:30]!r}; close it.")
    return table, _lines(raw, table.num_rows, delimiter)


def _header(path: Path, raw: bytes) -> str:
    """Return the first line that is not empty."""
    zero = raw.find(b"\0", 0, 1000)
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff") or zero >= 0:
        line = raw.count(b"\n", 0, max(zero, 0)) + 1
        raise UserError(f"{path}, line {line}, is not UTF-8, but UTF-16 or no text; save it as CSV in UTF-8.")
    start = 3 if raw.startswith(b"\xef\xbb\xbf") else 0
    line = next((line for line in raw[start : start + (64 << 20)].splitlines() if line.strip()), b"")
    if not line:
        raise UserError(f"{path} is empty; give a table with a line of names.")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line 1, is not text in UTF-8 (byte {error.start}); save it as UTF-8.") from error


def check_names(path: Path, names: Sequence[str]) -> None:
    """Raise a `UserError` where there are too many, or one is too long or there twice."""
    if len(names) > MOST_COLUMNS:
        raise UserError(
            f"{path} has {len(names):,} columns, more than the {MOST_COLUMNS:,} that are read; choose some."
        )
    if (longest := max(names, key=len)) and len(longest) > _LONGEST_NAME:
        raise UserError(
            f"{path}: a column has a name of {len(longest):,} characters ({longest[:30]!r}...), more than the "
            f"{_LONGEST_NAME:,} that are read; mend the line of names."
        )
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise UserError(f"{path} has the column {twice!r} twice; rename one.")


def _csv_fault(path: Path, raw: bytes, error: str, delimiter: str, names: Sequence[str]) -> str:
    """Return a sentence on what the reader did not like, with line and column where they can be told."""
    if "UTF8" in error or "UTF-8" in error:
        try:
            raw.decode()
        except UnicodeDecodeError as fault:
            line = raw.count(b"\n", 0, fault.start) + 1
            before = raw[raw.rfind(b"\n", 0, fault.start) + 1 : fault.start].decode(errors="replace")
            place = len(_cells(before, delimiter)) - 1
            column = names[min(max(place, 0), len(names) - 1)]
            return f"{path}, line {line}, column {column}: byte {raw[fault.start]:#x} is not UTF-8; save it as UTF-8."
    if "Row #" in error and "Expected" in error:
        before = 0
        for number, cells in _rows(raw, delimiter):
            if len(cells) != len(names) and number > before + 1 and raw.count(b'"') % 2:
                column = names[min(len(cells), len(names)) - 1]
                return f"{path}, line {before + 1}, column {column}: {_OPEN} {cells[-1][:30]!r}; close it."
            before = number
            if len(cells) != len(names):
                return f"{path}, line {number}, has {len(cells)} cells, the line of names {len(names)}; mend the line."
    return f"{path} cannot be read as CSV ({error.splitlines()[0][:200]}); mend it."


def _rows(raw: bytes, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line and cells of each row, slowly."""
    reader = csv.reader(io.StringIO(raw.decode("utf-8-sig", "replace"), newline=""), delimiter=delimiter)
    with _long_cells():
        for cells in reader:
            if cells:
                yield reader.line_num, cells


def _cells(line: str, delimiter: str) -> list[str]:
    with _long_cells():
        return next(csv.reader([line], delimiter=delimiter), [])


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
    """Let the module csv read cells of any length."""
    former = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(former)


def _lines(raw: bytes, count: int, delimiter: str) -> np.ndarray:
    """Return i64[count], the line of each row: its last one, where it has several."""
    if raw.count(b"\n") + (not raw.endswith(b"\n")) == count + 1:
        return np.arange(count) + 2
    found = [line for line, _ in _rows(raw, delimiter)][1:]
    return np.asarray(found) if len(found) == count else np.arange(count) + 2


def no_row(path: Path) -> str:
    """Return a sentence on a file that ends with its names."""
    return f"{path} has no row below its names; give a table with some."


def number(text: str) -> float:
    """Return the number that a text is, or NaN."""
    try:
        return float(text) if "_" not in text else np.nan
    except ValueError:
        return np.nan
