"""A table of image files and, where there are any, their labels, in a file."""

import csv
import functools
import importlib
import io
import itertools
import os
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vit_jax_mixer import classes
from vit_jax_mixer.data.sources.base import Source, Splits
from vit_jax_mixer.data.sources.files import read_classes, source_of_files
from vit_jax_mixer.data.sources.layout import packed, unpacked_name
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.files import open_regular

_COLUMNS = ("path", "label", "split")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LINE = 1 << 20  # characters of a line, at most
# Bytes that Parquet may unpack to, at most, whatever it packs them in, and for each of its own.
_ROOM, _ROOM_EACH = 64 << 20, 64

_EXACT = 2**53  # below it a float that is whole is that very number

Row = tuple[str, str, str, str]  # path, label, split, and why it has no label


def open_manifest(place: str) -> Splits:
    """Return the splits of a CSV, TSV or Parquet file with the columns path and perhaps label and split.

    A split in which a row has no label is one without labels.
    """
    path = Path(os.path.expanduser(place))
    suffix = path.suffix.lower()
    if suffix in _DELIMITERS:
        rows = list(_rows_of_text(path, _DELIMITERS[suffix]))
    elif suffix == ".parquet":
        rows = list(_rows_of_parquet(path))
    elif unpacked_name(path.name):
        raise packed(str(path))
    else:
        raise UserError(f"{path} is not a manifest; give a file that ends in .csv, .tsv or .parquet.")
    if not rows:
        raise UserError(f"{path} has no row; list the images, a path and a label each.")
    # The same classes, with the same numbers, in all splits; if all are whole numbers, by their values.
    found = sorted({label for _, label, _, lack in rows if not lack})
    values = [classes.number(label) for label in found]
    named = dict(zip(found, found if None in values else map(str, values), strict=True))
    names = sorted(set(named.values()), key=str if None in values else int)
    class_names = (read_classes(path.parent) if names else None) or tuple(names)
    places = classes.match(names, class_names, str(path), f"{path.parent / 'classes.txt'}'s")
    labels = dict(zip(names, places.tolist(), strict=True))
    files: dict[str, list[tuple[str, int | None]]] = {}
    lacks: dict[str, str] = {}
    for file, label, split, lack in rows:
        files.setdefault(split, []).append((file, None if lack else labels[named[label]]))
        if lack:
            lacks.setdefault(split, lack)
    return {s: functools.partial(_open, path.parent, files[s], class_names, lacks.get(s, "")) for s in files}


def _open(folder: Path, files: Sequence[tuple[str, int | None]], class_names: Sequence[str], lack: str) -> Source:
    if lack:
        return source_of_files(folder, [(file, None) for file, _ in files], (), unlabelled=lack)
    return source_of_files(folder, files, class_names)


def _rows_of_text(path: Path, delimiter: str) -> Iterator[Row]:
    with io.TextIOWrapper(io.BufferedReader(open_regular(path)), "utf-8-sig", newline="") as text:  # pyright: ignore[reportArgumentType] # FileIO is a RawIOBase
        reader = csv.reader(_lines(path, text), delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            places, lack = _places(path, header)
            for cells in reader:
                if not cells:  # an empty line
                    continue
                where = f"{path}, line {reader.line_num}"
                if len(cells) != len(header):
                    raise UserError(f"{where}, has {len(cells)} cells, the header {len(header)}; mend the line.")
                yield _row(where, {column: cells[i] for column, i in places.items()}, lack)
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}, is not well formed ({error}); mend the line.") from error
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} is not text in UTF-8 (line {reader.line_num + 1} or later); save it as UTF-8."
            ) from error
        except OSError as error:
            raise UserError(f"cannot read {path} ({error.strerror}); restore it.") from error


def _lines(path: Path, text: io.TextIOWrapper) -> Iterator[str]:
    """Yield the lines of a file, as an iteration over it does, but of no more than a megabyte each."""
    for number in itertools.count(1):
        line = text.readline(_LINE)
        if not line:
            return
        if len(line) == _LINE and not line.endswith(("\n", "\r")):
            raise UserError(f"{path}, line {number}, has more than {_LINE:,} characters; it is no list of images.")
        yield line


