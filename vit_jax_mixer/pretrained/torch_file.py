"""PyTorch's ``.pth`` files without PyTorch, and without running what is in them.

Both layouts are a pickle that describes tensors, and the numbers of their storages beside it:

- the zip archive (PyTorch 1.6 and later): ``NAME/data.pkl``, ``NAME/data/KEY`` for each storage,
  and in newer ones ``NAME/byteorder``;
- the older stream: a magic number, a protocol number, facts about the system, the pickle, the
  list of storage keys (each a small pickle), then for each key an i64 count and its numbers.

`inert_pickle` reads the pickles. Tensors become views of their storages, and only those of the
model's own dict are read.
"""

import dataclasses
import io
import math
import sys
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained import archive, inert_pickle
from vit_jax_mixer.pretrained.checks import Flat, check_dtype
from vit_jax_mixer.pretrained.inert_pickle import OPAQUE, BadPickleError, StandIn
from vit_jax_mixer.pretrained.state_dict import unwrap

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_TYPES: Mapping[str, Any] = {
    "Float": np.float32,
    "Double": np.float64,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
    "ComplexFloat": np.complex64,
    "ComplexDouble": np.complex128,
}


@dataclasses.dataclass(frozen=True)
class Storage:
    """Numbers in a row, of which the file has ``count`` from ``start`` of the storage ``key``."""

    key: str
    dtype: np.dtype
    start: int
    count: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage: element (i, j, ...) is number ``offset + i * strides[0] + ...`` of it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read(path: Path) -> Flat:
    """Return the parameters of a ``.pth`` file by the names that it gives them; see `state_dict.unwrap`.

    Raises:
        UserError: it is no such file, is damaged, holds more than tensors and what may lie beside
            them, or is ambiguous.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if head[257:262] == b"ustar":
        raise UserError(
            f"{path} has PyTorch's first format (a tar file, until 2017), which is not read; save it anew with PyTorch."
        )
    try:
        return _read_zip(path) if head[:4] == b"PK\3\4" else _read_stream(path)
    except BadPickleError as error:
        raise UserError(f"{path} {error}; give a state dict of tensors, from a source that you trust.") from error


def _read_zip(path: Path) -> Flat:
    with archive.open_archive(path, "a .pth file") as opened:
        folder = _folder(opened, path)
        pickled = opened.getinfo(f"{folder}data.pkl")
        if pickled.file_size > inert_pickle.MAX_BYTES:
            raise BadPickleError(f"holds a pickle of {pickled.file_size:,} bytes")
        tree = inert_pickle.load(io.BytesIO(opened.read(pickled)), _KNOWN, partial(_storage, {}))
        order = "little"  # as every file of the time before it was written down
        if f"{folder}byteorder" in opened.NameToInfo:
            order = opened.read(f"{folder}byteorder")[:10].decode("latin1")
        if order not in ("little", "big"):
            raise UserError(f"{path} was written on a machine of the byte order {order!r}; save it anew on another.")

        def numbers(key: str, dtype: np.dtype) -> np.ndarray:
            name = f"{folder}data/{key}"
            if name not in opened.NameToInfo:
                raise BadPickleError("refers to a storage that it does not hold")
            data = archive.read_member(opened, name, opened.getinfo(name).file_size)
            if data.size % dtype.itemsize:
                raise BadPickleError("has a storage that ends within a number")
            if order != sys.byteorder:  # by the size alone, since bfloat16 knows no order
                data.view(f"u{dtype.itemsize}").byteswap(inplace=True)
            return data.view(dtype)

        return _arrays(unwrap(tree, Tensor, path), numbers, path)


def _folder(opened: zipfile.ZipFile, path: Path) -> str:
    names = opened.namelist()
    folders = [name.removesuffix("data.pkl") for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(folders) != 1:
        raise UserError(f"{path} is a zip archive without PyTorch's data.pkl; give a file that torch.save wrote.")
    if any(name.startswith(f"{folders[0]}code/") for name in names):
        raise UserError(
            f"{path} is a TorchScript program, which would have to be run; save its state_dict() with torch.save."
        )
    return folders[0]


def _read_stream(path: Path) -> Flat:
    with path.open("rb") as file:
        try:
            header = [inert_pickle.load(file, {}) for _ in range(3)]
        except BadPickleError as error:
            raise UserError(f"{path} is not a .pth file of either layout; download it again.") from error
        if header[:2] != [_MAGIC, _PROTOCOL]:
            raise UserError(f"{path} is not a .pth file (it does not begin as one); download it again.")
        if isinstance(header[2], dict) and header[2].get("little_endian") is False:
            raise UserError(f"{path} was written on a big-endian machine; save it anew on another.")
        dtypes: dict[str, np.dtype] = {}
        tree = inert_pickle.load(file, _KNOWN, partial(_storage, dtypes))
        keys = inert_pickle.load(file, {})
        if not isinstance(keys, list) or not all(isinstance(key, str) and key in dtypes for key in keys):
            raise BadPickleError("lists storages that its tensors do not have")
        places = _places(file, keys, dtypes, path)

        def numbers(key: str, dtype: np.dtype) -> np.ndarray:
            if key not in places:
                raise BadPickleError("refers to a storage that it does not hold")
            position, count = places[key]
            file.seek(position)
            return np.fromfile(file, dtype, count)

        return _arrays(unwrap(tree, Tensor, path), numbers, path)


def _places(file: BinaryIO, keys: list[str], dtypes: Mapping[str, np.dtype], path: Path) -> dict[str, tuple[int, int]]:
    """Return where each storage's numbers begin in the file, and how many there are."""
    size = path.stat().st_size
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        count = int.from_bytes(file.read(8), "little", signed=True)
        position = file.tell()
        end = position + count * dtypes[key].itemsize
        if count < 0 or end > size or key in places:
            raise UserError(f"{path} ends before its numbers do, or their counts are wrong; download it again.")
        places[key] = position, count
        file.seek(end)
    if file.tell() != size:
        raise UserError(f"{path} goes on for {size - file.tell():,} bytes after its numbers; download it again.")
    return places


