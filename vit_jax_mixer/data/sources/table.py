"""Rows of a table, of files or of scikit-learn."""

import dataclasses
import functools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax_mixer import specs
from vit_jax_mixer.data.sources.base import Source, Splits
from vit_jax_mixer.errors import UserError, suggest

_NAMED = re.compile(r"(?P<place>.*?)(?P<options>(?:,(?:split|delimiter)=.[^,]*)*)", re.DOTALL)
_SKLEARN = ("breast_cancer", "diabetes", "iris", "wine")


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Rows as they stand in a table, in its memory.

    Attributes:
        table: a `tables.reading.Table`, which needs pyarrow; hence no type here.
    """

    table: Any

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: self.table.cell(index, name) for name in self.table.names}

    def traits(self) -> Iterator[bytes]:
        """Yield the names of the columns and all their cells."""
        for name in self.table.names:
            yield name.encode()
            codes, words = self.table.words(name)
            yield codes.tobytes()
            yield "\0".join(words).encode("utf-8", "surrogatepass")


def table_of(source: Source, where: str) -> Any:
    """Return the table of a source's rows, also where its examples are parts of some.

    Raises:
        UserError: it has none.
    """
    table = getattr(source.examples, "table", None)
    if table is None:
        raise UserError(f"{where} has no rows of a table; name one, as table:rows.csv.")
    return table


def open_table(place: str) -> Splits:
    """Return the splits of ``FILE`` or ``FOLDER``, and perhaps ``,split=COLUMN`` and ``,delimiter=;``.

    Those of a file are 'all' or, with split=COLUMN, the words of that column; those of a folder are its files.
    """
    match = _NAMED.fullmatch(place)
    options = dict(re.findall(r",(split|delimiter)=(.[^,]*)", match["options"])) if match else {}
    path = Path(os.path.expanduser(match["place"] if match else place))
    given: str = options.get("delimiter", "")
    delimiter = "\t" if given in ("\\t", "tab") else given
    if len(delimiter) > 1 or delimiter in ('"', "\n", "\r"):
        raise UserError(f"table:{place}: the delimiter is {delimiter!r}; it must be one character, as ; or tab.")
    if path.is_dir():
        from vit_jax_mixer.data.tables.reading import SUFFIXES

        files = sorted(one for one in path.iterdir() if one.suffix.lower() in SUFFIXES and one.name[0] not in "._")
        if not files:
            raise UserError(f"the folder {path} has no table; a file of it must end in {', '.join(SUFFIXES)}.")
        if "split" in options:
            raise UserError(f"table:{place}: a folder's splits are its files; name one file for split=COLUMN.")
        twice = [one.stem for place, one in enumerate(files) if one.stem in [two.stem for two in files[:place]]]
        if twice:
            raise UserError(f"the folder {path} has two tables named {twice[0]!r}; remove one.")
        return {one.stem: functools.partial(_open, one, delimiter) for one in files}
    if "split" not in options:
        return {"all": functools.partial(_open, path, delimiter)}
    table, column = _read(path, delimiter), options["split"]
    if column not in table.names:
        raise UserError(f"{path} has no column {column!r} for its splits{suggest(column, table.names)}")
    codes, words = table.words(column)
    if len(words) > 20 or (codes < 0).any():
        lacking = f"{(codes < 0).sum():,} rows without a split" if (codes < 0).any() else f"{len(words):,} values"
        raise UserError(f"{path}: the column {column!r} has {lacking}; it must name at most 20 splits, for all rows.")
    rest = table.without([column])
    return {word: functools.partial(_source, rest.take(np.flatnonzero(codes == i))) for i, word in enumerate(words)}


def open_sklearn(place: str) -> Splits:
    """Return the split 'all' of a table that scikit-learn ships, as ``breast_cancer``; its last column is 'target'."""
    specs.lookup(dict.fromkeys(_SKLEARN), place, "data source 'sklearn:...'")
    return {"all": functools.partial(_open_sklearn, place)}


def _open_sklearn(name: str) -> Source:
    import pyarrow as pa
    from sklearn import datasets

    from vit_jax_mixer.data.tables.reading import Table

    found = getattr(datasets, f"load_{name}")()
    targets = found.target
    if "target_names" in found:
        targets = np.asarray(found.target_names)[targets]
    names = [*map(str, found.feature_names), "target"]
    data = pa.table([*map(pa.array, found.data.T), pa.array(targets)], names=names)
    return _source(Table(data, np.arange(len(targets)), f"sklearn:{name}"))


def _read(path: Path, delimiter: str) -> Any:
    from vit_jax_mixer.data.tables.reading import read

    return read(path, delimiter)


def _open(path: Path, delimiter: str) -> Source:
    return _source(_read(path, delimiter))


def _source(table: Any) -> Source:
    """Return the rows in an order that is as good as random and always the same: a part of them is a fair one."""
    shuffled = table.take(np.random.default_rng(len(table)).permutation(len(table)))
    return Source(Rows(shuffled), (), shuffled.where, notes=table.notes)


def in_order(paths: Sequence[str]) -> Source:
    """Return all rows of files, one after the other, as they stand in them.

    Raises:
        UserError: one cannot be read.
    """
    from vit_jax_mixer.data.tables.reading import concatenate

    tables = [_read(Path(os.path.expanduser(path)), "") for path in paths]
    table = concatenate(tables)
    ends = np.cumsum([len(one) for one in tables])

    def where(index: int) -> str:
        file = int(np.searchsorted(ends, index, side="right"))
        return tables[file].where(index - int(ends[file - 1] if file else 0))

    return Source(Rows(table), (), where, notes=table.notes)
