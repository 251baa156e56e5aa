"""Blank images of any number, size and classes: for what needs a dataset's shape and not its pictures."""

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
