"""Tables of files, CSV and Parquet, as they lie on people's disks.

Cells of CSV files stay text until somebody says what a column is (`encoding`), so that it is the same in all files.
"""

import contextlib
import csv
import dataclasses
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from vit_jax_mixer import files
from vit_jax_mixer.data.sources.parquet import check_parquet
from vit_jax_mixer.errors import UserError

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
DELIMITERS = ",;\t|"
MOST_COLUMNS = 16_384
_MOST_BYTES = 4 << 30  # of a CSV file
MISSING = frozenset(("", "na", "n/a", "nan", "null", "none", "?"))  # words for no value, in lower case


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Some rows of a file; worker processes get a copy.

    Attributes:
        data: the columns, of text or numbers.
        lines: i64[N], the line of each row in a CSV file, counted from 1, or its row in a Parquet file, from 0.
        path: the file.
        notes: sentences that whoever uses the rows should read.
    """

    data: pa.Table
    lines: np.ndarray
    path: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.data.num_rows

    @property
    def names(self) -> list[str]:
        """The columns."""
        return self.data.column_names

    def take(self, rows: np.ndarray) -> "Table":
        """Return some of the rows, by their place."""
        return dataclasses.replace(self, data=self.data.take(pa.array(rows)), lines=self.lines[rows])

    def without(self, columns: Sequence[str]) -> "Table":
        """Return it without columns."""
        return dataclasses.replace(self, data=self.data.drop_columns([c for c in columns if c in self.names]))

    def where(self, row: int) -> str:
        """Say where a row comes from."""
        return f"{self.path}, {'row' if self.path.endswith('.parquet') else 'line'} {self.lines[row]}"

    # --- Cells ---

    def words(self, column: str) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return i32[N], the place of each row's word, or -1 for none; and the words, in the order of their rows.

        Whole numbers are the same word however they are written: 1, 1.0 and ' 1'.
        """
        encoded = self.data[column].combine_chunks().dictionary_encode()
        encoded = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
        places: dict[str, int] = {}
        of_word = []
        for value in encoded.dictionary.to_pylist():
            word = _word(value)
            of_word.append(-1 if word.lower() in MISSING else places.setdefault(word, len(places)))
        codes = encoded.indices.fill_null(len(of_word)).to_numpy(zero_copy_only=False)
        return np.asarray([*of_word, -1], np.int32)[codes], tuple(places)

    def numbers(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """Return f64[N], NaN where there is no finite number; and the rows that have something else instead."""
        data = self.data[column]
        if not _is_text(data.type):
            values = pc.cast(data, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
            values = np.array(values, np.float64)  # None is NaN
            odd = np.flatnonzero(np.isinf(values))
        else:
            try:
                values = np.array(pc.cast(data, pa.float64()).to_numpy(zero_copy_only=False), np.float64)
                odd = np.flatnonzero(np.isinf(values))
            except pa.ArrowInvalid:  # there is a word among them
                codes, words = self.words(column)
                of_word = np.asarray([_number(word) for word in words] + [np.nan])
                values = of_word[codes]
                odd = np.flatnonzero((codes >= 0) & ~np.isfinite(values))
        values[~np.isfinite(values)] = np.nan
        return np.clip(values, -1e150, 1e150), odd  # so that their squares are finite

    def cell(self, row: int, column: str) -> str:
        """Return what stands in a cell, for messages."""
        text = str(self.data[column][row].as_py())
        return text if len(text) <= 40 else f"{text[:30]}... ({len(text):,} characters)"


def concatenate(tables: Sequence[Table]) -> Table:
    """Return the rows of several tables of the same columns; the first one's file stands for all."""
    if len(tables) == 1:
        return tables[0]
    try:
        data = pa.concat_tables([table.data for table in tables], promote_options="permissive")
    except pa.ArrowException as error:
        raise UserError(f"{tables[0].path} and {tables[-1].path} do not go together ({error}); use one.") from error
    lines = np.concatenate([table.lines for table in tables])
    return Table(data, lines, tables[0].path, tuple(dict.fromkeys(n for table in tables for n in table.notes)))


def read(path: Path, delimiter: str = "") -> Table:
    """Read a file.

    Args:
        path: a .csv, .tsv, .txt or .parquet file.
        delimiter: between the cells of a line; '' for that of `DELIMITERS` which the first line has most of.

    Raises:
        UserError: there is none, or it is no table; with the line or row where that can be told.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} is no table that is read; give a file that ends in {', '.join(SUFFIXES)}.")
    data, lines = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path, delimiter)
    data, notes = _plain(data, str(path))
    if not data.num_rows:
        raise UserError(f"{path} has no row below its names; give a table with some.")
    return Table(data, lines, str(path), notes)


def _read_parquet(path: Path) -> tuple[pa.Table, np.ndarray]:
    check_parquet([path])
    try:
        with files.open_regular(path) as file:
            found = pq.read_table(file)
            return found, np.arange(found.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet ({str(error).splitlines()[0][:200]}).") from error


def _read_csv(path: Path, delimiter: str) -> tuple[pa.Table, np.ndarray]:
    raw = files.read_bytes(path, _MOST_BYTES)
    header = _header(path, raw)
    delimiter = delimiter or max(DELIMITERS, key=lambda one: len(_cells(header, one)))
    names = [name.strip() for name in _cells(header, delimiter)]
    names = [name or f"column_{place}" for place, name in enumerate(names, 1)]
    _check_names(path, names)
    if all(np.isfinite(_number(name)) for name in names):
        raise UserError(f"{path}, line 1, has numbers alone ({header[:60]!r}); put a line of names above it.")
    skipped = raw.index(header.encode()) + len(header.encode())
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
                raise UserError(
                    f"{path}, line {table.num_rows + 1}, column {name}: a quote is not closed before the end of the "
                    f"file (it begins {cell[:30]!r}); close it."
                )
    return table, _lines(raw, table.num_rows, delimiter)


def _header(path: Path, raw: bytes) -> str:
    """Return the first line that is not empty."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in raw[:1000]:
        raise UserError(f"{path} is not text in UTF-8, but in UTF-16 or no text; save it as CSV in UTF-8.")
    start = 3 if raw.startswith(b"\xef\xbb\xbf") else 0
    line = next((line for line in raw[start : start + (64 << 20)].splitlines() if line.strip()), b"")
    if not line:
        raise UserError(f"{path} is empty; give a table with a line of names.")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line 1, is not text in UTF-8 (byte {error.start}); save it as UTF-8.") from error


def _check_names(path: Path, names: Sequence[str]) -> None:
    if len(names) > MOST_COLUMNS:
        raise UserError(
            f"{path} has {len(names):,} columns, more than the {MOST_COLUMNS:,} that are read; choose some."
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
        for number, cells in _rows(raw, delimiter):
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


def _plain(data: pa.Table, where: str) -> tuple[pa.Table, tuple[str, ...]]:
    """Return columns of text and numbers alone, and a note on those that are neither."""
    if len(data.column_names) > MOST_COLUMNS or len(set(data.column_names)) < len(data.column_names):
        _check_names(Path(where), data.column_names)
    kept, left = {}, []
    for name in data.column_names:
        column, kind = data[name], data[name].type
        if pa.types.is_dictionary(kind):
            column, kind = pc.cast(column, kind.value_type), kind.value_type
        if _is_text(kind):
            kept[name] = pc.call_function("utf8_trim_whitespace", [pc.cast(column, pa.string())])
        elif pa.types.is_boolean(kind) or pa.types.is_temporal(kind):
            kept[name] = pc.cast(column, pa.string())
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
            kept[name] = column
        elif pa.types.is_decimal(kind):
            kept[name] = pc.cast(column, pa.float64())
        elif pa.types.is_null(kind):
            kept[name] = pc.cast(column, pa.string())
        else:
            left.append(f"{name} ({str(kind)[:40]})")
    note = (f"{where}: left out, since they are neither numbers nor text: {', '.join(left)}",) if left else ()
    return pa.table(kept), note


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _word(value: object) -> str:
    """Return the text of a value; of a whole number without what follows its point."""
    if value is None:
        return ""
    text = str(value).strip()
    number = _number(text)
    if np.isfinite(number) and number.is_integer() and abs(number) < 2**53 and not text.lstrip("+-").isdigit():
        return str(int(number))
    return text


def _number(text: str) -> float:
    """Return the number that a text is, or NaN."""
    try:
        return float(text) if "_" not in text else np.nan
    except ValueError:
        return np.nan
