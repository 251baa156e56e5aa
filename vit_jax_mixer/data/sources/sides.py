"""Which fields of a record are a sentence and its translation."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vit_jax_mixer.data.sources.base import RandomAccess
from vit_jax_mixer.errors import UserError, suggest

SIDES = ("source", "target")


def are_asked_for(named: Mapping[str, str]) -> bool:
    """Say whether a person named a side, as in ``wmt14:de-en,source=en,target=de``."""
    return bool(named.keys() & set(SIDES))


def choose(
    named: Mapping[str, str], fitting: Sequence[str], where: str, usual: Sequence[str] = ()
) -> tuple[str, str, str]:
    """Return the field of the source and that of the target, and a note where nobody named them.

    Args:
        named: what a person named, by role.
        fitting: the fields that hold text.
        where: the dataset, for messages.
        usual: both in the dataset's own order; () if it has none.

    Raises:
        UserError: a named one is not there, or it is not clear which they are.
    """
    if odd := named.keys() - set(SIDES):
        raise UserError(f"{where}: a pair of sentences has no {min(odd)}; name ,source=NAME,target=NAME alone.")
    for role, name in named.items():
        if name not in fitting:
            raise UserError(
                f"{where} has no {role} text {name!r}{suggest(name, fitting)} It has {', '.join(fitting) or 'none'}."
            )
    both = tuple(usual) if len(usual) == 2 else tuple(fitting) if len(fitting) == 2 else ()
    found = dict(named)
    for role, other in (SIDES, SIDES[::-1]):
        if role not in found and (rest := [name for name in both if name != found.get(other)]):
            found[role] = rest[0]
    if len(found) < 2 or found["source"] == found["target"]:
        raise UserError(
            f"{where}: say which texts are a pair, as ,source=en,target=de after its name; it has "
            f"{', '.join(fitting) or 'none'}."
        )
    source, target = (found[role] for role in SIDES)
    note = (
        f"{where}: from {source} to {target}; for others, end the source's name with ,source={target},target={source}"
    )
    return source, target, "" if named else note


@dataclasses.dataclass(frozen=True, eq=False)
class Sides:
    """Pairs {'source': str, 'target': str} of records; one without a side is a `UserError` when it is asked for.

    Attributes:
        records: whose items hold the texts by the names of their fields, as str or UTF-8.
        fields: of source and target.
        where: says where a record comes from.
    """

    records: RandomAccess
    fields: tuple[str, str]
    where: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        return {role: self._text(record.get(name), role) for role, name in zip(SIDES, self.fields, strict=True)}

    def _text(self, value: Any, role: str) -> str:
        try:
            text = value.decode() if isinstance(value, bytes) else value
        except UnicodeDecodeError as error:
            raise UserError(f"its {role} is no UTF-8 (byte {error.start + 1}); mend the dataset.") from error
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"its {role} is empty; fill it, or remove the pair.")
        return " ".join(text.split())
