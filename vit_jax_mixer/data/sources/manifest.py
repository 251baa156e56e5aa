"""A table of image files and their labels, in a file."""

import csv
import functools
import importlib
import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vit_jax_mixer.data.sources.base import Source, Splits
from vit_jax_mixer.data.sources.files import read_classes, read_text, source_of_files
from vit_jax_mixer.errors import UserError, suggest

_COLUMNS = ("path", "label", "split")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_INTEGER = re.compile(r"[+-]?\d+")

Row = tuple[str, str, str]  # path, label, split


def open_manifest(place: str) -> Splits:
    """Return the splits of a CSV, TSV or Parquet file with the columns path, label and perhaps split."""
    path = Path(place).expanduser()
    suffix = path.suffix.lower()
    if suffix in _DELIMITERS:
        rows = list(_rows_of_text(path, _DELIMITERS[suffix]))
    elif suffix == ".parquet":
        rows = list(_rows_of_parquet(path))
    else:
        raise UserError(f"{path} is not a manifest; give a file that ends in .csv, .tsv or .parquet.")
    if not rows:
        raise UserError(f"{path} has no row; list the images, a path and a label each.")
    numbers = all(_INTEGER.fullmatch(label) for _, label, _ in rows)
    names = [str(int(label)) if numbers else label for _, label, _ in rows]
    class_names = read_classes(path.parent) or sorted(set(names), key=int if numbers else None)
    labels = {name: label for label, name in enumerate(class_names)}
    files: dict[str, list[tuple[str, int]]] = {}
    for (file, _, split), name in zip(rows, names, strict=True):
        if name not in labels:
            classes = path.parent / "classes.txt"
            raise UserError(f"{path} gives {file} the label {name!r}, which {classes} lacks{suggest(name, labels)}")
        files.setdefault(split, []).append((file, labels[name]))
    return {s: functools.partial(_open, path.parent, files[s], tuple(class_names)) for s in files}


def _open(folder: Path, files: Sequence[tuple[str, int]], class_names: Sequence[str]) -> Source:
    return source_of_files(folder, files, class_names)


def _rows_of_text(path: Path, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        places = _places(path, header)
        for cells in reader:
            if not cells:  # an empty line
                continue
            where = f"{path}, line {reader.line_num}"
            if len(cells) != len(header):
                raise UserError(f"{where}, has {len(cells)} cells, the header {len(header)}; mend the line.")
            yield _row(where, {column: cells[i] for column, i in places.items()})
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}, is not well formed ({error}); mend the line.") from error


def _rows_of_parquet(path: Path) -> Iterator[Row]:
    try:
        pa = importlib.import_module("pyarrow")
        pq = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise UserError(f"{path} needs pyarrow to be read: pip install -e '.[hf]'.") from error
    try:
        places = _places(path, pq.read_schema(path).names)
        table = pq.read_table(path, columns=list(places))
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}); give a file that can be read.") from error
    except pa.ArrowException as error:
        reason = textwrap.shorten(str(error), 250)
        raise UserError(f"{path} is not a whole Parquet file ({reason}); write it anew.") from error
    for column in places:
        kind = table.schema.field(column).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if not text and not (column == "label" and pa.types.is_integer(kind)):
            raise UserError(f"{path}: the column {column} is of type {kind}; make it strings, or labels integers.")
    for number, cells in enumerate(zip(*(table[column].to_pylist() for column in places), strict=True)):
        given = {c: "" if cell is None else str(cell) for c, cell in zip(places, cells, strict=True)}
        yield _row(f"{path}, row {number}", given)


def _places(path: Path, header: Sequence[str]) -> dict[str, int]:
    """Return where the columns are that a manifest has."""
    for column in _COLUMNS:
        if header.count(column) != 1 and (column != "split" or column in header):
            found = "twice" if column in header else "not"
            raise UserError(f"{path} has the column {column} {found}; its header is {', '.join(header) or 'empty'}.")
    return {column: header.index(column) for column in _COLUMNS if column in header}


def _row(where: str, cells: dict[str, Any]) -> Row:
    for column, cell in cells.items():
        if not cell or "\0" in cell:
            raise UserError(f"{where}, has {cell!r} for its {column}; fill the cell or remove the line.")
    return cells["path"], cells["label"], cells.get("split", "all")
