"""The column that is to be told from the others: two classes, several, or a number."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax_mixer import classes
from vit_jax_mixer.data.tables.reading import Table
from vit_jax_mixer.errors import UserError, suggest

USUAL = ("label", "target", "class", "y", "outcome")
KINDS = ("two", "classes", "number")
MOST_CLASSES = 1_000
_FEW = 20  # a target of whole numbers is of classes if it has no more different ones


@dataclasses.dataclass(frozen=True)
class Target:
    """What is learnt of a row.

    Attributes:
        name: of the column.
        kind: of `KINDS`.
        class_names: of 'two' and 'classes', in order; of two, the second is the positive one.
        mean: of a number in the training rows; the model tells how many deviations it is from there.
        deviation: of a number in the training rows.
    """

    name: str
    kind: str
    class_names: tuple[str, ...] = ()
    mean: float = 0.0
    deviation: float = 1.0

    @classmethod
    def of_json(cls, fields: Any, where: str) -> "Target":
        """Return what `dataclasses.asdict` gave; a `UserError` if that is damaged."""
        match fields:
            case {"name": str(name), "kind": str(kind), "class_names": [*words], "mean": mean, "deviation": deviation}:
                numbers = all(isinstance(n, int | float) and np.isfinite(n) for n in (mean, deviation))
                fits = (kind == "number", kind == "two") == (not words, len(words) == 2)
                if kind in KINDS and fits and all(isinstance(w, str) for w in words) and numbers and deviation > 0:
                    return cls(name, kind, tuple(words), float(mean), float(deviation))
        raise UserError(f"{where} is damaged (its target is none); restore it.")

    @property
    def outputs(self) -> int:
        """How many numbers a model tells: a logit for each class, or one."""
        return len(self.class_names) if self.kind == "classes" else 1

    def __call__(self, table: Table) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Return the rows that have a label, the labels of these, and a sentence on the others.

        Labels are i32[N] of classes, and f32[N] in deviations of a number.

        Raises:
            UserError: the table has no such column, no row a label, or one is none of the classes.
        """
        if self.name not in table.names:
            raise UserError(f"{table.path} has no column {self.name!r}, the target{suggest(self.name, table.names)}")
        if self.kind == "number":
            values, _ = table.numbers(self.name)
            there = np.isfinite(values)
            labels = ((values - self.mean) / self.deviation).astype(np.float32)
        else:
            codes, words = table.words(self.name)
            known = {word: place for place, word in enumerate(self.class_names)}
            if new := [word for word in words if word not in known]:
                row = int(np.flatnonzero(codes == words.index(new[0]))[0])
                raise UserError(
                    f"{table.where(row)}, column {self.name}: {new[0]!r:.60} is none of the model's classes, "
                    f"{classes.few(self.class_names, 5)}; mend it."
                )
            there = codes >= 0
            labels = np.asarray([*(known[word] for word in words), -1], np.int32)[codes]
        if not there.any():
            raise UserError(f"{table.path}: the column {self.name!r}, the target, has no value; name another target.")
        rows = np.flatnonzero(there)
        lost = len(table) - len(rows)
        first = table.where(int(np.flatnonzero(~there)[0])).removeprefix(f"{table.path}, ") if lost else ""
        said = f"{table.path}: {lost:,} of {len(table):,} rows have no {self.name}, the first in {first}; left out"
        return rows, labels[rows], [said] * bool(lost)


def choose(table: Table, name: str, where: str = "config.data.target") -> str:
    """Return the column that is the target: the one that is named, has a usual name, or else the last."""
    if name:
        if name not in table.names:
            raise UserError(f"{where}: {table.path} has no column {name!r}{suggest(name, table.names)}")
        return name
    lower = {column.lower(): column for column in table.names}
    return next((lower[usual] for usual in USUAL if usual in lower), table.names[-1])


def fit(table: Table, name: str, predict: str) -> Target:
    """Return the target of training rows.

    Args:
        table: the rows.
        name: of the column.
        predict: 'classes' or 'number'; 'auto' for classes where there are words, or few whole numbers.

    Raises:
        UserError: there is no value, one class alone, or far too many.
    """
    _, words = table.words(name)
    values, odd = table.numbers(name)
    if not words:
        raise UserError(f"{table.path}: the column {name!r}, the target, has no value; name another target.")
    if predict == "auto":
        whole = np.nanmax(np.abs(values % 1), initial=0) == 0
        worded = len(odd) and table.count_words(name, odd)
        predict = "classes" if worded or len(words) <= 2 or (whole and len(words) <= _FEW) else "number"
    if predict == "number":
        if len(odd):
            row = int(odd[0])
            raise UserError(
                f"{table.where(row)}, column {name}: {table.cell(row, name)!r} is no finite number; mend it, or set "
                "config.task.predict='classes'."
            )
        return Target(name, "number", (), float(np.nanmean(values)), float(np.nanstd(values)) or 1.0)
    if len(words) == 1:
        raise UserError(f"{table.path}: all rows have the {name} {words[0]!r:.60}; there is nothing to tell apart.")
    if len(words) > MOST_CLASSES:
        raise UserError(
            f"{table.path}: the column {name!r}, the target, has {len(words):,} different values; name another with "
            "config.data.target, or set config.task.predict='number'."
        )
    numbers = [classes.number(word) for word in words]
    ordered = (
        sorted(words) if None in numbers else sorted(words, key=lambda word: (int(classes.number(word) or 0), word))
    )
    return Target(name, "two" if len(words) == 2 else "classes", tuple(ordered))


def drops(table: Table, text: str) -> Sequence[str]:
    """Return the columns that a text names, with commas between them, as those that are not to be read.

    Raises:
        UserError: there is none of such a name.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in table.names:
            raise UserError(f"config.data.drop: {table.path} has no column {name!r}{suggest(name, table.names)}")
    return names
