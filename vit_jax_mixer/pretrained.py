"""Published weights, in our names."""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vit_jax_mixer.errors import UserError

Tree = dict[str, Any]


def load(path: str | Path) -> Tree:
    """Read the parameters of an official ``.npz`` file, as Mixer-B_16.npz; nothing is unpickled.

    Raises:
        UserError: the file is missing, is no such file, or holds anything but numbers.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"there is no file {path}; give the path of a downloaded .npz checkpoint.")
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            flat = {name: file[name] for name in file.files}
        tree = traverse_util.unflatten_dict(flat, sep="/")
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is not an .npz file of arrays ({error}); download it again.") from error
    for name, value in flat.items():
        if not np.issubdtype(value.dtype, np.floating):
            raise UserError(f"{path}: {name} has type {value.dtype}, not float; is it a checkpoint?")
    return tree


def fill(params: Tree, loaded: Tree, *, new: Sequence[str], where: str) -> Tree:
    """Return ``params`` with the values of ``loaded``, but for the top-level names in ``new``.

    Raises:
        UserError: a parameter is missing in ``loaded``, is not in ``params``, or has another
            shape; the sentence names the first and says how many there are.
    """
    ours = _flat({k: v for k, v in params.items() if k not in new})
    theirs = _flat({k: v for k, v in loaded.items() if k not in new})
    problems = [f"{name} is missing in the file" for name in ours if name not in theirs]
    problems += [f"{name} is not in the model" for name in theirs if name not in ours]
    problems += [
        f"{name} has shape {theirs[name].shape} in the file and {ours[name].shape} in the model"
        for name in ours
        if name in theirs and theirs[name].shape != ours[name].shape
    ]
    if problems:
        more = f" (and {len(problems) - 1} more such)" if len(problems) > 1 else ""
        raise UserError(
            f"{where} does not fit config.model: {problems[0]}{more}; choose the model or image size it has."
        )
    kept = {k: params[k] for k in new if k in params}
    values = {name: jnp.asarray(theirs[name], ours[name].dtype) for name in ours}
    return {**traverse_util.unflatten_dict(values, sep="/"), **kept}


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    return traverse_util.flatten_dict(dict(tree), sep="/")
