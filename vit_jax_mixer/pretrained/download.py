"""Files from the web, kept in a folder: whole, verified, and fetched once by however many processes.

Beside a file NAME stand ``NAME.json``, the record of its size and SHA-256; while it is on its way
``NAME.partial``, what has come, with ``NAME.partial.json``, what it is a part of; and ``NAME.lock``.
"""

import dataclasses
import hashlib
import os
import re
import stat
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained import connection, transfer
from vit_jax_mixer.pretrained.progress import megabytes, say
from vit_jax_mixer.pretrained.transfer import note_of, read_json, write_json
from vit_jax_mixer.startup import CACHE, cache_folder

try:
    import fcntl
except ImportError:  # not on every system
    fcntl = None

_PROGRESS = 1 << 20  # bytes; an attempt that brought that many was no failure


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long a download goes on.

    Attributes:
        attempts: failures in a row before it gives up.
        wait: seconds before the second attempt, doubled before each further one.
        longest_wait: seconds at most, also where the server asks for more.
        stall: seconds without data after which a connection is given up.
    """

    attempts: int = 5
    wait: float = 1.0
    longest_wait: float = 30.0
    stall: float = 30.0


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """What is known of a file before it is fetched; the hashes are hexadecimal."""

    size: int | None
    md5: str | None
    sha256: str | None


def fetch(
    url: str,
    *,
    size: int | None = None,
    md5: str | None = None,
    sha256: str | None = None,
    folder: str | Path | None = None,
    verify: bool = False,
    patience: Patience | None = None,
) -> Path:
    """Return the path of a file from the web; what is in the folder already is not fetched again.

    Args:
        url: ``https://``, ``http://`` or ``gs://``.
        size: bytes, if known.
        md5: hexadecimal, if known.
        sha256: likewise; else that of the first time is kept, and compared when it is fetched again.
        folder: in the place of `cache_folder`.
        verify: also read and compare a file that is there already.
        patience: how long to try.

    Raises:
        UserError: it cannot be fetched or written, or is not the file that it should be.
    """
    address, path = _address(url), place(url, folder)
    wanted = _Wanted(size, md5, sha256)
    try:
        if _is_there(path, wanted, verify):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path) as alone:
            if not _is_there(path, wanted, False):  # another process may have fetched it meanwhile
                _download(address, path, wanted, patience or Patience(), alone=alone)
    except OSError as error:
        raise UserError(
            f"cannot read or write {path} ({error.strerror or error}); make room, or set {CACHE} to another folder."
        ) from error
    return path


def is_address(text: str) -> bool:
    """Return whether it is an address on the web, of whatever scheme, and no path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def place(url: str, folder: str | Path | None = None) -> Path:
    """Return where a file is kept: ``FOLDER/HOST-HASH/NAME``, whatever the server calls it.

    Raises:
        UserError: as for `fetch`, the address cannot be used.
    """
    address = _address(url)
    parts = urlsplit(address)
    name = re.split(r"[/\\]", unquote(parts.path))[-1]
    name = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[-100:] or "weights"
    host = re.sub(r"[^A-Za-z0-9.-]", "_", parts.netloc)[:80]
    digest = hashlib.sha256(address.encode()).hexdigest()[:12]
    return (Path(folder).expanduser() if folder else cache_folder()) / f"{host}-{digest}" / name


