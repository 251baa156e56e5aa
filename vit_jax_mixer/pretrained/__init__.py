"""Published weights, in our names."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import traverse_util

from vit_jax_mixer.checkpoints import checksums
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained import (
    download,
    folder,
    formats,
    hub,
    name_tables,
    names,
    progress,
    registry,
    resize,
    trees,
)

Tree = dict[str, Any]
Shape = tuple[int, ...]
OURS = "ours"  # the convention of what has our names and is of no published family
DESCRIPTION = "model.json"  # beside our own weights; `predictors`
_ROWS = 20  # of the table in `fill`


@dataclasses.dataclass(frozen=True)
class Weights:
    """The parameters of a checkpoint.

    Attributes:
        tree: in our names.
        convention: of the names in the file.
        origin: what of the file they are, as 'step 500, the newest'; '' where there was nothing to choose.
        step: of a workdir's checkpoint.
        activation: of the model, which no name tells; of a file without a model.json, what its family has.
    """

    tree: Tree
    convention: str
    origin: str = ""
    step: int | None = None
    activation: str = "gelu"


def load(reference: str | Path) -> Tree:
    """Return the parameters that `read` finds, and tell what they are where there was a choice."""
    weights = read(reference)
    if weights.origin:
        progress.say(f"{reference}: {weights.origin}")
    return weights.tree


def read(reference: str | Path) -> Weights:
    """Read the parameters of a checkpoint, whatever its format, into our names; nothing in it is run.

    Args:
        reference: an official Mixer ``.npz``, a timm ``.safetensors``, a PyTorch ``.pth``, a workdir, or
            any other that `formats` lists; or what `locate` fetches. ``#TREE`` after it asks for one of
            several trees of parameters, as ``run#raw`` (`trees`); ``run#last5``, or ``run#last5/raw``, for
            the mean of the last five checkpoints of a workdir.

    Raises:
        UserError: the file is missing, damaged, hostile, or holds no parameters of a known model.
    """
    plain, tree = trees.split(reference)
    last, tree = trees.last(tree)
    path = locate(plain)
    description = folder.run_of(path) / DESCRIPTION
    described = description.is_file()  # then no names are guessed
    about = checksums.read_json(description, may_lack_it=True) if described else {}
    published, model = about.get("published", ""), about.get("model", {})
    if not isinstance(published, str) or not isinstance(model, dict):
        raise UserError(f"{description} is damaged (its field published is no text, or model no object); restore it.")
    chooser = trees.Chooser(str(path), tree, ours=described, published=published)
    flat, place = formats.read_from(path, chooser, last)
    convention = _convention_of(flat, str(path), ours=described)
    ours = convention == OURS or name_tables.CONVENTIONS[convention].native
    found = _nested(flat, path) if ours else names.to_ours(flat, convention, str(path))
    said = "; ".join(filter(None, [place.why, chooser.said]))
    return Weights(found, convention, said, place.step, str(model.get("activation", "gelu")))


def _convention_of(flat: Mapping[str, Any], where: str, *, ours: bool) -> str:
    """Return the convention of the names in a file; `OURS` where they are ours and of no table."""
    if ours:
        # Runs of before the MnistMixer's blocks had a name of their own.
        old = name_tables.CONVENTIONS["mnist_mixer_old"]
        is_old = "head/Dense_0/kernel" in flat and all(old.read(name) for name in flat)
        fitting = names.conventions_of(traverse_util.unflatten_dict(flat, sep="/"))
        own = (name for name in fitting if name_tables.CONVENTIONS[name].native)  # not the names of others for the same
        return "mnist_mixer_old" if is_old else next(own, OURS)
    try:
        return names.detect(flat, where)
    except UserError:
        # A tree of ours without a table; other names have dots.
        if not any("/" in name for name in flat):
            raise
        return OURS


def locate(reference: str | Path) -> Path:
    """Return the path of weights: of published ones, as 'Mixer-B/16:imagenet1k', or from an address, in the cache.

    Args:
        reference: a path, which counts if it exists; an address (``https://``, ``http://``, ``gs://``), a repository
            on the hub (``hf:OWNER/NAME``), or a name that `registry.find` knows. What is not in the cache is fetched.

    Raises:
        UserError: it is much like a published name and is none, or cannot be fetched. A path that
            does not exist comes back as it is.
    """
    if isinstance(reference, str) and hub.is_reference(reference) and not os.path.exists(reference):
        return hub.fetch(reference)
    published = registry.lookup(str(reference))
    if published:
        return published.fetch()
    if isinstance(reference, str) and download.is_address(reference):
        return download.fetch(reference)
    return Path(reference).expanduser()


def fill(params: Tree, loaded: Tree, *, new: Sequence[str], where: str) -> Tree:
    """Return ``params`` with the values of ``loaded``, but for the top-level names in ``new``.

    Raises:
        UserError: a parameter is missing in ``loaded``, is not in ``params``, or has another
            shape; below the sentence, a table lists them.
    """
    ours = flatten({k: v for k, v in params.items() if k not in new})
    theirs = flatten({k: v for k, v in loaded.items() if k not in new})
    shapes = {name: (_shape(theirs, name), _shape(ours, name)) for name in [*ours, *theirs]}
    misfits = [(name, *pair) for name, pair in shapes.items() if pair[0] != pair[1]]
    if misfits:
        hint = f", {resize.HINT}" if resize.differ_in_size(misfits) else ""
        raise UserError(
            f"{where} does not fit config.model: {len(misfits)} of {len(shapes)} parameters are extra, missing or "
            f"misshapen; choose the model or image size it has{hint}.\n{_table(misfits)}"
        )
    kept = {k: params[k] for k in new if k in params}
    values = {name: jnp.asarray(theirs[name], ours[name].dtype) for name in ours}
    return {**traverse_util.unflatten_dict(values, sep="/"), **kept}


def _shape(arrays: Mapping[str, Any], name: str) -> Shape | None:
    return tuple(arrays[name].shape) if name in arrays else None


def _table(rows: list[tuple[str, Shape | None, Shape | None]]) -> str:
    """Return aligned lines, with a count in the place of those beyond the first few."""
    shown = [(name, *("absent" if shape is None else str(shape) for shape in shapes)) for name, *shapes in rows[:_ROWS]]
    lines = [("parameter", "in the file", "in the model"), *shown]
    widths = [max(len(line[i]) for line in lines) for i in range(2)]
    text = [f"  {name:<{widths[0]}}  {file:<{widths[1]}}  {model}" for name, file, model in lines]
    if len(rows) > _ROWS:
        text.append(f"  ... and {len(rows) - _ROWS} more")
    return "\n".join(text)


def _nested(flat: Mapping[str, Any], path: str | Path) -> Tree:
    inner = {name[:i] for name in flat for i, letter in enumerate(name) if letter == "/"}
    if clash := inner & flat.keys():
        raise UserError(f"{path}: {min(clash)} is a parameter, and also the beginning of others; is it a checkpoint?")
    return traverse_util.unflatten_dict(flat, sep="/")


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves by name, with '/' between its parts."""
    return traverse_util.flatten_dict(dict(tree), sep="/")


def rename(tree: Tree, suffix: str, to: str | None = None) -> tuple[dict[str, Any], str, str]:
    """Return parameters of ours in the names for a file of that suffix, their family, and the convention.

    Raises:
        UserError: the family has no such names.
    """
    conventions = names.conventions_of(tree)
    family = name_tables.FAMILY[conventions[0]] if conventions else ""
    convention = _convention(family, suffix, to)
    if to is None and convention not in conventions:  # as of a model of a user's own, with some of a family's names
        convention = OURS
    flat = names.from_ours(tree, convention) if convention != OURS else flatten(tree)
    return flat, family, convention


def _convention(family: str, suffix: str, to: str | None) -> str:
    """Return the convention in which a family is written to a file of that suffix."""
    if suffix == "":
        if to:
            raise UserError("a folder of Orbax holds our own names; leave out --to, or name a file.")
        return family or OURS
    official = {"mixer": "mixer", "resmlp": "official_resmlp"}
    if to is None:  # of the families only the Mixer has official names that are JAX's
        wanted = f"timm_{family}" if suffix == ".safetensors" else family
        return wanted if wanted in name_tables.FAMILY else OURS
    wanted = f"timm_{family}" if to == "timm" else official.get(family, "")
    if wanted not in name_tables.FAMILY:
        raise UserError(f"{family or 'this model'} has no {to} names; leave out --to for ours.")
    return wanted
