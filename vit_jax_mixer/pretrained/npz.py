"""``.npz`` files: the official Mixer checkpoints, and our own trees."""

import io
import tokenize
import warnings
import zipfile
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np

from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained import archive
from vit_jax_mixer.pretrained.checks import Flat, check_dtype

_MAX_HEADER = 10_000  # bytes; NumPy's own limit for files that are not trusted
# What NumPy raises on headers that are none.
_BAD_HEADER = (
    ValueError,
    SyntaxError,
    tokenize.TokenError,
    TypeError,
    EOFError,
    MemoryError,
    RecursionError,
    OverflowError,
)


def read(path: Path) -> Flat:
    """Read an ``.npz`` file; nothing is unpickled, and no more memory is taken than its arrays need.

    Raises:
        UserError: it is none, is damaged, or holds anything but numbers.
    """
    flat = {}
    with archive.open_archive(path, "an .npz file of arrays") as opened:
        for member in opened.namelist():
            name = member.removesuffix(".npy")
            if name == member:
                raise UserError(f"{path} holds {member}, which is no array; give an .npz file that np.savez wrote.")
            flat[name] = _array(opened, member, name, path)
    return flat


def _array(opened: zipfile.ZipFile, member: str, name: str, path: Path) -> np.ndarray:
    with opened.open(member) as file:
        head = file.read(_MAX_HEADER + 16)
    try:
        shape, fortran, dtype, skip = _header(io.BytesIO(head))
    except _BAD_HEADER as error:
        raise UserError(
            f"{path}: {name} has no header of an array ({type(error).__name__}); download it again."
        ) from error
    if dtype.str == "|V2":  # NumPy has no name for bfloat16 and writes it as two bytes
        dtype = np.dtype(ml_dtypes.bfloat16)
    check_dtype(name, dtype, path)
    if any(side < 0 for side in shape) or archive.size_of(shape, dtype) + skip != opened.getinfo(member).file_size:
        raise UserError(
            f"{path}: {name} claims the shape {_short(shape)} of {dtype}, but has "
            f"{opened.getinfo(member).file_size - skip:,} bytes; it is damaged or a trap."
        )
    data = archive.read_member(opened, member, archive.size_of(shape, dtype), skip).view(dtype)
    data = data.reshape(shape[::-1]).T if fortran else data.reshape(shape)
    return data if dtype.isnative else data.astype(dtype.newbyteorder("="))


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Return (shape, whether the first axis runs fastest, dtype, bytes before the data)."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:  # 3 is for fields with names, which weights are not
        raise ValueError(version)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on headers of Python 2, which are read all the same
        shape, fortran, dtype = readers[version](file, max_header_size=_MAX_HEADER)
    if len(shape) > 16:
        raise ValueError(shape)
    return shape, fortran, dtype, file.tell()


def _short(shape: tuple[int, ...]) -> str:
    return str(shape) if len(str(shape)) < 80 else f"{str(shape)[:76]}..."


def write(path: Path, flat: Flat) -> None:
    """Write an ``.npz`` file, uncompressed, the same bytes for the same arrays."""
    with zipfile.ZipFile(path, "w") as opened:
        for name, value in flat.items():
            value = np.ascontiguousarray(value) if value.ndim else value
            if value.dtype == ml_dtypes.bfloat16:
                value = value.view("V2")
            member = zipfile.ZipInfo(f"{name}.npy")  # dated 1980
            with opened.open(member, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, value, version=(1, 0), allow_pickle=False)
