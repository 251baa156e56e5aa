"""A web server on this machine that answers by a script, well or badly, and counts; and what its tests share."""

import dataclasses
import hashlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained import download

BODY = hashlib.shake_256(b"weights").digest(300_000)
OTHER = hashlib.shake_256(b"others").digest(300_000)
QUICK = download.Patience(attempts=3, wait=0.01, longest_wait=0.02, stall=0.4)


@dataclasses.dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        body: the file.
        status: 200 becomes 206 where a range is asked for.
        etag: of the file, with its quotes; none if empty.
        headers: further ones.
        promise: Content-Length, in the place of the true one; None sends none.
        stop: bytes of the body after which the connection ends.
        reset: ends it by a reset.
        drip: sends a byte at a time, so many seconds apart.
        hang: waits so many seconds where it stops.
        ranges: 'yes', 'no', or 'always' also for another file's ETag.
        part: Content-Range in the place of the true one.
    """

    body: bytes = b""
    status: int = 200
    etag: str = '"one"'
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    promise: int | None = -1
    stop: int | None = None
    reset: bool = False
    drip: float = 0
    hang: float = 0
    ranges: str = "yes"
    part: str = ""


class Server:
    """What was asked of it, and what it sent.

    Attributes:
        url: its address, without a path.
        replies: answers by path, one after the other; the last is repeated.
        requests: (path, headers), in their order.
        sent: bytes of bodies.
    """

    def __init__(self, port: int):
        self.url = f"http://127.0.0.1:{port}"
        self.replies: dict[str, list[Reply]] = {}
        self.requests: list[tuple[str, Mapping[str, str]]] = []
        self.sent = 0
        self.closing = threading.Event()
        self.lock = threading.Lock()

    def offer(self, path: str, *replies: Reply) -> str:
        """Answer a path so; return its address."""
        self.replies[path] = list(replies)
        return self.url + path

    def ranges(self) -> list[str | None]:
        """Return what parts were asked for."""
        return [headers.get("Range") for _, headers in self.requests]


def _handler(get: Callable[[], Server]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server = get()
            with server.lock:
                server.requests.append((self.path, dict(self.headers)))
                queue = server.replies.get(self.path, [Reply(status=404)])
                reply = queue.pop(0) if len(queue) > 1 else queue[0]
            self.answer(server, reply)

        def answer(self, server: Server, reply: Reply) -> None:
            asked = self.headers.get("Range", "")
            same = self.headers.get("If-Range", reply.etag) == reply.etag or reply.ranges == "always"
            begin, status, extra = 0, reply.status, {}
            if asked and reply.ranges != "no" and same and status == 200:
                begin = int(asked.removeprefix("bytes=").removesuffix("-"))
                status = 206 if begin < len(reply.body) else 416
                extra["Content-Range"] = reply.part or f"bytes {begin}-{len(reply.body) - 1}/{len(reply.body)}"
            body = reply.body[begin:] if status != 416 else b""
            self.send_response(status)
            if reply.promise is not None:
                extra["Content-Length"] = str(len(body) if reply.promise == -1 else reply.promise)
            if reply.etag:
                extra["ETag"] = reply.etag
            for name, value in {**extra, **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.send_body(server, reply, body[: reply.stop])

        def send_body(self, server: Server, reply: Reply, body: bytes) -> None:
            step = 1 if reply.drip else 1 << 16
            for i in range(0, len(body), step):
                try:
                    self.wfile.write(body[i : i + step])
                except OSError:  # the other side has gone
                    return
                with server.lock:
                    server.sent += len(body[i : i + step])
                if reply.drip and server.closing.wait(reply.drip):
                    return
            self.wfile.flush()
            server.closing.wait(reply.hang)
            if reply.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

        def log_message(self, *_):
            pass

    return Handler


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        del request, client_address  # clients that go away are what the tests are about


@contextmanager
def running() -> Iterator[Server]:
    """Run one until the end of the block."""
    with _Quiet(("127.0.0.1", 0), _handler(lambda: server)) as httpd:
        server = Server(httpd.server_address[1])
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            httpd.shutdown()
            thread.join()


def files(folder):
    """Return the names of what is left, but for locks."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def assert_refused(fetch, url, *parts, **known):
    with pytest.raises(UserError) as caught:
        fetch(url, **known)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    for part in parts:
        assert part in message, message
