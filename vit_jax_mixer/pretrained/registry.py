"""The published weights by name: 'Mixer-B/16:imagenet1k'. `published.json` lists them; nothing is loaded at import.

A figure or a hash stands there only if its source was read; what is not known is null.
"""

import dataclasses
import difflib
import functools
import json
import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from vit_jax_mixer.errors import UserError, suggest
from vit_jax_mixer.pretrained import download, hub, progress


@dataclasses.dataclass(frozen=True)
class Published:
    """A file of weights that its authors, or timm, offer.

    Attributes:
        name: of the model, as `models.create` knows it.
        variant: what it was trained on, or how; 'Mixer-B/16:sam' names both.
        family: 'Mixer', 'ResMLP' or 'gMLP'.
        url: where the file is.
        source: who offers it: a repository on GitHub, or 'timm'.
        licence: of the repository, or of the model card; as SPDX has it.
        input_size: (H, W) of the images, in pixels.
        eval_ops: how its authors evaluate it; operations of docs/data.md.
        num_classes: of its head; 0 if that is of no use.
        class_set: 'imagenet1k' or 'imagenet21k', as `class_names` has them; '' for others.
        parameters: how many the model has, head included.
        top1: accuracy on ImageNet's validation images, in percent; None if none was verified.
        top1_from: where that figure stands.
        overrides: fields of the model that differ from those of its name, as ``exact_gelu``.
        size: of the file, in bytes; None if not known, as with the hashes.
        md5: hexadecimal.
        sha256: hexadecimal.
        note: what else one should know.
        copy: where the hub has timm's copy of the same values, for when ``url`` fails; '' if there is none.
    """

    name: str
    variant: str
    family: str
    url: str
    source: str
    licence: str
    input_size: tuple[int, int]
    eval_ops: str
    num_classes: int
    class_set: str
    parameters: int
    top1: float | None
    top1_from: str
    overrides: Mapping[str, Any]
    size: int | None
    md5: str | None
    sha256: str | None
    note: str
    copy: str

    @property
    def reference(self) -> str:
        """Its name and variant, as `find` takes them."""
        return f"{self.name}:{self.variant}"

    @property
    def model(self) -> dict[str, Any]:
        """The fields of `models.create`, but for the number of classes, which the file tells."""
        return {"name": self.name, **self.overrides}

    def fetch(self, *, verify: bool = False) -> Path:
        """Return the file's path in the cache, fetched if it is not there; see `download.fetch`.

        Where its address fails and the hub's library is there, it is the `copy`: other names, the same values.

        Raises:
            UserError: as for `download.fetch`.
        """
        try:
            return download.fetch(self.url, size=self.size, md5=self.md5, sha256=self.sha256, verify=verify)
        except UserError as error:
            try:
                path = hub.fetch(self.copy)
            except UserError:  # there is no copy, no library, or no network
                raise error from None
            progress.say(f"{error}\n{self.reference}: its copy {self.copy} is taken")
            return path


@functools.cache
def published() -> tuple[Published, ...]:
    """Return all of them; a model's first is the one that its name alone stands for."""
    text = resources.files("vit_jax_mixer.pretrained").joinpath("published.json").read_text(encoding="utf-8")
    return tuple(Published(**{**entry, "input_size": tuple(entry["input_size"])}) for entry in json.loads(text))


def find(reference: str) -> Published:
    """Return the weights of that name.

    Args:
        reference: 'Mixer-B/16:imagenet21k'; without a variant, the model's first is taken.

    Raises:
        UserError: the name or the variant is not known, with the nearest that is.
    """
    name, colon, variant = reference.partition(":")
    named = {entry.variant: entry for entry in published() if entry.name == name}
    if not named:
        names = {entry.name for entry in published()}
        raise UserError(f"there are no published weights {reference!r}{suggest(name, names)}")
    if colon and variant not in named:
        raise UserError(f"there are no published weights {reference!r}{suggest(variant, named)}")
    return named[variant] if colon else next(iter(named.values()))


def lookup(reference: str) -> Published | None:
    """Return the weights that a reference or an address names, or None where it names something else, as a path.

    A path that exists is always that path.

    Raises:
        UserError: it has the form of a reference, NAME:VARIANT, or is much like one, and is not known.
    """
    if os.path.exists(os.path.expanduser(reference)):
        return None
    names = {entry.name for entry in published()}
    if reference.partition(":")[0] in names or re.fullmatch(r"[A-Za-z]+-[A-Z]\d*(/\d+)?:\w*", reference):
        return find(reference)
    if near := difflib.get_close_matches(reference, names, n=1, cutoff=0.8):
        raise UserError(f"there is no file {reference}; did you mean the published weights {near[0]!r}?")
    return next((entry for entry in published() if entry.url == reference), None)
