"""Tables of files, CSV and Parquet, as they lie on people's disks.

Cells of CSV files stay text until somebody says what a column is (`encoding`), so that it is the same in all files.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vit_jax_mixer import files
from vit_jax_mixer.data.sources.parquet import check_parquet
from vit_jax_mixer.data.tables import csv_files
from vit_jax_mixer.data.tables.csv_files import MOST_COLUMNS, check_names, no_row, number
from vit_jax_mixer.errors import UserError

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
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

    @functools.cached_property
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
                of_word = np.asarray([number(word) for word in words] + [np.nan])
                values = of_word[codes]
                odd = np.flatnonzero((codes >= 0) & ~np.isfinite(values))
        values[~np.isfinite(values)] = np.nan
        return np.clip(values, -1e150, 1e150), odd  # so that their squares are finite

    def count_words(self, column: str, rows: np.ndarray) -> int:
        """Return how many of the rows have words that are no numbers, not even an infinite one."""
        codes, words = self.words(column)
        infinite = np.asarray([np.isinf(number(word)) for word in words] + [False])
        return int(np.count_nonzero(~infinite[codes[rows]]))

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
        delimiter: between the cells of a line; '' for that of `csv_files.DELIMITERS` which the first line has most of.

    Raises:
        UserError: there is none, or it is no table; with the line or row where that can be told.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} is no table that is read; give a file that ends in {', '.join(SUFFIXES)}.")
    data, lines = _read_parquet(path) if path.suffix.lower() == ".parquet" else csv_files.read(path, delimiter)
    data, notes = _plain(data, str(path))
    if not data.num_rows:
        raise UserError(no_row(path))
    return Table(data, lines, str(path), notes)


def _read_parquet(path: Path) -> tuple[pa.Table, np.ndarray]:
    check_parquet([path])
    try:
        with files.open_regular(path) as file:
            found = pq.read_table(file)
            return found, np.arange(found.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet ({str(error).splitlines()[0][:200]}).") from error


def _plain(data: pa.Table, where: str) -> tuple[pa.Table, tuple[str, ...]]:
    """Return columns of text and numbers alone, and a note on those that are neither."""
    if len(data.column_names) > MOST_COLUMNS or len(set(data.column_names)) < len(data.column_names):
        check_names(Path(where), data.column_names)
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
    value = number(text)
    if np.isfinite(value) and value.is_integer() and abs(value) < 2**53 and not text.lstrip("+-").isdigit():
        return str(int(value))
    return text
