"""PyTorch's ``.pth`` files without PyTorch, and without running what is in them.

Both layouts are a pickle that describes tensors, and the numbers of their storages beside it:

- the zip archive (PyTorch 1.6 and later): ``NAME/data.pkl``, ``NAME/data/KEY`` for each storage,
  and in newer ones ``NAME/byteorder``;
- the older stream: a magic number, a protocol number, facts about the system, the pickle, the
  list of storage keys (each a small pickle), then for each key an i64 count and its numbers.

`inert_pickle` reads the pickles. Tensors become views of their storages, and only those that are
wanted are read.
"""

import io
import sys
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained import archive, inert_pickle, torch_objects
from vit_jax_mixer.pretrained.archive import check_name
from vit_jax_mixer.pretrained.checks import Choose, Flat, check_count, check_dtype, check_shape, everything
from vit_jax_mixer.pretrained.inert_pickle import BadPickleError
from vit_jax_mixer.pretrained.torch_objects import KNOWN, Tensor

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DEPTH = 8  # of dicts in dicts; one may hold itself
_LONGEST_KEY = 1001  # characters; what is longer is no name (`archive.check_name`)


def read(path: Path, choose: Choose = everything) -> Flat:
    """Return the tensors of a ``.pth`` file by the names that it gives them; those in a dict have "DICT/" before.

    Raises:
        UserError: it is no such file, is damaged, or holds more than tensors and what may lie beside them.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if head[257:262] == b"ustar":
        raise UserError(
            f"{path} has PyTorch's first format (a tar file, until 2017), which is not read; save it anew with PyTorch."
        )
    try:
        return (_read_zip if head[:4] == b"PK\3\4" else _read_stream)(path, choose)
    except BadPickleError as error:
        raise UserError(f"{path} {error}; give a state dict of tensors, from a source that you trust.") from error


def _read_zip(path: Path, choose: Choose) -> Flat:
    with archive.open_archive(path, "a .pth file") as opened:
        folder = _folder(opened, path)
        pickled = opened.getinfo(f"{folder}data.pkl")
        if pickled.file_size > inert_pickle.MAX_BYTES:
            raise BadPickleError(f"holds a pickle of {pickled.file_size:,} bytes")
        tree = inert_pickle.load(
            io.BytesIO(opened.read(pickled)), KNOWN, partial(torch_objects.storage, {}), _steps(path)
        )
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

        return _arrays(_chosen(tree, choose, path), numbers, path)


def _steps(path: Path) -> int:
    """Return how many steps a pickle in an archive may have: compressed ones are short, and weights lie beside them."""
    return min(inert_pickle.MAX_OPCODES, 10_000 + 20 * path.stat().st_size)


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


def _read_stream(path: Path, choose: Choose) -> Flat:
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
        tree = inert_pickle.load(file, KNOWN, partial(torch_objects.storage, dtypes))
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

        return _arrays(_chosen(tree, choose, path), numbers, path)


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


def _chosen(tree: Any, choose: Choose, path: Path) -> dict[str, Tensor]:
    """Return the wanted tensors of the dicts in a pickle."""
    tensors: dict[str, Tensor] = {}
    visits = 0

    def visit(node: dict[str, Any], start: str, depth: int) -> None:
        nonlocal visits
        for key, value in node.items():
            visits += 1
            if visits > inert_pickle.MAX_OPCODES:  # the same dicts under ever more names
                raise BadPickleError(f"holds dicts of more than {visits - 1:,} entries")
            if isinstance(value, Tensor):
                check_name(f"{start}{key}", path)
                tensors[f"{start}{key}"] = value
                check_count(len(tensors), path)
            elif isinstance(value, dict) and depth < _DEPTH:
                visit(value, f"{start}{key[:_LONGEST_KEY]}/", depth + 1)

    if isinstance(tree, dict):
        visit(tree, "", 0)
    wanted = choose({name: tensor.shape for name, tensor in tensors.items()})
    return {new: tensors[name] for new, name in wanted.items()}


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
        check_shape(name, tensor.shape, path)
        check_dtype(name, storage.dtype, path)
        if storage.key not in read:
            read[storage.key] = numbers(storage.key, storage.dtype)
        part = read[storage.key][storage.start : storage.start + storage.count]
        if part.size != storage.count:
            raise BadPickleError("describes a storage as longer than it is")
        # `torch_objects` has seen to it that this stays inside the part; NumPy does not look.
        strides = [stride * storage.dtype.itemsize for stride in tensor.strides]
        flat[name] = np.lib.stride_tricks.as_strided(part[tensor.offset :], tensor.shape, strides)
    return flat
