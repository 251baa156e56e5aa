"""The classes of published heads, in the order of their logits.

The files in ``classes/`` have a line for each: its WordNet number, a tab, its names. They are the
synsets of ImageNet-1k, and the 21,843 of the ImageNet-21k that the Mixers were trained on, with
the words of WordNet 3.0 (Copyright 2006 by Princeton University, WordNet 3.0 licence).
"""

import collections
import functools
from collections.abc import Sequence
from importlib import resources

SETS = ("imagenet1k", "imagenet21k")


@functools.cache
def of(class_set: str) -> tuple[str, ...]:
    """Return the names of a set of classes, one for each; none for ''.

    Two classes of the same name, as the crane that is a bird and the one that lifts, have their
    WordNet numbers added.
    """
    if not class_set:
        return ()
    rows = _rows(class_set)
    count = collections.Counter(names for _, names in rows)
    return tuple(names if count[names] == 1 else f"{names} ({number})" for number, names in rows)


def wordnet_numbers(class_names: Sequence[str]) -> tuple[str, ...]:
    """Return the WordNet numbers, as n01440764, of the classes of a published head; none where it is none of `SETS`."""
    known = [class_set for class_set in SETS if of(class_set) == tuple(class_names)]
    return tuple(number for number, _ in _rows(known[0])) if known else ()


def _rows(class_set: str) -> list[list[str]]:
    """Return (WordNet number, names) of each class."""
    assert class_set in SETS
    text = (resources.files("vit_jax_mixer.pretrained") / f"classes/{class_set}.txt").read_text(encoding="utf-8")
    return [line.split("\t") for line in text.splitlines()]
