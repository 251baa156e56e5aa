"""Two lists of classes that meet: matched by name, whole numbers by value, and never by place.

A leaf of the package. A class's place in a list is its label there and says nothing in another list:
a folder that is renamed, or one that is missing in a split, moves all that follow it.
"""

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from vit_jax_mixer.errors import UserError, suggest

# What is done to a name before it is looked up, and the place of each name that is known so; see `table`
Table = tuple[Callable[[str], str], dict[str, int]]

_WHOLE = re.compile(r"\s*([+-]?\d{1,18})(?:\.0+)?\s*")


def number(name: str) -> int | None:
    """Return the value of a name that is a whole number, as 10 of '10', '0010', ' 10' and '10.0'; None for others."""
    match = _WHOLE.fullmatch(name)
    return int(match[1]) if match else None


def table(names: Iterable[str], key: Callable[[str], str] = str, places: Iterable[int] | None = None) -> Table:
    """Return the places of names by their key; what several places are called is left out.

    Args:
        names: one or more for each place.
        key: is the same for names that mean the same; '' for a name without one.
        places: of the names, if they are not 0, 1, 2, ...
    """
    found: dict[str, int] = {}
    for place, name in zip(places, names, strict=True) if places is not None else enumerate(names):
        if word := key(name):
            found[word] = place if found.get(word, place) == place else -1
    return key, {word: place for word, place in found.items() if place >= 0}


def match(
    names: Sequence[str], known: Sequence[str], where: str, whose: str, more: Sequence[Table] = (), way_on: str = ""
) -> np.ndarray:
    """Return i32[len(names)], the place in ``known`` of each name: the very one, or the whole number of its value.

    Args:
        names: of classes.
        known: the other list.
        where: what has ``names``, for messages.
        whose: what has ``known``, as "the model's".
        more: other ways that a name may be known, tried in this order.
        way_on: what else can be done about a name that is not known.

    Raises:
        UserError: some are not known, or two are the same.
    """
    if tuple(names) == tuple(known):
        return np.arange(len(names), dtype=np.int32)
    tables = (table(known), table(known, _value), *more)
    found = [next((places[key(n)] for key, places in tables if key(n) in places), -1) for n in names]
    missing = [name for name, place in zip(names, found, strict=True) if place < 0]
    if missing:
        raise UserError(
            f"{where}: {len(missing)} of its {len(names)} classes are none of {whose} {len(known)}, {few(missing)}; "
            f"rename them or leave them out{way_on}{_nearest(missing[0], known)}"
        )
    first: dict[int, str] = {}
    for name, place in zip(names, found, strict=True):
        if place in first:
            raise UserError(f"{where}: {first[place]!r} and {name!r} are both {whose} {known[place]!r}; join them.")
        first[place] = name
    return np.array(found, np.int32)


def check_distinct(names: Sequence[str], where: str) -> None:
    """Raise a `UserError` if two classes differ in what nobody sees: blanks at the ends, or their Unicode form."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(form(name), name)
        if other != name:
            raise UserError(f"{where}: the classes {_only(other, name)}; join them, or rename one.")


def changed(before: Sequence[str], now: Sequence[str]) -> str:
    """Say in what a list of classes differs from an earlier one; '' if it is the same."""
    if tuple(before) == tuple(now):
        return ""
    old, recent = set(before), set(now)
    gone, new = [name for name in before if name not in recent], [name for name in now if name not in old]
    if not gone and not new:
        place = next(i for i, (a, b) in enumerate(itertools.zip_longest(before, now)) if a != b)
        was, is_ = (repr(names[place]) if place < len(names) else "nothing" for names in (before, now))
        return f"the classes stand in another order: number {place} was {was} and is {is_}"
    if len(gone) == len(new) == 1 and form(gone[0]) == form(new[0]):
        return f"the classes {_only(gone[0], new[0])}"
    parts = [f"{few(gone)} {'are' if len(gone) > 1 else 'is'} gone"] if gone else []
    parts += [f"{few(new)} {'are' if len(new) > 1 else 'is'} new"] if new else []
    return f"the classes differ: {' and '.join(parts)}"


def form(name: str) -> str:
    """Return a name without what nobody sees: blanks at its ends, and its Unicode form, of width too."""
    wide = "".join(
        unicodedata.normalize("NFKC", c) if unicodedata.decomposition(c).startswith(("<wide>", "<narrow>")) else c
        for c in name
    )
    invisible = {c for c in wide if unicodedata.category(c) in ("Cc", "Cf", "Zs", "Zl", "Zp")}
    return unicodedata.normalize("NFC", wide.strip("".join(invisible)))


def few(names: Sequence[str], shown: int = 3) -> str:
    """Return the first few of many names; of a name that is a text, its begin."""
    begins = (name if len(name) <= 200 else f"{name[:160]}..." for name in names[:shown])
    return ", ".join(map(repr, begins)) + (", ..." if len(names) > shown else "")


def _value(name: str) -> str:
    value = number(name)
    return "" if value is None else str(value)


def _only(one: str, other: str) -> str:
    """Say in what two names differ that look the same; escaped, so that it is seen."""
    what = "blanks at the ends" if one.strip() == other.strip() else "Unicode form"
    return f"{one!a} and {other!a} differ in {what} alone"


def _nearest(name: str, known: Sequence[str]) -> str:
    twin = next((other for other in known if form(other) == form(name)), None)
    if twin is not None:
        return f"; {_only(name, twin)}."
    near = [other for other in known if other.startswith(name)] or known  # as the two that are cranes
    return suggest(name, near)
