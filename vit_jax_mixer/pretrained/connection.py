"""Connections to the web that end, whatever a server sends in the place of a file."""

import http.client
import re
import socket
import ssl
import threading
import time
import urllib.request
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from vit_jax_mixer.errors import UserError

HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?")  # without a user's name and password


class Watch:
    """Cuts the connections that are made under it when there is no `progress` for some time.

    A time-out of a socket begins anew with each byte, and so never comes for a header that drips, for
    answers of "100 Continue" or for trailers without an end.

    Attributes:
        cut: whether it has come to that.
    """

    def __init__(self, seconds: float) -> None:
        self.cut = False
        self._seconds = seconds
        self._mark = time.monotonic()
        self._sockets: list[socket.socket] = []
        self._done = threading.Event()

    def __enter__(self) -> "Watch":
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for one in self._sockets:
            one.close()

    def progress(self) -> None:
        """Let the time begin anew."""
        self._mark = time.monotonic()

    def connect(self, *args: Any, **kwargs: Any) -> socket.socket:
        """Connect as `socket.create_connection` does."""
        made = socket.create_connection(*args, **kwargs)
        self._sockets.append(made.dup())  # TLS takes the first one over
        return made

    def _run(self) -> None:
        while not self._done.wait(min(1, self._seconds / 4)):
            self.cut = self.cut or time.monotonic() - self._mark > self._seconds
            for one in self._sockets if self.cut else ():
                with suppress(OSError):  # closed by the other side
                    one.shutdown(socket.SHUT_RDWR)


def opener(watch: Watch) -> urllib.request.OpenerDirector:
    """Return one that knows nothing but the web, and the environment's proxies; urllib's own also opens files."""

    def watched(kind: type[http.client.HTTPConnection]) -> Any:
        def make(*args: Any, **kwargs: Any) -> http.client.HTTPConnection:
            made = kind(*args, **kwargs)
            made._create_connection = watch.connect  # pyright: ignore[reportAttributeAccessIssue] # it has no other door
            return made

        return make

    class Http(urllib.request.HTTPHandler):
        def http_open(self, req: Any) -> Any:
            return self.do_open(watched(http.client.HTTPConnection), req)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, req: Any) -> Any:
            context = ssl.create_default_context()
            return self.do_open(watched(http.client.HTTPSConnection), req, context=context)

    made = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        Http,
        Https,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _Redirects,
    ):
        made.add_handler(handler())
    return made


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