def _arrays(tensors: Mapping[str, Tensor], numbers: Callable[[str, np.dtype], np.ndarray], path: Path) -> Flat:
    """Read the storages, each once and whole, and cut the tensors from them."""
    total = sum(archive.size_of(tensor.shape, tensor.storage.dtype) for tensor in tensors.values())
    if total > 2 * path.stat().st_size:  # some tensors are shared, never most of them
        raise UserError(
            f"{path} has {path.stat().st_size:,} bytes and describes {total:,} of tensors; it is damaged or a trap."
        )
    read: dict[str, np.ndarray] = {}
    flat = {}
    for name, tensor in tensors.items():
        storage = tensor.storage
        check_dtype(name, storage.dtype, path)
        if storage.key not in read:
            read[storage.key] = numbers(storage.key, storage.dtype)
        part = read[storage.key][storage.start : storage.start + storage.count]
        if part.size != storage.count:
            raise BadPickleError("describes a storage as longer than it is")
        # `_tensor` has seen to it that this stays inside the part; NumPy does not look.
        strides = [stride * storage.dtype.itemsize for stride in tensor.strides]
        flat[name] = np.lib.stride_tricks.as_strided(part[tensor.offset :], tensor.shape, strides)
    return flat


# --- What the names in a pickle stand for ---


def _natural(*values: Any) -> bool:
    return all(type(value) is int and 0 <= value < 1 << 48 for value in values)


def _storage(dtypes: dict[str, np.dtype], saved: Any) -> Storage:
    """Make a storage of its persistent id, ("storage", type, key, device, count[, (key, start, count)]).

    ``dtypes`` takes each key's type; a storage with two would be read twice.
    """
    if not (isinstance(saved, tuple) and len(saved) in (5, 6) and saved[0] == "storage"):
        raise BadPickleError("refers to something that is no storage")
    kind, key, count = saved[1], saved[2], saved[4]
    if not isinstance(kind, StandIn) or kind.name not in _TYPES or not isinstance(key, str) or not _natural(count):
        raise BadPickleError("describes a storage in a way that PyTorch does not")
    start = 0
    if len(saved) == 6 and saved[5] is not None:  # a part of a storage, as PyTorch had before 0.4
        if not (isinstance(saved[5], tuple) and len(saved[5]) == 3 and _natural(*saved[5][1:])):
            raise BadPickleError("describes a part of a storage in a way that PyTorch does not")
        _, start, count = saved[5]
    dtype = np.dtype(_TYPES[kind.name])
    if dtypes.setdefault(key, dtype) != dtype:
        raise BadPickleError("gives one storage two types")
    return Storage(key, dtype, start, count)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    """Check that every element lies in the storage, and that none is repeated more than there are."""
    if not (isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)):
        raise BadPickleError("describes a tensor in a way that PyTorch does not")
    if len(shape) != len(strides) or len(shape) > 16 or not _natural(offset, *shape, *strides):
        raise BadPickleError("describes a tensor of an impossible shape")
    count = math.prod(shape)
    last = (
        offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True)) if count else offset - 1
    )
    if count > storage.count or last >= storage.count:
        raise BadPickleError("describes a tensor that reaches beyond its storage")
    return Tensor(storage, offset, shape, strides)


def _first(value: Any, *_: Any) -> Any:
    """Return a Parameter's tensor, or the tuple of a ``torch.Size``."""
    return value if isinstance(value, (Tensor, tuple)) else OPAQUE


def _dict(*arguments: Any) -> dict[str, Any]:
    """Make the dict of an OrderedDict, which Python 2 wrote as a list of pairs."""
    if not arguments:
        return {}
    (pairs,) = arguments
    if isinstance(pairs, list) and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        return {key: value for key, value in pairs if isinstance(key, str)}
    raise BadPickleError("describes an OrderedDict in a way that Python does not")


# What lies beside the weights in published files, and is dropped.
_BESIDE = (
    "argparse Namespace, collections defaultdict, collections Counter, pathlib PosixPath, pathlib WindowsPath, "
    "builtins set, __builtin__ set, builtins slice, builtins complex, _codecs encode, torch device, "
    "numpy dtype, numpy.core.multiarray scalar, numpy._core.multiarray scalar"
)
_DTYPES = "float16 float32 float64 bfloat16 int8 int16 int32 int64 uint8 bool half float double int long"
_KNOWN: Mapping[str, StandIn] = {
    "collections OrderedDict": StandIn("OrderedDict", _dict),
    "torch._utils _rebuild_tensor": StandIn("_rebuild_tensor", _tensor),
    "torch._utils _rebuild_tensor_v2": StandIn("_rebuild_tensor_v2", _tensor),
    "torch._utils _rebuild_parameter": StandIn("_rebuild_parameter", _first),
    "torch._utils _rebuild_parameter_with_state": StandIn("_rebuild_parameter_with_state", _first),
    "torch.nn.parameter Parameter": StandIn("Parameter", _first),
    "torch Size": StandIn("Size", _first),
    **{f"{place} {kind}Storage": StandIn(kind) for place in ("torch", "torch.cuda") for kind in _TYPES},
    **{name: StandIn(name) for name in _BESIDE.split(", ")},
    **{f"torch {name}": StandIn(name) for name in _DTYPES.split()},
}
