"""Rows as a model reads them, with or without labels: made once, and then in memory."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from vit_jax_mixer.data.sources.base import Source
from vit_jax_mixer.data.tables.encoding import Encoding
from vit_jax_mixer.data.tables.reading import Table
from vit_jax_mixer.data.tables.target import Target


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """Examples {'row': f32[F], 'label': of the target}; worker processes get a copy.

    Attributes:
        rows: f32[N, F].
        labels: i32[N] of classes, f32[N] of a number; None where they are not known.
    """

    rows: np.ndarray
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.batch(index)

    def batch(self, index: int | np.ndarray) -> dict[str, Any]:
        """Return an example, or those of i64[B] at once."""
        found = {"row": self.rows[index]}
        return found if self.labels is None else {**found, "label": self.labels[index]}

    def traits(self) -> Iterator[bytes]:
        """Yield all there is."""
        yield self.rows.tobytes()
        if self.labels is not None:
            yield self.labels.tobytes()


def labelled(table: Table, encoding: Encoding, target: Target) -> Source:
    """Return the rows that have a label, and notes on what was odd in them.

    Raises:
        UserError: the table lacks a column, or a label is none of the target's.
    """
    rows, labels, said = target(table)
    kept = table if len(rows) == len(table) else table.take(rows)
    encoded, more = encoding(kept)
    return Source(Encoded(encoded, labels), target.class_names, kept.where, notes=(*table.notes, *said, *more))
