"""Published weights, in our names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import traverse_util

from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained import download, formats, names, registry, resize

Tree = dict[str, Any]
Shape = tuple[int, ...]
OURS = "ours"  # the convention of what has our names and is of no published family
_ROWS = 20  # of the table in `fill`


def load(path: str | Path) -> Tree:
    """Read the parameters of a checkpoint, whatever its format, into our names; nothing in it is run.

    Args:
        path: an official Mixer ``.npz``, a timm ``.safetensors``, a PyTorch ``.pth``, a workdir, or
            any other that `formats` lists; or what `locate` fetches.

    Raises:
        UserError: the file is missing, damaged, hostile, or holds no parameters of a known model.
    """
    return read(path)[0]


def read(path: str | Path) -> tuple[Tree, str]:
    """Return the parameters in our names, and the convention of the names in the file."""
    flat = formats.read(locate(path))
    try:
        convention = names.detect(flat, str(path))
    except UserError:
        # A tree of ours without a table; other names have dots.
        if not any("/" in name for name in flat):
            raise
        return _nested(flat, path), OURS
    return names.to_ours(flat, convention, str(path)), convention


def locate(reference: str | Path) -> Path:
    """Return the path of weights: of published ones, as 'Mixer-B/16:imagenet1k', or from an address, in the cache.

    Args:
        reference: a path, which counts if it exists; an address (``https://``, ``http://``, ``gs://``),
            or a name that `registry.find` knows. What is not in the cache is fetched.

    Raises:
        UserError: it is much like a published name and is none, or cannot be fetched. A path that
            does not exist comes back as it is.
    """
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
    family = names.FAMILY[conventions[0]] if conventions else ""
    convention = _convention(family, suffix, to)
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
        return wanted if wanted in names.FAMILY else OURS
    wanted = f"timm_{family}" if to == "timm" else official.get(family, "")
    if wanted not in names.FAMILY:
        raise UserError(f"{family or 'this model'} has no {to} names; leave out --to for ours.")
    return wanted
