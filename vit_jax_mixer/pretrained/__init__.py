"""Published weights, in our names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import traverse_util

from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained import formats, names

Tree = dict[str, Any]
OURS = "ours"  # the convention of what has our names and is of no published family
_ROWS = 20  # of the table in `fill`


def load(path: str | Path) -> Tree:
    """Read the parameters of a checkpoint, whatever its format, into our names; nothing in it is run.

    Args:
        path: an official Mixer ``.npz``, a timm ``.safetensors``, a PyTorch ``.pth``, a workdir, or
            any other that `formats` lists.

    Raises:
        UserError: the file is missing, damaged, hostile, or holds no parameters of a known model.
    """
    return read(path)[0]


def read(path: str | Path) -> tuple[Tree, str]:
    """Return the parameters in our names, and the convention of the names in the file."""
    flat = formats.read(path)
    try:
        convention = names.detect(flat, str(path))
    except UserError:
        # A tree of ours without a table, as a MnistMixer's; other names have dots.
        if not any("/" in name for name in flat):
            raise
        return _nested(flat, path), OURS
    return names.to_ours(flat, convention, str(path)), convention


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
        raise UserError(
            f"{where} does not fit config.model: {len(misfits)} of {len(shapes)} parameters are extra, missing or "
            f"misshapen; choose the model or image size it has.\n{_table(misfits)}"
        )
    kept = {k: params[k] for k in new if k in params}
    values = {name: jnp.asarray(theirs[name], ours[name].dtype) for name in ours}
    return {**traverse_util.unflatten_dict(values, sep="/"), **kept}


def _shape(arrays: Mapping[str, Any], name: str) -> str:
    return str(tuple(arrays[name].shape)) if name in arrays else "absent"


def _table(rows: list[tuple[str, str, str]]) -> str:
    """Return aligned lines, with a count in the place of those beyond the first few."""
    lines = [("parameter", "in the file", "in the model"), *rows[:_ROWS]]
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
