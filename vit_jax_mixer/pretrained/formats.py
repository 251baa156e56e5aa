"""Files of named arrays: what each holds comes back as it is, in the names of the file.

| what it is | usual suffixes | read | written |
|---|---|---|---|
| official Mixer checkpoints, our own trees | ``.npz`` | `npz` | `npz` |
| timm | ``.safetensors`` | `safetensors_file` | `safetensors_file` |
| PyTorch | ``.pth``, ``.pt``, ``.bin``, ``.ckpt``, ``.tar`` | `torch_file` | no |
| a folder: a workdir, a checkpoint of it, or parameters alone (Orbax) | none | `folder` | `folder` |

A file's first bytes say what it is, whatever its suffix; that counts where they do not. All readers
check what they read: floats only, none of them NaN or infinite, sane names, and sizes that agree
with the file's before any memory is taken.
"""

import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from vit_jax_mixer import files
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained import folder, npz, safetensors_file, torch_file
from vit_jax_mixer.pretrained.checks import Choose, Flat, check_finite, check_whole, everything


def read(path: str | Path, choose: Choose = everything) -> Flat:
    """Return the arrays of a file or folder of weights.

    Args:
        path: the file or folder.
        choose: which of its arrays are wanted, and by what names.

    Raises:
        UserError: there is none, or it is not what its suffix says, or holds what weights do not.
    """
    return read_from(path, choose)[0]


def read_from(path: str | Path, choose: Choose, last: int = 0) -> tuple[Flat, folder.Place]:
    """Return what `read` does, and where that was; with ``last``, the mean of so many checkpoints of a workdir."""
    path = Path(path).expanduser()
    if last and not path.is_dir():
        raise UserError(f"{path} is no workdir, and so has no last {last} checkpoints; leave out #last{last}.")
    if last:
        flat, place = folder.read_mean(path, last, choose)
    elif path.is_dir():
        flat, place = folder.read(path, choose)
    else:
        flat, place = _reader(path)(path, choose), folder.Place(path, None, "")
    if not flat:
        raise UserError(f"{path} holds no parameters; give a file of weights.")
    check_finite(flat, path)
    return flat, place


def _reader(path: Path) -> Callable[[Path, Choose], Flat]:
    """Return what reads a file, by its first bytes or else its suffix."""
    if not os.path.lexists(path):
        raise UserError(f"there is no file {path}; give the path of a downloaded checkpoint or of a workdir.")
    with files.open_regular(path) as file:
        check_whole(file.fileno(), path)
        head = file.read(64)
    reader = READERS.get(path.suffix.lower())
    if head.startswith(b"PK\3\4"):
        reader = _of_archive(path) or reader
    elif head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        reader = safetensors_file.read
    elif head.startswith(b"\x80\x02\x8a\x0a"):  # the magic number of PyTorch's older layout
        reader = torch_file.read
    if reader is None:
        raise UserError(f"{path} is not a file of weights by its suffix; known are {', '.join(READERS)}, and folders.")
    if not head.strip():
        raise UserError(f"{path} is empty; download it again.")
    if head.lstrip().startswith(b"<"):
        raise UserError(f"{path} is a web page, as a failed download leaves it, and no weights; download it again.")
    return reader


def _of_archive(path: Path) -> Callable[[Path, Choose], Flat] | None:
    """Return what reads a zip archive, by the names in it; None for what is no sound one."""
    try:
        with zipfile.ZipFile(path) as opened:
            names = opened.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return npz.read
    return torch_file.read if any(name.endswith("/data.pkl") for name in names) else None


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
        WRITERS[path.suffix.lower()](temporary, flat)
        if path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    except (OSError, ValueError) as error:  # Orbax has the latter for arrays without elements
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
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
    suffix = path.suffix.lower()
    if suffix in READERS and suffix not in WRITERS:
        raise UserError(
            f"{path}: {path.suffix} files are read and not written, since they are programs; "
            f"write {path.with_suffix('.safetensors').name}, which PyTorch users load with the safetensors library."
        )
    if suffix not in WRITERS:
        raise UserError(f"{path} has no suffix that can be written; known are .npz, .safetensors and none, a folder.")
    if not path.exists():
        return
    if not force:
        raise UserError(f"{path} exists; pass --force to replace it, or choose another name.")
    if path.is_dir() != (suffix == "") or (path.is_dir() and not folder.holds_arrays(path)):
        raise UserError(f"{path} is something else than would be written there; choose another name.")


READERS: Mapping[str, Callable[[Path, Choose], Flat]] = {
    ".npz": npz.read,
    ".safetensors": safetensors_file.read,
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt", ".tar"), torch_file.read),
}
WRITERS: Mapping[str, Callable[[Path, Flat], None]] = {
    ".npz": npz.write,
    ".safetensors": safetensors_file.write,
    "": folder.write,
}