def _rows_of_parquet(path: Path) -> Iterator[Row]:
    try:
        pa = importlib.import_module("pyarrow")
        pq = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise UserError(f"{path} needs pyarrow to be read: pip install -e '.[hf]'.") from error
    try:
        with open_regular(path) as file:
            schema = pq.read_schema(file)
            places, lack = _places(path, schema.names)
            texts = [column for column in places if _is_text(path, column, schema.field(column).type, pa.types)]
            # What is there often is kept once, as in the file.
            table = pq.ParquetFile(file, read_dictionary=texts)
            size = os.fstat(file.fileno()).st_size
            room = _ROOM + _ROOM_EACH * size - _unpacked(table.metadata, places)
            number = itertools.count()
            for batch in table.iter_batches(10_000, columns=list(places)) if room >= 0 else ():
                for cells in zip(*(_cells(path, batch.column(column)) for column in places), strict=True):
                    room -= sum(map(len, cells))
                    yield _row(f"{path}, row {next(number)}", dict(zip(places, cells, strict=True)), lack)
                if room < 0:
                    break
            if room < 0:
                raise UserError(f"{path} has {size:,} bytes and unpacks to far more than a list of images does.")
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}); give a file that can be read.") from error
    except pa.ArrowException as error:
        reason = textwrap.shorten(str(error), 250)
        raise UserError(f"{path} is not a whole Parquet file ({reason}); write it anew.") from error


def _unpacked(metadata: Any, columns: Iterable[str]) -> int:
    """Return how many bytes some columns have, not packed."""
    chunks = [
        metadata.row_group(i).column(j) for i in range(metadata.num_row_groups) for j in range(metadata.num_columns)
    ]
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in columns)


def _cells(path: Path, column: Any) -> list[str]:
    """Return a column's values as strings; '' for none."""

    def cell(value: Any) -> str:
        if value is None or value != value:  # NaN
            return ""
        if isinstance(value, float) and not (value.is_integer() and abs(value) < _EXACT):
            raise UserError(f"{path} has the label {value}, no whole number; make labels integers or strings.")
        return str(int(value) if isinstance(value, float) else value)

    if hasattr(column, "dictionary"):
        words = [cell(word) for word in column.dictionary.to_pylist()]
        return ["" if i is None else words[i] for i in column.indices.to_pylist()]
    return [cell(value) for value in column.to_pylist()]


def _is_text(path: Path, column: str, kind: Any, types: Any) -> bool:
    """Say whether a column holds strings; it may else hold labels as numbers."""
    kind = kind.value_type if types.is_dictionary(kind) else kind
    text = types.is_string(kind) or types.is_large_string(kind)
    if not text and not (column == "label" and (types.is_integer(kind) or types.is_floating(kind))):
        raise UserError(f"{path}: the column {column} is of type {kind}; make it strings, or labels integers.")
    return text


def _places(path: Path, header: Sequence[str]) -> tuple[dict[str, int], str]:
    """Return where the columns are that a manifest has, and what is to be said where none has the labels."""

    def told(column: str) -> str:
        found = "twice" if column in header else "not"
        return f"{path} has the column {column} {found}; its header is {', '.join(header) or 'empty'}."

    for column in _COLUMNS:
        if header.count(column) > 1 or (column == "path" and column not in header):
            raise UserError(told(column))
    return {column: header.index(column) for column in _COLUMNS if column in header}, (
        "" if "label" in header else told("label")
    )


def _row(where: str, cells: dict[str, Any], lack: str) -> Row:
    for column, cell in cells.items():
        if not cell or "\0" in cell:
            told = f"{where}, has {cell!r} for its {column}; fill the cell or remove the line."
            if cell or column != "label":
                raise UserError(told)
            lack = told
    return cells["path"], cells.get("label", ""), cells.get("split", "all").strip() or "all", lack
