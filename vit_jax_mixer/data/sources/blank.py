"""Blank images and sentences of any size: for what needs a dataset's shape and not its content."""

import dataclasses
import functools
import re
from typing import Any

import numpy as np

from vit_jax_mixer.data.sources.base import Source, Splits
from vit_jax_mixer.errors import UserError

_CLASSES, _PIXELS = 1 << 20, 1 << 26  # that many pixels are decoded of others' files, too


@dataclasses.dataclass(frozen=True)
class _Blanks:
    """Images u8[H, W, C], all grey."""

    shape: tuple[int, int, int]
    classes: int
    name: str
    count: int = 1024

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(self.count)[index]
        image = {"image": np.full(self.shape, 128, np.uint8)}
        return {**image, "label": index % self.classes} if self.classes else image

    def where(self, index: int) -> str:
        """Say where an example comes from."""
        return f"{self.name}, image {index}"


def open_blank(place: str) -> Splits:
    """Return the splits train, validation and test of ``CLASSES[,HxWxC]``, as ``1000`` or ``10,28x28x1``.

    Those of 0 classes have no labels.
    """
    match = re.fullmatch(r"([0-9]{1,9})(?:,([0-9]{1,9})x([0-9]{1,9})x([13]))?", place)
    classes, *shape = (int(n or 0) for n in match.groups()) if match else (0, 0)
    if not match or (not all(shape) and any(shape)):
        raise UserError(
            f"blank:{place[:40]} is not of the form blank:CLASSES or blank:CLASSES,HxWxC, as blank:10,28x28x1."
        )
    height, width, channels = shape if all(shape) else (256, 256, 3)
    if classes > _CLASSES or height * width > _PIXELS:
        raise UserError(
            f"blank:{place} has {classes:,} classes and images of {height * width:,} pixels; at most {_CLASSES:,} "
            f"classes and {_PIXELS:,} pixels are made."
        )
    names = tuple(str(i) for i in range(classes))
    blanks = _Blanks((height, width, channels), classes, f"blank:{place}")
    lack = "" if classes else f"blank:{place} has none; name a number of classes, as blank:1000."
    source = functools.partial(Source, blanks, names, blanks.where, unlabelled=lack)
    return dict.fromkeys(("train", "validation", "test"), source)


@dataclasses.dataclass(frozen=True)
class _BlankPairs:
    """Pairs of sentences of ``length - 1`` words, of a vocabulary of so many pieces, each of which occurs."""

    pieces: int
    length: int

    def __len__(self) -> int:
        return max(-(-self.pieces // (self.length - 1)), 64)

    def __getitem__(self, index: int) -> dict[str, str]:
        first = range(len(self))[index] * (self.length - 1)
        words = (np.base_repr((first + i) % self.pieces, 36) for i in range(self.length - 1))
        return dict.fromkeys(("source", "target"), " ".join(words))

    def where(self, index: int) -> str:
        """Say where an example comes from."""
        return f"blank_pairs:{self.pieces},{self.length}, pair {index}"


def open_blank_pairs(place: str) -> Splits:
    """Return the split train of ``PIECES,LENGTH``, as ``32000,256``, whose vocabulary is ``word(PIECES)``."""
    match = re.fullmatch(r"([0-9]{1,6}),([0-9]{1,5})", place)
    pieces, length = map(int, match.groups()) if match else (0, 0)
    if pieces < 8 or length < 2:
        raise UserError(
            f"blank_pairs:{place[:40]} is not of the form blank_pairs:PIECES,LENGTH, as blank_pairs:8000,64."
        )
    pairs = _BlankPairs(pieces, length)
    return {"train": functools.partial(Source, pairs, (), pairs.where)}
