"""Pairs of sentences in datasets of Hugging Face: a column of translations, or two columns of text."""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax_mixer.data.sources import sides
from vit_jax_mixer.data.sources.base import Source
from vit_jax_mixer.errors import UserError

TEXT = ("string", "large_string")


@dataclasses.dataclass(frozen=True)
class _Texts:
    """Rows of text columns, {name: str}; a Translation's languages are columns too.

    Attributes:
        rows: a dataset of these columns alone, which gives Arrow tables.
        name: for messages.
    """

    rows: Any
    name: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            (row,) = self.rows[range(len(self))[index]].to_pylist()
        except (OSError, ValueError, MemoryError) as error:  # Arrow's for damaged files
            reason = textwrap.shorten(str(error), 250) or type(error).__name__
            raise UserError(f"{self.where(index)} is damaged ({reason}); fetch or save the dataset again.") from error
        inner = [cell for cell in row.values() if isinstance(cell, dict)]
        return {name: text for cell in inner for name, text in cell.items()} if inner else row

    def where(self, index: int) -> str:
        """Say where a pair comes from."""
        return f"{self.name}, row {index}"


def open_pairs(rows: Any, named: Mapping[str, str], name: str, notes: Sequence[str]) -> Source | None:
    """Return a split of `datasets` as pairs of sentences; None of one that has other things.

    Args:
        rows: the split.
        named: what a person named, by role.
        name: of the split, for messages.
        notes: on the files that it is of.

    Raises:
        UserError: it is not clear which texts are a pair.
    """
    pair = _sides(rows.features, named, name)
    if pair is None:
        return None
    columns, fields, note = pair
    records = _Texts(rows.select_columns(columns).with_format("arrow"), name)
    pairs = sides.Sides(records, fields, records.where)
    return Source(pairs, (), records.where, notes=tuple(filter(None, (*notes, note))))


def _sides(
    features: Mapping[str, Any], named: Mapping[str, str], where: str
) -> tuple[list[str], tuple[str, str], str] | None:
    """Return the columns of pairs of sentences, the two texts in them and a note; None of a dataset of other things."""
    translations = {
        name: tuple(feature.languages) for name, feature in features.items() if type(feature).__name__ == "Translation"
    }
    if not (sides.are_asked_for(named) or translations):
        return None
    if translations:
        column, languages = next(iter(translations.items()))
        source, target, note = sides.choose(named, languages, where, languages)
        return [column], (source, target), note
    texts = [name for name, feature in features.items() if getattr(feature, "dtype", None) in TEXT]
    source, target, note = sides.choose(named, texts, where)
    return [source, target], (source, target), note
