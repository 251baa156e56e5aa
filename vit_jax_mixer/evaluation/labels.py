"""Which of a model's classes the classes of a dataset are."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from vit_jax_mixer.errors import UserError, suggest
from vit_jax_mixer.pretrained import class_names


def match(data: Sequence[str], model: Sequence[str], num_classes: int, where: str) -> tuple[np.ndarray, str]:
    """Return the model's class for each class of the data, and a sentence that says how they were matched.

    They are matched by name, and that is the model's own; the WordNet number of a published head's
    class, as n01443537; or one of its several names, as goldfish of 'goldfish, Carassius auratus'.
    Where the very name is not found, capitals and underscores do not count. If no name is the
    model's, and there are as many as the model has, they are matched by number.

    Args:
        data: the names of the data's classes.
        model: those of the model's classes; empty if they have none.
        num_classes: how many the model has.
        where: the dataset, for messages.

    Returns:
        i32[len(data)], and '' if the classes are the same in the same order.

    Raises:
        UserError: some or all are not the model's, or two are the same.
    """
    same = np.arange(num_classes, dtype=np.int32)
    if tuple(data) == tuple(model):
        return same, ""
    tables = _tables(model)
    found = [next((table[key(name)] for key, table in tables if key(name) in table), -1) for name in data]
    missing = [name for name, label in zip(data, found, strict=True) if label < 0]
    if len(missing) == len(data) == num_classes:
        names = f"the data's are {few(data)}, the model's {few(model)}" if model else "the model has none"
        return same, f"classes are matched by number, for no name agrees: {names}."
    if missing:
        near = [name for name in model if name.startswith(missing[0])] or model  # as the two that are cranes
        raise UserError(
            f"{where}: {len(missing)} of its {len(data)} classes are none of the model's {num_classes}, "
            f"{few(missing)}; rename them or leave them out{suggest(missing[0], near) if model else '.'}"
        )
    first: dict[int, str] = {}
    for name, label in zip(data, found, strict=True):
        if label in first:
            raise UserError(f"{where}: {first[label]!r} and {name!r} are both the model's {model[label]!r}; join them.")
        first[label] = name
    return np.array(found, np.int32), f"classes are matched by name: {len(data)} of the model's {num_classes}."


def _tables(model: Sequence[str]) -> list[tuple[Callable[[str], str], dict[str, int]]]:
    """Return what classes may be called and which each is, the strictest first, each with what is done to a name."""
    numbers = class_names.wordnet_numbers(model)
    parts = [(_plain(part), label) for label, name in enumerate(model) for part in name.split(",")]
    return [
        (str, _unique((name, label) for label, name in enumerate(model))),
        (str, _unique((number, label) for label, number in enumerate(numbers))),
        (_plain, _unique((_plain(name), label) for label, name in enumerate(model))),
        (_plain, _unique(parts)),
    ]


def _unique(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Return a dict without what several classes are called."""
    table: dict[str, int] = {}
    for name, label in pairs:
        table[name] = label if table.get(name, label) == label else -1
    return {name: label for name, label in table.items() if label >= 0}


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def few(names: Sequence[str], shown: int = 3) -> str:
    """Return the first few of many names."""
    return ", ".join(map(repr, names[:shown])) + (", ..." if len(names) > shown else "")
