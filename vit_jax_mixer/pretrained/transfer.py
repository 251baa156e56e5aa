"""One attempt to bring a file from the web, or the rest of it, to the disk; `download` keeps them.

Only the same file's parts are put together: a part is noted with the ETag of its file, and the rest
is asked for under the condition that it still has it.
"""

import base64
import http.client
import json
import os
import re
import socket
import ssl
import stat
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from email.message import Message
from pathlib import Path
from typing import IO, Any, NoReturn
from urllib.parse import urlsplit

from vit_jax_mixer import files
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained.connection import Watch, opener
from vit_jax_mixer.pretrained.progress import Bar

MAX_BYTES = 8 << 30  # no published Mixer is near it
_CHUNK = 1 << 18
_CRAWL = 1 << 14  # bytes; less while the time for stalls runs is a stall


class AgainError(Exception):
    """An attempt failed in a way that another may not; ``wait`` seconds are what the server asks for."""

    def __init__(self, reason: object, wait: float = 0):
        super().__init__(" ".join(str(reason).split()))
        self.wait = wait


def attempt(address: str, partial: Path, size: int | None, stall: float, remedy: str) -> None:
    """Bring ``partial`` nearer to being whole; returns when it is.

    Args:
        address: ``https://`` or ``http://``.
        partial: what has come so far; ``PARTIAL.json`` beside it notes what it is a part of.
        size: bytes of the whole, if known.
        stall: seconds without data after which the connection is given up.
        remedy: what else the user can do, as the end of a sentence.

    Raises:
        AgainError: the connection or the server failed.
        UserError: another attempt would fail as well.
        OSError: the file cannot be written.
    """
    note = read_json(note_of(partial))
    if not _is_own(partial):  # nothing that somebody else has put there is written to
        partial.unlink(missing_ok=True)
    have = length(partial) if note.get("etag") else 0
    if have and note.get("total") == have:
        return
    headers = {"User-Agent": "vit_jax_mixer", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": note["etag"]}
    with Watch(2 * stall) as watch:
        _fetch(urllib.request.Request(address, headers=headers), watch, partial, have, note, size, stall, remedy)


def _fetch(
    request: urllib.request.Request,
    watch: Watch,
    partial: Path,
    have: int,
    note: Mapping[str, Any],
    size: int | None,
    stall: float,
    remedy: str,
) -> None:
    """Ask for a file, or the rest of it, and write what comes; see `attempt`."""
    address = request.full_url
    try:
        reply = opener(watch).open(request, timeout=stall)
    except urllib.error.HTTPError as error:
        error.close()
        _refused(error, address, partial, remedy)
    except (OSError, http.client.HTTPException, UnicodeError) as error:  # the last for a host that cannot be one
        if watch.cut:
            raise AgainError(f"the server took more than {2 * stall:.0f} s to begin its answer") from error
        _unreachable(error, address, remedy)
    watch.progress()
    with reply:
        coding = reply.headers.get("Content-Encoding", "identity")
        if reply.status not in (200, 206) or coding != "identity":
            raise UserError(f"{address} answers {reply.status} ({coding}), which is not what was asked for; {remedy}.")
        if reply.status == 206 and not _continues(reply.headers, have, note):
            partial.unlink(missing_ok=True)
            raise AgainError("the file changed, or another part came than was asked for")
        have = have if reply.status == 206 else 0
        total = _total(reply, have, note)
        if total is not None and total > MAX_BYTES:
            raise UserError(f"{address} has {total:,} bytes, over the limit of {MAX_BYTES:,}; {remedy}.")
        if total is not None and size is not None and total != size:
            raise UserError(f"{address} has {total:,} bytes where {size:,} are known; {remedy}.")
        etag = reply.headers.get("ETag", "")
        strong = etag if etag.startswith('"') else ""  # a weak one does not tell bytes apart
        write_json(note_of(partial), {"etag": strong, "total": total, "md5": _promised_md5(reply.headers)})
        with _open_own(partial, have) as file:
            file.seek(have)
            _copy(reply, file, address, have, total, stall, watch)


def _is_own(path: Path) -> bool:
    """Say whether there is a regular file of this user's that has no other name: neither a link nor a pipe."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    mine = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and mine


def _open_own(path: Path, have: int) -> IO[bytes]:
    """Open a part to go on with it, or a new one; a link that has come meanwhile is an OSError."""
    if not have:
        path.unlink(missing_ok=True)
        return path.open("xb")
    return os.fdopen(os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)), "r+b")


def _part(headers: Message) -> tuple[int, int, int | None] | None:
    """Return (first byte, last byte, bytes of the whole or None) of a part; None if it is not said as it must be."""
    number = "([0-9]{1,18})"
    found = re.fullmatch(rf"bytes {number}-{number}/(?:{number}|\*)", headers.get("Content-Range", "").strip())
    return (int(found[1]), int(found[2]), int(found[3]) if found[3] else None) if found else None


def _continues(headers: Message, have: int, note: Mapping[str, Any]) -> bool:
    """Return whether a part is the rest of what was begun."""
    part = _part(headers)
    if part is None or headers.get("ETag", note.get("etag")) != note.get("etag"):
        return False
    first, last, total = part
    same = total is None or note.get("total") in (None, total)
    return 0 < have == first <= last and same and (total is None or last < total)


def _total(reply: http.client.HTTPResponse, have: int, note: Mapping[str, Any]) -> int | None:
    """Return the bytes of the whole, if the server says or has said; ``have`` are those before what it sends."""
    part = _part(reply.headers) if reply.status == 206 else None
    if part:
        return part[2] or note.get("total") or part[1] + 1
    rest = reply.headers.get("Content-Length", "")
    return have + int(rest) if _is_number(rest) else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def _promised_md5(headers: Message) -> str | None:
    """Return the MD5 in hexadecimal that Google's store sends, as in ``x-goog-hash: crc32c=...,md5=...``."""
    for value in ",".join(headers.get_all("x-goog-hash", [])).split(","):
        kind, _, digest = value.strip().partition("=")
        if kind == "md5":
            try:
                return base64.b64decode(digest, validate=True).hex()
            except ValueError:
                return None
    return None


def _copy(
    reply: http.client.HTTPResponse,
    file: IO[bytes],
    address: str,
    have: int,
    total: int | None,
    stall: float,
    watch: Watch,
) -> None:
    """Write what comes, until it is all there."""
    bar = Bar(address, have, total)
    mark, marked = time.monotonic(), have
    limit = MAX_BYTES + 1 if total is None else total
    while have < limit:
        try:
            chunk = reply.read1(min(_CHUNK, limit - have))
        except (OSError, http.client.HTTPException) as error:
            bar.end()
            raise AgainError(f"the connection broke after {have:,} bytes: {_reason(error)}") from error
        if not chunk:
            break
        file.write(chunk)
        have += len(chunk)
        bar.show(have)
        now = time.monotonic()
        if have - marked >= _CRAWL:
            mark, marked = now, have
            watch.progress()
        elif now - mark > stall:
            bar.end()
            raise AgainError(f"the connection stalled after {have:,} bytes")
    bar.end()
    if watch.cut:
        raise AgainError(f"the connection stalled after {have:,} bytes")
    if have > MAX_BYTES:
        raise UserError(f"{address} does not end after {MAX_BYTES:,} bytes, the limit; give a file of weights.")
    if total is not None and have < total:
        raise AgainError(f"the connection ended after {have:,} of {total:,} bytes")


# --- What goes wrong ---


def _refused(error: urllib.error.HTTPError, address: str, partial: Path, remedy: str) -> NoReturn:
    """Raise what an answer that is no success means."""
    answer = f"the server answers {error.code} ({_reason(error)})"
    if error.code == 416:  # Range Not Satisfiable: what is here is no part of what is there
        partial.unlink(missing_ok=True)
        raise AgainError(answer)
    if error.code in (408, 425, 429) or error.code >= 500:
        after = error.headers.get("Retry-After", "")
        raise AgainError(answer, float(after) if _is_number(after) else 0)
    if 300 <= error.code < 400:
        answer = f"the server redirects too often, or to where it must not ({_reason(error)})"
    raise UserError(f"{address} cannot be fetched: {answer}; check the address, or {remedy}.") from error


def _unreachable(error: Exception, address: str, remedy: str) -> NoReturn:
    """Raise what a connection that was not made means; without a name or a certificate, trying again is no use."""
    host = urlsplit(address).netloc
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, (socket.gaierror, UnicodeError)):
        raise UserError(f"{host} cannot be found ({_reason(cause)}); if you are offline, {remedy}.") from error
    if isinstance(cause, ssl.SSLCertVerificationError):
        raise UserError(f"{host} has a certificate that is not trusted ({_reason(cause)}); {remedy}.") from error
    raise AgainError(f"no connection to {host} ({_reason(cause)})") from error


def _reason(error: object) -> str:
    """Return the first line of what an error says."""
    text = getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error) or type(error).__name__
    return str(text).strip().splitlines()[0].rstrip(".") if str(text).strip() else type(error).__name__


# --- Notes ---


def length(path: Path) -> int:
    """Return the bytes of a file; 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def note_of(path: Path) -> Path:
    """Return the file beside another that says what it is."""
    return path.with_name(f"{path.name}.json")


_NOTED = {"url": str, "etag": str, "md5": str, "sha256": str, "size": int, "total": int}


def read_json(path: Path) -> dict[str, Any]:
    """Return what a note says; nothing if there is none, or none that can be read."""
    try:
        found = files.read_json(path, most=1 << 16)
    except UserError:
        return {}
    fields = {name: value for name, value in found.items() if type(value) is _NOTED.get(name)}
    return fields if all(str(value).isprintable() and str(value).isascii() for value in fields.values()) else {}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a note at once or not at all: not in a folder that is read-only."""
    new = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        new.write_text(json.dumps(value) + "\n", encoding="utf-8")
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
