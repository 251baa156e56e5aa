"""What must hold of weights, whatever file they come from."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from vit_jax_mixer.errors import UserError

Flat = dict[str, np.ndarray]
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
# Given the shapes of all arrays of a file, returns those that are wanted: their names in it, by new ones.
Choose = Callable[[Shapes], Mapping[str, str]]
MAX_ARRAYS = 50_000  # in a file; Mixer-H/14 has 390, with optimizer and mean four times as many
_MAY_BE_HOLES = 1 << 30  # bytes; what is small does no harm, and may be on its way to the disk
MAX_AXES = 16
MAX_SIDE = 2**31 - 1  # of any axis that JAX can index
FLOATS = tuple(map(np.dtype, (np.float32, np.float16, np.float64, ml_dtypes.bfloat16)))


def everything(shapes: Shapes) -> dict[str, str]:
    """Choose all arrays, with the names that they have."""
    return {name: name for name in shapes}


def check_count(count: int, path: os.PathLike[str]) -> None:
    """Refuse more arrays than any model has; each takes time, however small it is.

    Raises:
        UserError: there are more.
    """
    if count > MAX_ARRAYS:
        raise UserError(f"{path} names {count:,} arrays, more than the {MAX_ARRAYS:,} of any model; it is a trap.")


def check_whole(descriptor: int, path: os.PathLike[str]) -> None:
    """Refuse a large file of holes, whose size promises zeros that nobody wrote.

    Raises:
        UserError: less than a twentieth of it is on the disk.
    """
    status = os.fstat(descriptor)
    kept = getattr(status, "st_blocks", None)  # of 512 bytes, whatever the disk's are
    if kept is not None and status.st_size > max(_MAY_BE_HOLES, 20 * 512 * kept):
        raise UserError(
            f"{path} has {status.st_size:,} bytes, of which {512 * kept:,} are on the disk; it is damaged or a trap."
        )


def check_shape(name: str, shape: Any, path: os.PathLike[str]) -> None:
    """Refuse a shape that no array has.

    Raises:
        UserError: it has too many axes, or a size that is no whole number from 0 to `MAX_SIDE`.
    """
    if len(shape) > MAX_AXES or not all(type(side) is int and 0 <= side <= MAX_SIDE for side in shape):
        text = str(shape) if all(abs(side) < 1 << 64 for side in shape) else "of huge numbers"
        text = text if len(text) < 80 else f"{text[:76]}..."
        raise UserError(f"{path}: {name} claims the shape {text}, which no array has; it is damaged or a trap.")


def check_dtype(name: str, dtype: np.dtype, path: os.PathLike[str]) -> None:
    """Refuse what is no float of 16, 32 or 64 bits, in either byte order.

    Raises:
        UserError: the sentence names the parameter and its type.
    """
    if dtype.newbyteorder("=") not in FLOATS:
        raise UserError(f"{path}: {name} has type {_plain(dtype)}, not float; is it a checkpoint?")


def _plain(dtype: np.dtype) -> str:
    return f"{str(dtype)[:60]}" if dtype.names is None else "of records"


def check_finite(flat: Mapping[str, np.ndarray], path: os.PathLike[str]) -> None:
    """Refuse weights that are NaN or infinite: nothing good ever comes out of them.

    Raises:
        UserError: the sentence names the first parameter and says how many of its values are bad.
    """
    for name, value in flat.items():
        # A sum of squares is finite only if every value is; no check is cheaper, in time or memory.
        # Those of finite values may overflow; then they are looked at one by one.
        values = value.ravel("K")  # a view, but for odd strides
        with np.errstate(all="ignore"):
            total = np.dot(values, values)
        if not np.isfinite(total):
            bad = int(value.size - np.count_nonzero(np.isfinite(value)))
            if bad:
                raise UserError(
                    f"{path}: {name} holds NaN or infinity ({bad:,} of {value.size:,} values), "
                    "as a run that diverged leaves it; give another checkpoint."
                )
