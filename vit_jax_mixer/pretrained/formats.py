"""Files of named arrays, by suffix: what each holds comes back as it is, in the names of the file.

| suffix | what it is | read | written |
|---|---|---|---|
| ``.npz`` | official Mixer checkpoints, our own trees | `npz` | `npz` |
| ``.safetensors`` | timm | here | here |
| ``.pth``, ``.pt``, ``.bin`` | PyTorch | `torch_file` | no |
| none, a folder | a workdir, a checkpoint of it, or parameters alone (Orbax) | `folder` | `folder` |

All of them check what they read: floats only, none of them NaN or infinite, sane names, and sizes
that agree with the file's before any memory is taken.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained import archive, folder, npz, torch_file
from vit_jax_mixer.pretrained.checks import Flat, check_finite

_MAX_HEADER = 1 << 24  # bytes; Mixer-H/14 needs 50,000
_FLOATS = ("F64", "F32", "F16", "BF16")


def read(path: str | Path) -> Flat:
    """Return the arrays of a file or folder of weights.

    Raises:
        UserError: there is none, or it is not what its suffix says, or holds what weights do not.
    """
    path = Path(path).expanduser()
    if path.is_dir() and path.suffix not in READERS:
        flat = folder.read(path)
    else:
        _check_file(path)
        flat = READERS[path.suffix](path)
    if not flat:
        raise UserError(f"{path} holds no parameters; give a file of weights.")
    check_finite(flat, path)
    return flat


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a folder, not {'an' if path.suffix == '.npz' else 'a'} {path.suffix} file.")
    if not path.is_file():
        raise UserError(f"there is no file {path}; give the path of a downloaded checkpoint or of a workdir.")
    if path.suffix not in READERS:
        raise UserError(f"{path} is not a file of weights by its suffix; known are {', '.join(READERS)}, and folders.")
    try:
        with path.open("rb") as file:
            head = file.read(64).lstrip()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); mend its permissions.") from error
    if not head:
        raise UserError(f"{path} is empty; download it again.")
    if head.startswith(b"<"):
        raise UserError(f"{path} is a web page, as a failed download leaves it, and no weights; download it again.")


def write(path: Path, flat: Flat, *, force: bool = False) -> None:
    """Write arrays to a file or folder, at once or not at all.

    Raises:
        UserError: it exists and ``force`` is not set, cannot be written, or the suffix is of no
            format that is written.
    """
    check_target(path, force=force)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[path.suffix](temporary, flat)
        if path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    except (OSError, ValueError) as error:  # Orbax has the latter for arrays without elements
        reason = getattr(error, "strerror", None) or _line(error)
        raise UserError(f"cannot write {path} ({reason}); choose another place or format.") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        elif temporary.exists():
            temporary.unlink()


def check_target(path: Path, *, force: bool) -> None:
    """Say before the work whether `write` will refuse.

    Raises:
        UserError: as for `write`.
    """
    if path.suffix in READERS and path.suffix not in WRITERS:
        raise UserError(
            f"{path}: {path.suffix} files are read and not written, since they are programs; "
            f"write {path.with_suffix('.safetensors').name}, which PyTorch users load with the safetensors library."
        )
    if path.suffix not in WRITERS:
        raise UserError(f"{path} has no suffix that can be written; known are .npz, .safetensors and none, a folder.")
    if not path.exists():
        return
    if not force:
        raise UserError(f"{path} exists; pass --force to replace it, or choose another name.")
    if path.is_dir() != (path.suffix == "") or (path.is_dir() and not folder.holds_arrays(path)):
        raise UserError(f"{path} is something else than would be written there; choose another name.")


def read_safetensors(path: Path) -> Flat:
    """Read a ``.safetensors`` file.

    Raises:
        UserError: it is none, is damaged, or holds anything but floats.
    """
    _check_header(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 # it is no dict
                archive.check_name(name, path)
                kind = file.get_slice(name).get_dtype()
                if kind not in _FLOATS:
                    raise UserError(f"{path}: {name} has type {kind}, not float; is it a checkpoint?")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, OverflowError, MemoryError, TypeError) as error:
        raise UserError(f"{path} is not a .safetensors file ({_line(error)}); download it again.") from error


def _check_header(path: Path) -> None:
    """Look at the length of the header and for names given twice; the library checks the rest."""
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
        json.loads(header, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a .safetensors file ({_line(error)}); download it again.") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("a name is given twice in its header")
    return names


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def write_safetensors(path: Path, flat: Flat) -> None:
    """Write a ``.safetensors`` file with the mark that PyTorch's readers ask for."""
    # The library takes the memory as it lies, and so must not be given views of another order.
    arrays = {name: np.ascontiguousarray(value).reshape(value.shape) for name, value in flat.items()}
    # Not by its `save_file`, whose files nobody else may read (mode 0600).
    path.write_bytes(safetensors.numpy.save(arrays, metadata={"format": "pt"}))


READERS: Mapping[str, Callable[[Path], Flat]] = {
    ".npz": npz.read,
    ".safetensors": read_safetensors,
    ".pth": torch_file.read,
    ".pt": torch_file.read,
    ".bin": torch_file.read,
}
WRITERS: Mapping[str, Callable[[Path, Flat], None]] = {
    ".npz": npz.write,
    ".safetensors": write_safetensors,
    "": folder.write,
}
