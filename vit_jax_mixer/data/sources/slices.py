"""Parts of splits, as ``train[:98%]`` and ``train+test[10:20]``, by the rules of TFDS.

A bound is a number of examples or a percentage, rounded to the nearest example; below zero it
counts from the end, also where it rounds to none (in TFDS ``[-1%:]`` of 30 examples is all of them).
A bound beyond the split is an error rather than its end.

With ``|stratified`` at the end, ``all[:80%]|stratified`` and ``all[80%:]|stratified``, a part is cut from each class by
itself, so that all parts have the same shares of them; see `strata`.

A split may be asked for by another usual name, as validation for val.
"""

import bisect
import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from vit_jax_mixer import classes
from vit_jax_mixer.data.sources import strata
from vit_jax_mixer.data.sources.base import Source, Splits, traits
from vit_jax_mixer.errors import UserError, suggest

_PART = re.compile(r"(?P<split>[^\[\]]+)(?:\[(?P<start>[^\[\]:]*):(?P<stop>[^\[\]:]*)\])?")
_BOUND = re.compile(r"(?P<value>-?[0-9]{1,18}(?:\.[0-9]{1,18})?)(?P<percent>%?)")

# What a split is for, by its usual names; a few words may follow, as in test_set, and a number, as in val2017.
_ROLE = re.compile(
    r"(?:(?P<train>train|training|trn)|(?P<validation>val|valid|validation|dev|devel|development|eval|evaluation)"
    r"|(?P<test>test|testing|tst))(?:[-_ .]*(?:set|data|split|images|imgs))?(?:[-_ .]*[0-9]{1,4})?",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Part:
    """One term of an expression; an empty bound is the split's own."""

    split: str
    start: str = ""
    stop: str = ""

    def range(self, length: int) -> range:
        """Return the indices of the part in a split of ``length`` examples.

        Raises:
            UserError: a bound is not a number, or is beyond the split.
        """
        if self.start and self.stop and self.start.endswith("%") != self.stop.endswith("%"):
            raise UserError(f"{self} has one bound in per cent and one in examples; give both in the same unit.")
        return range(self._index(self.start or "0", length), self._index(self.stop or str(length), length))

    def _index(self, bound: str, length: int) -> int:
        match = _BOUND.fullmatch(bound)
        if not match or ("." in bound and not match["percent"]):
            raise UserError(f"{self} has the bound {_short(bound)!r}; it must be a number of examples or a percentage.")
        value = float(match["value"]) if match["percent"] else int(match["value"])
        if abs(value) > (100 if match["percent"] else length):
            raise UserError(
                f"{self} reaches beyond the split's {length} examples; bring the bound {bound} within them."
            )
        index = round(value * length / 100.0) if match["percent"] else int(value)
        return length + index if bound.startswith("-") else index  # by the sign before it is rounded, also of -0

    def __str__(self) -> str:
        return f"{self.split}[{_short(self.start)}:{_short(self.stop)}]" if self.start or self.stop else self.split


def _short(bound: str) -> str:
    return bound if len(bound) <= 24 else f"{bound[:20]}..."


def role(name: str) -> str:
    """Return 'train', 'validation' or 'test', if the name is a usual one of such a split, else ''."""
    match = _ROLE.fullmatch(name.strip())
    return match.lastgroup or "" if match else ""


def roles(names: Iterable[str]) -> dict[str, str]:
    """Return the `role` of each name that has one; if none has, by their last words, as of seg_train and seg_test."""
    names = list(names)
    found = {name: what for name in names if (what := role(name))}
    last = {name: what for name in names if (what := role(re.split(r"[-_ .]", name)[-1]))}
    return found or (last if len(set(last.values())) > 1 else {})


def find(split: str, splits: Iterable[str]) -> str | None:
    """Return the split of that name, or else the only one that has another name for the same; None if there is none."""
    splits = list(splits)
    if split in splits:
        return split
    same = [name for name, other in roles(splits).items() if other == role(split)]
    return same[0] if len(same) == 1 else None


def parse(expression: str) -> list[Part]:
    """Read an expression such as ``train[:98%]+test``.

    Raises:
        UserError: it is not of that form.
    """
    matches = [_PART.fullmatch(term.strip()) for term in expression.split("+")]
    if not all(matches):
        raise UserError(
            f"the split {expression!r} is not of the form train, train[:98%], train[100:200] or train+test."
        )
    return [Part(**{key: (value or "").strip() for key, value in m.groupdict().items()}) for m in matches if m]


def open_expression(splits: Splits, expression: str, name: str) -> Source:
    """Open the examples that an expression names, in its order.

    Args:
        splits: of the dataset.
        expression: see `parse`.
        name: of the dataset, for messages.

    Raises:
        UserError: an unknown split or a bad bound.
    """
    whole_splits = expression in splits  # whatever its name has in it
    terms, column = (expression, None) if whole_splits else strata.parse(expression)
    parts = [Part(expression)] if whole_splits else parse(terms)
    found = {part.split: find(part.split, splits) for part in parts}
    for split, other in found.items():
        if other is None:
            cut = " (cut it from 'all', as in all[:90%])" if "all" in splits else ""
            raise UserError(f"{name} has no split {_short(split)!r}{cut}{suggest(split, splits)}")
    opened = {split: splits[other]() for split, other in found.items() if other is not None}
    sources = [opened[part.split] for part in parts]
    others = [_beside(other, splits) for other in found.values()]
    taken: list[Taken]
    if column is None:
        taken = [part.range(len(source.examples)) for part, source in zip(parts, sources, strict=True)]
    else:
        where = f"the split {expression!r} of {name}"
        classes_of = {split: strata.of(source, column, where) for split, source in opened.items()}
        taken = [strata.indices(part, classes_of[part.split]) for part in parts]
    whole = len(parts) == 1 and len(taken[0]) == len(sources[0].examples)
    unlabelled = next((source.unlabelled for source in sources if source.unlabelled), "")
    same = len({source.class_names for source in sources}) == 1
    if not same and not unlabelled:
        unlabelled = f"the splits of {name}, {expression!r}, have different classes; read them one by one."
    examples = _Joined(tuple(sources), tuple(taken), labelled=same)
    class_names = sources[0].class_names if same else ()
    joined = Source(examples, class_names, examples.where, unlabelled=unlabelled)
    source = sources[0] if whole else joined
    return dataclasses.replace(
        source,
        passed_over=tuple(dict.fromkeys(path for one in sources for path in one.passed_over)),
        notes=(
            *dict.fromkeys(note for one in sources for note in one.notes),
            *(f"{name}, split {expression}, leaves out {classes.few(left)}." for left in others if left),
            *_notes(source, expression),
        ),
    )


def _beside(split: str | None, splits: Iterable[str]) -> list[str]:
    """Return the other splits that are for the same by their names, as Train beside train."""
    known = roles(splits)
    return [name for name, what in known.items() if what == known.get(split or "") and name != split]


def _notes(source: Source, expression: str) -> list[str]:
    """Return a sentence if there is one class alone, and on the classes without an example, if labels are at hand."""
    names, labels = source.class_names, getattr(source.examples, "labels", None)
    if not names:  # labels, if any, are no classes
        return []
    alone = [f"{expression} has one class alone, {names[0]!r}: there is nothing to tell apart."] * (len(names) == 1)
    if labels is None or not len(labels):
        return alone
    lacking = np.flatnonzero(np.bincount(labels, minlength=len(names)) == 0)
    if not len(lacking):
        return alone
    shown = classes.few([names[label] for label in lacking], 5)
    return [f"{expression} has no example of {len(lacking):,} of its {len(names):,} classes: {shown}."]


Taken = range | np.ndarray  # indices of a source


@dataclasses.dataclass(frozen=True, eq=False)
class _Joined:
    """What is taken of several sources, one after the other; without labels where these differ."""

    sources: tuple[Source, ...]
    taken: tuple[Taken, ...]
    labelled: bool = True

    @functools.cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(map(len, self.taken)))

    @property
    def labels(self) -> np.ndarray | None:
        """The label of each example, int[N], if all sources have them at hand."""
        if not self.labelled:
            return None
        parts = []
        for source, part in zip(self.sources, self.taken, strict=True):
            if (labels := getattr(source.examples, "labels", None)) is None:
                return None
            parts.append(labels[part.start : part.stop] if isinstance(part, range) else labels[part])
        return np.concatenate(parts)

    @functools.cached_property
    def table(self) -> Any:
        """The rows as one `tables.reading.Table`, if all sources have one."""
        tables: list[Any] = [getattr(source.examples, "table", None) for source in self.sources]
        if any(table is None for table in tables):
            return None
        from vit_jax_mixer.data.tables.reading import concatenate

        return concatenate([table.take(np.asarray(part)) for table, part in zip(tables, self.taken, strict=True)])

    def __len__(self) -> int:
        return self._ends[-1]

    def _locate(self, index: int) -> tuple[Source, int]:
        index = range(len(self))[index]
        part = bisect.bisect_right(self._ends, index)
        return self.sources[part], int(self.taken[part][index - self._ends[part]])  # counted from the part's end

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, index = self._locate(index)
        example = source.examples[index]
        return example if self.labelled else {name: value for name, value in example.items() if name != "label"}

    def traits(self) -> Iterator[bytes]:
        """Yield those of the sources, and what is taken of each."""
        for source, taken in zip(self.sources, self.taken, strict=True):
            yield from traits(source.examples)
            yield str(taken).encode() if isinstance(taken, range) else taken.tobytes()

    def where(self, index: int) -> str:
        """Say where an example comes from."""
        source, index = self._locate(index)
        return source.where(index)
