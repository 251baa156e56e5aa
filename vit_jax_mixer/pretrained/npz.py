"""``.npz`` files: the official Mixer checkpoints, and our own trees."""

import dataclasses
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
from vit_jax_mixer.pretrained.checks import Choose, Flat, Shape, check_dtype, check_shape, everything

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


@dataclasses.dataclass(frozen=True)
class _Header:
    """What stands before the numbers of an array.

    Attributes:
        shape: of the array.
        fortran: whether the first axis runs fastest.
        dtype: of the file.
        skip: bytes before the numbers.
    """

    shape: Shape
    fortran: bool
    dtype: np.dtype
    skip: int


def read(path: Path, choose: Choose = everything) -> Flat:
    """Read an ``.npz`` file; nothing is unpickled, and no more memory is taken than its arrays need.

    Raises:
        UserError: it is none, is damaged, or holds anything but numbers.
    """
    with archive.open_archive(path, "an .npz file of arrays") as opened:
        headers = {}
        for member in opened.namelist():
            name = member.removesuffix(".npy")
            if name == member:
                raise UserError(f"{path} holds {member}, which is no array; give an .npz file that np.savez wrote.")
            headers[name] = _header_of(opened, member, path)
        wanted = choose({name: header.shape for name, header in headers.items()})
        return {new: _array(opened, name, headers[name], path) for new, name in wanted.items()}


def _header_of(opened: zipfile.ZipFile, member: str, path: Path) -> _Header:
    with opened.open(member) as file:
        head = file.read(_MAX_HEADER + 16)
    name = member.removesuffix(".npy")
    try:
        header = _header(io.BytesIO(head))
    except _BAD_HEADER as error:
        raise UserError(
            f"{path}: {name} has no header of an array ({type(error).__name__}); download it again."
        ) from error
    check_shape(name, header.shape, path)
    return header


def _array(opened: zipfile.ZipFile, name: str, header: _Header, path: Path) -> np.ndarray:
    shape, dtype, skip = header.shape, header.dtype, header.skip
    check_dtype(name, dtype, path)
    stored = opened.getinfo(f"{name}.npy").file_size - skip
    if archive.size_of(shape, dtype) != stored:
        raise UserError(
            f"{path}: {name} claims the shape {shape} of {dtype}, but has {stored:,} bytes; it is damaged or a trap."
        )
    data = archive.read_member(opened, f"{name}.npy", stored, skip).view(dtype)
    data = data.reshape(shape[::-1]).T if header.fortran else data.reshape(shape)
    return data if dtype.isnative else data.astype(dtype.newbyteorder("="))


def _header(file: BinaryIO) -> _Header:
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:  # 3 is for fields with names, which weights are not
        raise ValueError(version)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on headers of Python 2, which are read all the same
        shape, fortran, dtype = readers[version](file, max_header_size=_MAX_HEADER)
    if dtype == np.dtype("V2"):  # NumPy has no name for bfloat16 and writes it as two bytes; records are others
        dtype = np.dtype(ml_dtypes.bfloat16)
    return _Header(shape, fortran, dtype, file.tell())


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