def _address(url: str) -> str:
    """Return an address for urllib: http or https, quoted, without a fragment."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"{url!r} is no address ({error}); give one as https://host/file.npz.") from error
    scheme, netloc, path = parts.scheme, parts.netloc, quote(parts.path, safe="/%:@!$&'()*+,;=~")
    if scheme == "gs":
        scheme, netloc, path = "https", "storage.googleapis.com", f"/{netloc}{path}"
    if scheme not in ("https", "http"):
        raise UserError(f"{url!r} cannot be fetched: known are https://, http:// and gs://; fetch it by other means.")
    if not connection.HOST.fullmatch(netloc):
        # Without the address, which may hold a password.
        raise UserError(
            f"an address without a plain host ({host!r}) cannot be fetched; give one as https://host/file.npz."
        )
    return urlunsplit((scheme, netloc, path or "/", quote(parts.query, safe="/%:@!$&'()*+,;=?~"), ""))


# --- What is there already ---


def _is_there(path: Path, wanted: _Wanted, verify: bool) -> bool:
    """Return whether the file is there and, as far as is cheap, the right one.

    One without a record was put there by hand, and is read once.
    """
    if not path.is_file():
        return False
    record = read_json(note_of(path))
    found, size = transfer.length(path), wanted.size or record.get("size")
    if size not in (None, found):
        say(f"{path} has {found:,} bytes instead of {size:,}; it is fetched again.")
        return False
    if verify or not record or wanted.sha256 not in (None, record.get("sha256")):
        digest = _check(path, wanted, record, f"{path} is damaged or another file", "delete it to fetch it again")
        if not record:
            write_json(note_of(path), {"size": found, "sha256": digest})
    return True


def _check(
    path: Path, wanted: _Wanted, record: Mapping[str, Any], what: str, remedy: str, md5: str | None = None
) -> str:
    """Return the SHA-256 of a file that has all the hashes that are known.

    Args:
        path: the file.
        wanted: what its user knows.
        record: what was noted when it came first.
        what: the beginning of the sentence if it has not.
        remedy: the end of that sentence.
        md5: what the server says.
    """
    hashes = {"SHA-256": hashlib.sha256(), "MD5": hashlib.md5(usedforsecurity=False)}
    with path.open("rb") as file:
        while chunk := file.read(1 << 18):
            for each in hashes.values():
                each.update(chunk)
    found = {kind: each.hexdigest() for kind, each in hashes.items()}
    for kind, digest in [
        ("SHA-256", wanted.sha256),
        ("MD5", wanted.md5),
        ("MD5", md5),
        ("SHA-256", record.get("sha256")),
    ]:
        if digest and found[kind] != digest.lower():
            raise UserError(f"{what}: its {kind} is {found[kind]} and should be {digest.lower()}; {remedy}.")
    return found["SHA-256"]


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Wait for a file's lock, and hold it; gives False where there are no locks. It ends with its process."""
    if fcntl is None:
        yield False
        return
    # Neither a link nor a pipe that somebody has put there is followed, or waited for.
    lock = path.with_name(f"{path.name}.lock")
    with os.fdopen(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UserError(f"{lock} is no regular file; remove it, or set {CACHE} to a folder of your own.")
        held = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process fetches {path.name}; waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without
            held = False
        yield held


# --- What is fetched ---


def _download(address: str, path: Path, wanted: _Wanted, patience: Patience, *, alone: bool) -> None:
    """Fetch, verify, and move to ``path``. What has come of it stays for the next time, if it may be resumed."""
    begun = time.monotonic()
    # Without a lock another may be writing; a part of one's own cannot be disturbed, nor resumed.
    partial = path.with_name(f"{path.name}.partial" if alone else f"{path.name}.{uuid.uuid4().hex}.partial")
    keep = False
    try:
        try:
            _bring(address, partial, path, wanted, patience)
        except (UserError, KeyboardInterrupt):
            keep = alone
            raise
        size, record = transfer.length(partial), read_json(note_of(path))
        if wanted.size not in (None, size):
            raise UserError(f"{address} came with {size:,} bytes where {wanted.size:,} are known; try again.")
        what = f"{address} came damaged, or is another file than before"
        remedy = f"try again, or delete {note_of(path)} if it may have changed"
        digest = _check(partial, wanted, record, what, remedy, read_json(note_of(partial)).get("md5"))
        partial.replace(path)
        write_json(note_of(path), {"url": address, "size": size, "sha256": digest})
        say(f"fetched {megabytes(size)} in {time.monotonic() - begun:.0f} s to {path}")
    finally:
        if not keep:  # of no use, or on a full disk in the way
            partial.unlink(missing_ok=True)
            note_of(partial).unlink(missing_ok=True)


def _bring(address: str, partial: Path, path: Path, wanted: _Wanted, patience: Patience) -> None:
    """Attempt it until ``partial`` is whole."""
    remedy = f"fetch {address} by other means and put it at {path}"
    failures = 0
    while True:
        before = transfer.length(partial)
        try:
            return transfer.attempt(address, partial, wanted.size, patience.stall, remedy)
        except transfer.AgainError as again:
            failures = 1 if transfer.length(partial) - before >= _PROGRESS else failures + 1
            if failures >= patience.attempts:
                raise UserError(f"{address} cannot be fetched: {again}; try again later, or {remedy}.") from again
            wait = min(max(again.wait, patience.wait * 2 ** (failures - 1)), patience.longest_wait)
            say(f"{path.name}: {again}; trying again in {wait:.0f} s.")
            time.sleep(wait)
