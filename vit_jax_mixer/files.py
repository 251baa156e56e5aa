"""Files as they lie on people's disks: read with a limit, written at once or not at all.

A leaf of the package, beside `errors`.
"""

import gzip
import io
import json
import os
import secrets
import stat
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from vit_jax_mixer.errors import UserError

_BLOCK = 1 << 16
MOST_TEXT = 64 << 20  # bytes of a description, as model.json; lists of a million classes are smaller


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; a link to one is one.

    Raises:
        UserError: there is none, it cannot be read, or it is a folder, a pipe or a device.
    """
    try:
        # A pipe would else be waited for, for ever.
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            mode = os.fstat(number).st_mode
            if not stat.S_ISREG(mode):
                raise UserError(f"{os.fspath(path)} is {_kind(mode)}, not a regular file; remove it or name another.")
            return os.fdopen(number, "rb", buffering=0)  # pyright: ignore[reportReturnType] # FileIO is a BinaryIO
        except BaseException:
            os.close(number)
            raise
    except OSError as error:
        raise UserError(f"cannot read {os.fspath(path)} ({error.strerror}); restore it or name another.") from error


def read_bytes(path: str | os.PathLike[str], most: int) -> bytes:
    """Read a regular file of at most ``most`` bytes.

    Raises:
        UserError: it is larger (nothing of it is read then), or as `open_regular` says.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise UserError(f"{os.fspath(path)} has {size:,} bytes, more than the {most:,} that are read; look at it.")
        try:
            data = file.read(size + 1)  # which makes a buffer of that size
            while len(data) <= most and (more := file.read(_BLOCK)):  # it grows, or the disk reads in parts
                data += more
        except OSError as error:
            raise UserError(f"cannot read {os.fspath(path)} ({error.strerror}); restore it.") from error
        if len(data) > most:
            raise UserError(f"{os.fspath(path)} has more than the {most:,} bytes that are read; look at it.")
        return data


def most_unpacked(size: int) -> int:
    """Return how many bytes a gzipped file of so many may unpack to; what unpacks to more is a trap.

    MNIST's images unpack to 5 times their size, text to about as much.
    """
    return (64 << 20) + 64 * size


def unpacked(path: str | os.PathLike[str], data: bytes) -> bytes:
    """Return what is gzipped in the bytes of a file.

    Raises:
        UserError: it is damaged, or unpacks to more than `most_unpacked`.
    """
    most = most_unpacked(len(data))
    try:
        with gzip.open(io.BytesIO(data)) as file:
            found = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{os.fspath(path)} is damaged ({error}); make the .gz file again.") from error
    if len(found) > most:
        raise UserError(f"{os.fspath(path)} unpacks to more than {most:,} bytes, which text does not; look at it.")
    return found


def read_text(path: str | os.PathLike[str], most: int = MOST_TEXT) -> str:
    """Read a text in UTF-8, with or without a byte order mark; see `read_bytes`."""
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{os.fspath(path)} is not text in UTF-8 (byte {error.start}); save it as UTF-8.") from error


def read_json(path: str | os.PathLike[str], kind: type = dict, most: int = MOST_TEXT) -> Any:
    """Read a JSON file whose outermost value is of a kind.

    Raises:
        UserError: it is not JSON, nested too deeply, or holds something else.
    """
    try:
        found = json.loads(read_text(path, most))
    except RecursionError as error:
        raise UserError(f"{os.fspath(path)} is damaged (nested too deeply); restore or remove it.") from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{os.fspath(path)} is damaged ({error}); restore or remove it.") from error
    if not isinstance(found, kind):
        raise UserError(
            f"{os.fspath(path)} is damaged (it holds a {type(found).__name__}, not a {kind.__name__}); "
            "restore or remove it."
        )
    return found


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write a file at once or not at all; text in UTF-8, with the bytes of file names as they are.

    Raises:
        OSError: it cannot be written; then there is what was there before.
    """
    data = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
    new = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.new")
    try:
        with new.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
