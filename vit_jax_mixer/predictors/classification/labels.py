"""Which of a model's classes the classes of a dataset are."""

from collections.abc import Sequence

import numpy as np

from vit_jax_mixer import classes
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained import class_names

WAY_ON = ", or pass --by_number if the model numbers them so"


def match(
    data: Sequence[str], model: Sequence[str], num_classes: int, where: str, by_number: bool = False
) -> tuple[np.ndarray, str]:
    """Return the model's class for each class of the data, and a sentence that says how they were matched.

    They are matched by name, and that is the model's own; the WordNet number of a published head's
    class, as n01443537; or one of its several names, as goldfish of 'goldfish, Carassius auratus'.
    Whole numbers are matched by value. Where the very name is not found, capitals, underscores,
    blanks and the Unicode form do not count. The names of a model without any are its numbers, and
    where all the numbers from 0 are the data's names, and none the model's, those are meant too.

    Args:
        data: the names of the data's classes.
        model: those of the model's classes; empty if they have none.
        num_classes: how many the model has.
        where: the dataset, for messages.
        by_number: names do not count.

    Returns:
        i32[len(data)], and '' if the classes are the same in the same order.

    Raises:
        UserError: some or all are not the model's, or two are the same.
    """
    numbers = tuple(map(str, range(num_classes)))
    names = tuple(model) or numbers
    if tuple(data) == names:
        return np.arange(num_classes, dtype=np.int32), ""
    classes.check_distinct(data, where)
    values = [classes.number(name) for name in data]
    if by_number:
        given = data if None not in values else numbers[: len(data)]
        if len(data) > num_classes:
            raise UserError(f"{where} has {len(data)} classes, the model {num_classes}; leave out --by_number.")
        return _by_number(given, numbers, where, "as --by_number says")
    if set(values) == set(range(num_classes)) and all(classes.number(name) is None for name in names):
        return _by_number(data, numbers, where, "since the data's are numbers")
    found = classes.match(data, names, where, "the model's", _others(model), WAY_ON)
    pairs = [(name, names[place]) for name, place in zip(data, found, strict=True)]
    looser = [(a, b) for a, b in pairs if a != b and classes.form(a) == classes.form(b)]
    return found, f"classes are matched by name: {len(data)} of the model's {num_classes}{_told(looser)}."


def _by_number(data: Sequence[str], numbers: Sequence[str], where: str, why: str) -> tuple[np.ndarray, str]:
    return classes.match(data, numbers, where, "the model's"), f"classes are matched by number, {why}."


def _told(looser: Sequence[tuple[str, str]]) -> str:
    """Tell of names that look the same and are not."""
    if not looser:
        return ""
    return f"; {len(looser)} differ in blanks or Unicode form, as {looser[0][0]!a} and {looser[0][1]!a}"


def _others(model: Sequence[str]) -> list[classes.Table]:
    """Return what else classes may be called, the strictest first."""
    parts = [(part, place) for place, name in enumerate(model) for part in name.split(",")]
    return [
        classes.table(class_names.wordnet_numbers(model), _plain),
        classes.table(model, _plain),
        classes.table([part for part, _ in parts], _plain, [place for _, place in parts]),
    ]


def _plain(name: str) -> str:
    return " ".join(classes.form(name).replace("_", " ").casefold().split())
