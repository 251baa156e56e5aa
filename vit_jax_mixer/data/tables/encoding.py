"""From the columns of a table to f32[N, F], by what was seen in the training rows alone.

N rows, F features. What is fitted is plain data, which ``model.json`` holds: prediction encodes as training did.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax_mixer import classes
from vit_jax_mixer.data.tables import scaling
from vit_jax_mixer.data.tables.reading import Table
from vit_jax_mixer.errors import UserError, suggest

MOST_WORDS = 250  # categories of a column; rarer ones are one together (gradient boosting reads up to 255)
_LIMIT = 1e6  # of an encoded number, far beyond what a model has learnt


@dataclasses.dataclass(frozen=True)
class Column:
    """How a column becomes a feature, or two.

    Attributes:
        name: in the file.
        words: the categories, whose places are the codes; one more stands for all others and for none. None for
            a column of numbers.
        points: of a column of numbers: what is mapped, increasing, and what it becomes there (`scaling`).
        fill: what stands for a missing number, before that.
        told: whether a second feature says by 1 that it is missing.
    """

    name: str
    words: tuple[str, ...] | None = None
    points: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    fill: float = 0.0
    told: bool = False

    @classmethod
    def of_json(cls, fields: Mapping[str, Any]) -> "Column":
        """Return what `dataclasses.asdict` gave.

        Raises:
            TypeError, ValueError, KeyError: it is none.
        """
        words, points = fields["words"], fields["points"]
        x, y = (tuple(map(float, side)) for side in points)
        if len(x) != len(y) or not np.isfinite([*x, *y, float(fields["fill"])]).all() or (np.diff(x) <= 0).any():
            raise ValueError("points")
        kept = None if words is None else tuple(words)
        if not isinstance(fields["name"], str) or not all(isinstance(word, str) for word in kept or ()):
            raise TypeError("words")
        return cls(fields["name"], kept, (x, y), float(fields["fill"]), bool(fields["told"]))

    def features(self) -> list[tuple[str, int]]:
        """Return the name of each feature and how many codes it has; 0 for numbers."""
        if self.words is not None:
            return [(self.name, len(self.words) + 1)]
        return [(self.name, 0), *[(f"{self.name} is missing", 0)] * self.told]

    def encode(self, table: Table, extrapolates: bool) -> tuple[list[np.ndarray], list[str]]:
        """Return f32[N] for each feature, and sentences on values that are none of training's."""
        if self.words is None:
            values, odd = table.numbers(self.name)
            missing = np.isnan(values)
            filled = np.where(missing, self.fill, values)
            found = [scaling.apply(*self.points, filled, extrapolates)]
            said = [_odd(table, self.name, odd)] if len(odd) else []
            if (lacking := int(missing.sum()) - len(odd)) and not self.told:
                said.append(f"column {self.name}: {lacking:,} of {len(table):,} values are missing, in training none")
            return [*found, *[missing.astype(np.float64)] * self.told], said
        codes, words = table.words(self.name)
        known = {word: code for code, word in enumerate(self.words)}
        of_word = np.asarray([*(known.get(word, len(self.words)) for word in words), len(self.words)])
        new = [place for place, word in enumerate(words) if word not in known]
        count = int(np.isin(codes, new).sum())
        shown = classes.few([words[place] for place in new], 5)
        said = (
            [f"column {self.name}: {count:,} of {len(table):,} values are none of training's: {shown}"] if new else []
        )
        return [of_word[codes].astype(np.float64)], said


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How rows become numbers.

    Attributes:
        columns: those that are read.
        scaling: a spec of `scaling.SCALINGS`.
        whole: of the scaling 'original', the maximum, mean and deviation of all entries of the training rows.
    """

    columns: tuple[Column, ...]
    scaling: str
    whole: tuple[float, ...] = ()

    @classmethod
    def of_json(cls, fields: Any, where: str) -> "Encoding":
        """Return what `dataclasses.asdict` gave; a `UserError` if that is damaged."""
        try:
            columns = tuple(map(Column.of_json, fields["columns"]))
            scaling.parse(fields["scaling"], where)
            return cls(columns, fields["scaling"], tuple(map(float, fields["whole"])))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{where} is damaged (its encoding is none: {error!s:.60}); restore it.") from error

    @property
    def features(self) -> list[tuple[str, int]]:
        """The name of each of the F features and the number of its codes; 0 for numbers."""
        return [feature for column in self.columns for feature in column.features()]

    def __call__(self, table: Table) -> tuple[np.ndarray, list[str]]:
        """Return f32[N, F], and sentences on what is missing or was not seen in training.

        Raises:
            UserError: the table has not all of the columns.
        """
        there = {*table.names}
        lacking = [column.name for column in self.columns if column.name not in there]
        if lacking:
            raise UserError(
                f"{table.path} lacks {len(lacking)} of the {len(self.columns)} columns that the model reads: "
                f"{classes.few(lacking, 5)}{suggest(lacking[0], table.names)}"
            )
        how = scaling.parse(self.scaling, "scaling")
        found, said = [], []
        for column in self.columns:
            features, notes = column.encode(table, how.extrapolates)
            found += features
            said += [f"{table.path}: {note}" for note in notes]
        rows = np.stack(found, axis=1)
        if self.whole:
            rows = scaling.scale_as_original(rows, *self.whole, own=how.own_maximum)
        return np.clip(rows, -_LIMIT, _LIMIT).astype(np.float32), said


def fit(table: Table, left_out: Sequence[str], spec: str) -> tuple[Encoding, list[str]]:
    """Return the encoding of training rows, and sentences on the columns that it leaves out, and why.

    Args:
        table: the rows.
        left_out: columns that are not to be read, as the target.
        spec: of `scaling.SCALINGS`.

    Raises:
        UserError: no column is left.
    """
    how = scaling.parse(spec, "config.data.scaling")
    columns, said = [], []
    for name in table.names:
        if name in left_out:
            continue
        column, reason = _fit(table, name, how)
        if column:
            columns.append(column)
        if reason:
            said.append(f"{table.path}: column {name} {reason}")
    if not columns:
        raise UserError(f"{table.path} has no column to learn from: {'; '.join(said) or 'all are left out'}.")
    encoding = Encoding(tuple(columns), spec)
    if how.whole:
        rows, _ = encoding(table)
        encoding = dataclasses.replace(encoding, whole=scaling.fit_original(rows))
    return encoding, said


def kind(table: Table, name: str) -> str:
    """Say what a column holds: 'number', 'category', 'constant', 'number of the row', 'text' or 'nothing'."""
    values, odd = table.numbers(name)
    rows, numbers = len(table), np.sort(values[np.isfinite(values)])
    most = 0.1 * (len(numbers) + len(odd))
    if len(odd) > most and table.count_words(name, odd) > most:
        codes, words = table.words(name)
        if len(words) == 1 and (codes >= 0).all():
            return "constant"
        return "text" if rows > 20 and len(words) > 0.9 * (codes >= 0).sum() else "category"
    if not len(numbers):
        return "nothing"
    if len(numbers) == rows and numbers[0] == numbers[-1]:
        return "constant"
    steps = np.diff(numbers)
    named = name.lower() in ("id", "index", "column_1") and (steps > 0).all() and (numbers % 1 == 0).all()
    if rows > 20 and len(numbers) == rows and ((steps == 1).all() or named):
        return "number of the row"
    return "number"


def _fit(table: Table, name: str, how: scaling.Scaling) -> tuple[Column | None, str]:
    """Return how a column becomes a feature, or why it does not, or what is odd in it."""
    match kind(table, name):
        case "nothing":
            return None, "has no value; it is left out"
        case "constant" if not how.whole:
            return None, "has one value alone; it is left out"
        case "text":
            return None, "has nearly as many different texts as rows; it is left out"
        case "number of the row":
            return None, "numbers the rows; it is left out"
        case "category":
            codes, words = table.words(name)
            counts = np.bincount(codes[codes >= 0], minlength=len(words))
            least = how.least_count
            kept = sorted(np.argsort(-counts, kind="stable")[:MOST_WORDS].tolist()) if least > 1 else range(len(words))
            chosen = tuple(words[place] for place in kept if counts[place] >= least)
            rest = len(words) - len(chosen)
            return Column(name, chosen), f"has {rest:,} rare values of {len(words):,}, which are one" if rest else ""
    values, _ = table.numbers(name)
    numbers = values[np.isfinite(values)]
    told = len(numbers) < len(values)
    fill = float(np.median(numbers))
    return Column(name, None, how.fit(numbers), fill, told and not how.whole), ""


def _odd(table: Table, name: str, odd: np.ndarray) -> str:
    cell = table.cell(int(odd[0]), name)
    place = table.where(int(odd[0])).removeprefix(f"{table.path}, ")
    return (
        f"column {name}: {len(odd):,} of {len(table):,} values are no finite numbers, as {cell!r} in {place}; "
        "they count as missing"
    )
