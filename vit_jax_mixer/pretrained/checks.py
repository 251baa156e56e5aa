"""What must hold of weights, whatever file they come from."""

import os
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from vit_jax_mixer.errors import UserError

Flat = dict[str, np.ndarray]
FLOATS = tuple(map(np.dtype, (np.float32, np.float16, np.float64, ml_dtypes.bfloat16)))


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
