"""One attempt to bring a file from the web, or the rest of it, to the disk; `download` keeps them.

Only the same file's parts are put together: a part is noted with the ETag of its file, and the rest
is asked for under the condition that it still has it.
"""

import base64
import http.client
import json
import re
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from email.message import Message
from pathlib import Path
from typing import IO, Any, NoReturn
from urllib.parse import urlsplit

from vit_jax_mixer.errors import UserError

MAX_BYTES = 8 << 30  # no published Mixer is near it
HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?")  # without a user's name and password
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
    have = length(partial) if note.get("etag") else 0
    if have and note.get("total") == have:
        return
    headers = {"User-Agent": "vit_jax_mixer", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": note["etag"]}
    try:
        reply = _opener().open(urllib.request.Request(address, headers=headers), timeout=stall)
    except urllib.error.HTTPError as error:
        error.close()
        _refused(error, address, partial, remedy)
    except (OSError, http.client.HTTPException, UnicodeError) as error:  # the last for a host that cannot be one
        _unreachable(error, address, remedy)
    with reply:
        coding = reply.headers.get("Content-Encoding", "identity")
        if reply.status not in (200, 206) or coding != "identity":
            raise UserError(f"{address} answers {reply.status} ({coding}), which is not what was asked for; {remedy}.")
        if reply.status == 206 and not _continues(reply.headers, have, note):
            partial.unlink(missing_ok=True)
            raise AgainError("the file changed, or another part came than was asked for")
        have = have if reply.status == 206 else 0
        total = _total(reply, have)
        if total is not None and total > MAX_BYTES:
            raise UserError(f"{address} has {total:,} bytes, over the limit of {MAX_BYTES:,}; {remedy}.")
        if total is not None and size is not None and total != size:
            raise UserError(f"{address} has {total:,} bytes where {size:,} are known; {remedy}.")
        etag = reply.headers.get("ETag", "")
        strong = etag if etag.startswith('"') else ""  # a weak one does not tell bytes apart
        write_json(note_of(partial), {"etag": strong, "total": total, "md5": _promised_md5(reply.headers)})
        with partial.open("r+b" if have else "wb") as file:
            file.seek(have)
            _copy(reply, file, address, have, total, stall)


def _continues(headers: Message, have: int, note: Mapping[str, Any]) -> bool:
    """Return whether a part is the rest of what was begun."""
    if headers.get("ETag", note.get("etag")) != note.get("etag"):
        return False
    part, _, total = headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    same = note.get("total") is None or total in ("*", str(note["total"]))
    return bool(have) and part.startswith(f"{have}-") and same


def _total(reply: http.client.HTTPResponse, have: int) -> int | None:
    """Return the bytes of the whole, if the server says; ``have`` are those before what it sends."""
    whole = reply.headers.get("Content-Range", "").rpartition("/")[2] if reply.status == 206 else ""
    if _is_number(whole):
        return int(whole)
    rest = reply.headers.get("Content-Length", "")
    return have + int(rest) if _is_number(rest) else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


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
    reply: http.client.HTTPResponse, file: IO[bytes], address: str, have: int, total: int | None, stall: float
) -> None:
    """Write what comes, until it is all there."""
    bar = _Bar(address, have, total)
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
        elif now - mark > stall:
            bar.end()
            raise AgainError(f"the connection stalled after {have:,} bytes")
    bar.end()
    if have > MAX_BYTES:
        raise UserError(f"{address} does not end after {MAX_BYTES:,} bytes, the limit; give a file of weights.")
    if total is not None and have < total:
        raise AgainError(f"the connection ended after {have:,} of {total:,} bytes")


# --- What goes wrong ---


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, to the web alone and not from https to http, five at most and none twice."""

    max_redirections = 5
    max_repeats = 1

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        fp.close()  # or urllib would read all that comes with the redirect
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old == "https" and new.scheme != "https"):
            raise UserError(f"{req.full_url} redirects to {newurl}, which is not safe; fetch it by other means.")
        if not HOST.fullmatch(new.netloc):
            raise UserError(f"{req.full_url} redirects to {newurl!r}, which is no address; fetch it by other means.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Return one that knows nothing but the web, and the environment's proxies; urllib's own also opens files."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _Redirects,
    ):
        opener.add_handler(handler())
    return opener


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


# --- Notes and progress ---


def length(path: Path) -> int:
    """Return the bytes of a file; 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def note_of(path: Path) -> Path:
    """Return the file beside another that says what it is."""
    return path.with_name(f"{path.name}.json")


def read_json(path: Path) -> dict[str, Any]:
    """Return what a note says; nothing if there is none, or none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a note at once or not at all: not in a folder that is read-only."""
    new = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        new.write_text(json.dumps(value) + "\n", encoding="utf-8")
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)


def say(line: str) -> None:
    """Tell a person; results go to standard output."""
    print(line, file=sys.stderr, flush=True)


def megabytes(count: int) -> str:
    """Return a number of bytes as people read it."""
    return f"{count / 1e6:,.1f} MB"


class _Bar:
    """A bar on a terminal; elsewhere, a line at the beginning."""

    def __init__(self, address: str, have: int, total: int | None):
        self.total, self.live, self.last = total, sys.stderr.isatty(), 0.0
        rest = f", from {megabytes(have)} on" if have else ""
        say(f"fetching {address} ({megabytes(total) if total else 'of unknown size'}{rest})")

    def show(self, have: int) -> None:
        """Draw it, ten times a second at most."""
        now = time.monotonic()
        if not self.live or now - self.last < 0.1:
            return
        self.last = now
        part = f"{'#' * (30 * have // self.total):<30} {have / self.total:4.0%} " if self.total else ""
        print(f"\r  {part}{megabytes(have)}\033[K", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Take it away."""
        if self.live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
