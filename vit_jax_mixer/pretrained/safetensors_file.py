"""``.safetensors`` files: those of timm, and our own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained import archive
from vit_jax_mixer.pretrained.checks import Choose, Flat, check_count, check_shape, everything

_MAX_HEADER = 1 << 24  # bytes; Mixer-H/14 needs 50,000
_FLOATS = ("F64", "F32", "F16", "BF16")


def read(path: Path, choose: Choose = everything) -> Flat:
    """Read a ``.safetensors`` file.

    Raises:
        UserError: it is none, is damaged, or holds anything but floats.
    """
    _check_header(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 # it is no dict
            shapes = {name: tuple(each.get_shape()) for name, each in slices.items()}
            for name, shape in shapes.items():
                archive.check_name(name, path)
                check_shape(name, shape, path)
            flat = {}
            for new, name in choose(shapes).items():
                kind = slices[name].get_dtype()
                if kind not in _FLOATS:
                    raise UserError(f"{path}: {name} has type {kind}, not float; is it a checkpoint?")
                flat[new] = file.get_tensor(name)
            return flat
    except (safetensors.SafetensorError, OSError, OverflowError, MemoryError, TypeError) as error:
        raise UserError(f"{path} is not a .safetensors file ({_line(error)}); download it again.") from error


def _check_header(path: Path) -> None:
    """Look at the header's length and for names given twice or too many; the library checks the rest."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, _MAX_HEADER):
            raise UserError(
                f"{path} has {size:,} bytes and promises a header of {length:,}; "
                "it is no .safetensors file, or cut short: download it again."
            )
        header = file.read(length)
    try:
        check_count(len(json.loads(header, object_pairs_hook=_unique)), path)
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not a .safetensors file ({_line(error)}); download it again.") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("a name is given twice in its header")
    return names


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def write(path: Path, flat: Flat) -> None:
    """Write a ``.safetensors`` file with the mark that PyTorch's readers ask for."""
    # The library takes the memory as it lies, and so must not be given views of another order.
    arrays = {name: np.ascontiguousarray(value).reshape(value.shape) for name, value in flat.items()}
    # Not by its `save_file`, whose files nobody else may read (mode 0600).
    path.write_bytes(safetensors.numpy.save(arrays, metadata={"format": "pt"}))
