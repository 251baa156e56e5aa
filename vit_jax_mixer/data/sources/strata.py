"""Parts of a split that have each class in the same share as the whole: ``all[:80%]|stratified``."""

from typing import Any

import numpy as np

from vit_jax_mixer import specs
from vit_jax_mixer.data.sources.base import Source, labels_of
from vit_jax_mixer.errors import UserError


def parse(expression: str) -> tuple[str, str | None]:
    """Split ``all[:80%]|stratified('age')`` into the expression and the column, '' for that of the classes.

    The column is None where the expression is not of this form.
    """
    parts, bar, how = expression.partition("|")
    if not bar:
        return expression, None
    return parts.strip(), specs.build({"stratified": _named}, how, f"the split {expression!r}")


def _named(column: str = "") -> str:
    return column


def of(source: Source, column: str, where: str) -> np.ndarray:
    """Return the class of each example, int[N], or the word of that column.

    Args:
        source: the split.
        column: of rows of a table; '' for the class, which for rows is the column that is learnt if none is named.
        where: the expression, for messages.

    Raises:
        UserError: there are no classes, or no such column.
    """
    table: Any = getattr(source.examples, "table", None)
    if table is None:
        if column:
            raise UserError(f"{where} names the column {column!r}, but only rows of a table have some; leave it out.")
        return labels_of(source, where)
    from vit_jax_mixer.data.tables import target

    name = target.choose(table, column, where)
    codes, words = table.words(name)
    if len(words) > min(target.MOST_CLASSES, len(table) // 2):
        raise UserError(
            f"{where} goes by the column {name!r}, which has {len(words):,} different values in {len(table):,} rows; "
            "name one of few, as stratified('sex')."
        )
    return codes


def indices(part: Any, classes: np.ndarray) -> np.ndarray:
    """Return those of each class that a `slices.Part` would take if it were alone, i64[M], in the order of the split.

    Raises:
        UserError: a bound of the part is not in per cent.
    """
    if any(bound and not bound.endswith("%") for bound in (part.start, part.stop)):
        raise UserError(f"{part} is to be stratified, but has a bound in examples; give bounds in per cent.")
    members = (np.flatnonzero(classes == one) for one in np.unique(classes))
    return np.sort(np.concatenate([mine[np.asarray(part.range(len(mine)), np.int64)] for mine in members]))
