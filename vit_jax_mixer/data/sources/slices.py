"""Parts of splits, as ``train[:98%]`` and ``train+test[10:20]``, by the rules of TFDS.

A bound is a number of examples or a percentage, rounded to the nearest example; below zero it
counts from the end. A bound beyond the split is an error rather than its end.
"""

import bisect
import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator
from typing import Any

from vit_jax_mixer.data.sources.base import Source, Splits, traits
from vit_jax_mixer.errors import UserError, suggest

_PART = re.compile(r"(?P<split>[^\[\]]+)(?:\[(?P<start>[^\[\]:]*):(?P<stop>[^\[\]:]*)\])?")
_BOUND = re.compile(r"(?P<value>-?\d+(?:\.\d+)?)(?P<percent>%?)")


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
            raise UserError(f"{self} has the bound {bound!r}; it must be a number of examples or a percentage.")
        value = float(match["value"]) if match["percent"] else int(match["value"])
        index = round(value * length / 100.0) if match["percent"] else int(value)
        if abs(value) > (100 if match["percent"] else length):
            raise UserError(
                f"{self} reaches beyond the split's {length} examples; bring the bound {bound} within them."
            )
        return index if index >= 0 else length + index

    def __str__(self) -> str:
        return f"{self.split}[{self.start}:{self.stop}]" if self.start or self.stop else self.split


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
        UserError: an unknown split or a bad bound; or the parts have different classes.
    """
    parts = parse(expression)
    for part in parts:
        if part.split not in splits:
            cut = " (cut it from 'all', as in all[:90%])" if "all" in splits else ""
            raise UserError(f"{name} has no split {part.split!r}{cut}{suggest(part.split, splits)}")
    opened = {split: splits[split]() for split in dict.fromkeys(part.split for part in parts)}
    sources = [opened[part.split] for part in parts]
    if len({source.class_names for source in sources}) > 1:
        raise UserError(f"{name}: the splits of {expression!r} have different classes; read them one by one.")
    ranges = [part.range(len(source.examples)) for part, source in zip(parts, sources, strict=True)]
    if len(parts) == 1 and len(ranges[0]) == len(sources[0].examples):
        return sources[0]
    examples = _Joined(tuple(sources), tuple(ranges))
    return Source(examples, sources[0].class_names, examples.where)


@dataclasses.dataclass(frozen=True)
class _Joined:
    """Ranges of several sources, one after the other."""

    sources: tuple[Source, ...]
    ranges: tuple[range, ...]

    @functools.cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(len(r) for r in self.ranges))

    def __len__(self) -> int:
        return self._ends[-1]

    def _locate(self, index: int) -> tuple[Source, int]:
        index = range(len(self))[index]
        part = bisect.bisect_right(self._ends, index)
        return self.sources[part], self.ranges[part][index - self._ends[part]]  # counted from the part's end

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, index = self._locate(index)
        return source.examples[index]

    def traits(self) -> Iterator[bytes]:
        """Yield those of the sources, and what is taken of each."""
        for source, taken in zip(self.sources, self.ranges, strict=True):
            yield from traits(source.examples)
            yield str(taken).encode()

    def where(self, index: int) -> str:
        """Say where an example comes from."""
        source, index = self._locate(index)
        return source.where(index)
