import io
import os
import socket
import threading
import urllib.request
from contextlib import contextmanager, suppress

import pytest

from tests.hostile_server import BODY, OTHER, QUICK, Reply, assert_refused, files, running
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained import connection, download, progress, transfer


@pytest.fixture
def server():
    with running() as server:
        yield server


@pytest.fixture
def fetch(tmp_path):
    return lambda url, **known: download.fetch(url, **{"patience": QUICK, "folder": tmp_path, **known})


# --- Connections that break ---


@pytest.mark.parametrize("how", [{}, {"reset": True}, {"hang": 2.0}])
def test_a_download_that_breaks_goes_on_where_it_was(server, fetch, tmp_path, how):
    url = server.offer("/a.npz", Reply(BODY, stop=100_000, **how), Reply(BODY))
    assert fetch(url).read_bytes() == BODY
    first, second = server.ranges()
    assert first is None
    begin = int(second.removeprefix("bytes=").removesuffix("-"))
    assert server.requests[1][1]["If-Range"] == '"one"'
    assert server.sent == 100_000 + len(BODY) - begin
    assert begin == 100_000 or how.get("reset")  # a reset may take back what was on its way
    assert files(tmp_path) == ["a.npz", "a.npz.json"]


def test_what_has_come_is_kept_for_the_next_call(server, fetch, tmp_path):
    url = server.offer("/a.npz", Reply(BODY, stop=1000), Reply(BODY, stop=1000), Reply(BODY, stop=1000), Reply(BODY))
    assert_refused(fetch, url, "ended after 3,000 of 300,000 bytes", f"put it at {download.place(url, tmp_path)}")
    assert files(tmp_path) == ["a.npz.partial", "a.npz.partial.json"]
    assert fetch(url).read_bytes() == BODY
    assert server.ranges() == [None, "bytes=1000-", "bytes=2000-", "bytes=3000-"]
    assert server.sent == len(BODY)
    assert files(tmp_path) == ["a.npz", "a.npz.json"]


def test_attempts_that_get_on_are_no_failures(server, fetch):
    body = BODY * 20
    url = server.offer("/a.npz", *[Reply(body, stop=1_100_000)] * 6, Reply(body))
    assert fetch(url).read_bytes() == body
    assert len(server.requests) == 6
    assert server.sent == len(body)


def test_a_server_that_ignores_ranges_is_read_from_the_start(server, fetch):
    url = server.offer("/a.npz", Reply(BODY, stop=100_000), Reply(BODY, ranges="no"))
    assert fetch(url).read_bytes() == BODY
    assert server.ranges() == [None, "bytes=100000-"]


@pytest.mark.parametrize("etag", ["", 'W/"one"'])
def test_without_a_strong_etag_nothing_is_put_together(server, fetch, etag):
    url = server.offer("/a.npz", Reply(BODY, etag=etag, stop=100_000), Reply(OTHER, etag=etag))
    assert fetch(url).read_bytes() == OTHER
    assert server.ranges() == [None, None]


@pytest.mark.parametrize("ranges", ["yes", "always"])
def test_a_file_that_changed_meanwhile_is_not_put_together(server, fetch, ranges):
    url = server.offer("/a.npz", Reply(BODY, stop=100_000), Reply(OTHER, etag='"two"', ranges=ranges))
    assert fetch(url).read_bytes() == OTHER
    assert server.ranges() == [None, "bytes=100000-", *([None] if ranges == "always" else [])]


@pytest.mark.parametrize("part", ["bytes 0-299999/300000", "bytes 100000-299999/400000", "nonsense"])
def test_another_part_than_was_asked_for_is_not_taken(server, fetch, part):
    url = server.offer("/a.npz", Reply(BODY, stop=100_000), Reply(BODY, part=part), Reply(BODY))
    assert fetch(url).read_bytes() == BODY
    assert server.ranges() == [None, "bytes=100000-", None]


def test_a_file_that_became_shorter_is_fetched_anew(server, fetch):
    url = server.offer("/a.npz", Reply(BODY, stop=100_000), Reply(BODY[:50_000], ranges="always"))
    assert fetch(url).read_bytes() == BODY[:50_000]
    assert server.ranges() == [None, "bytes=100000-", None]


def test_a_drip_is_a_stall(server, fetch):
    url = server.offer("/a.npz", Reply(BODY, drip=0.05), Reply(BODY))
    assert fetch(url).read_bytes() == BODY
    assert len(server.requests) == 2


def test_a_server_that_promises_too_much_is_not_believed(server, fetch):
    url = server.offer("/a.npz", Reply(BODY, promise=len(BODY) + 1, ranges="no"))
    assert_refused(fetch, url, "ended after 300,000 of 300,001 bytes")
    assert len(server.requests) == QUICK.attempts


def test_without_a_length_all_that_comes_is_taken(server, fetch):
    url = server.offer("/a.npz", Reply(BODY, promise=None))
    assert fetch(url).read_bytes() == BODY
    url = server.offer("/b.npz", Reply(BODY, promise=None, stop=1000))
    assert_refused(fetch, url, "1,000 bytes where 300,000 are known", size=len(BODY))


@pytest.mark.parametrize("promise", [-1, None])
def test_there_is_a_limit(server, fetch, tmp_path, monkeypatch, promise):
    monkeypatch.setattr(transfer, "MAX_BYTES", 200_000)
    url = server.offer("/a.npz", Reply(BODY, promise=promise))
    assert_refused(fetch, url, "200,000")
    assert "a.npz" not in files(tmp_path)


def test_what_is_compressed_on_its_way_is_refused(server, fetch):
    url = server.offer("/a.npz", Reply(BODY, headers={"Content-Encoding": "gzip"}))
    assert_refused(fetch, url, "gzip", "by other means")
    assert server.requests[0][1]["Accept-Encoding"] == "identity"


# --- Answers that are none ---


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_refusal_is_final(server, fetch, status):
    url = server.offer("/a.npz", Reply(b"<html>", status=status))
    assert_refused(fetch, url, url, f"the server answers {status} (", "check the address")
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_server_in_trouble_is_asked_again(server, fetch, status):
    trouble = Reply(status=status, headers={"Retry-After": "3600"})
    url = server.offer("/a.npz", trouble, trouble, Reply(BODY))
    assert fetch(url).read_bytes() == BODY
    url = server.offer("/b.npz", trouble)
    assert_refused(fetch, url, f"the server answers {status} (", "try again later")
    assert len(server.requests) == 3 + QUICK.attempts


def test_the_server_may_ask_for_patience(server, fetch, capsys):
    url = server.offer("/a.npz", Reply(status=503, headers={"Retry-After": "1"}), Reply(BODY))
    fetch(url, patience=download.Patience(wait=0.01, longest_wait=1))
    assert "the server answers 503 (Service Unavailable); trying again in 1 s." in capsys.readouterr().err


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(server, fetch, tmp_path, status):
    server.offer("/end.bin", Reply(BODY, stop=100_000), Reply(BODY))
    for i in range(5):
        to = f"/{i + 1}" if i < 4 else "/end.bin"
        server.offer(f"/{i}", Reply(b"moved", status=status, headers={"Location": to}, promise=1 << 30))
    url = server.url + "/0"
    path = fetch(url)
    assert path.read_bytes() == BODY
    assert path == download.place(url, tmp_path)  # not by the name that the server chose
    assert server.requests[-1][1]["Range"] == "bytes=100000-"


def test_redirects_without_end_are_not_followed(server, fetch):
    for i in range(10):
        server.offer(f"/{i}", Reply(status=302, headers={"Location": f"/{i + 1}"}))
    assert_refused(fetch, server.url + "/0", "redirects too often")
    assert len(server.requests) == 6
    server.offer("/a", Reply(status=302, headers={"Location": "/b"}))
    server.offer("/b", Reply(status=302, headers={"Location": "/a"}))
    assert_refused(fetch, server.url + "/a", "redirects too often")
    assert len(server.requests) == 6 + 3


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/a", "gopher://x", "data:,x", "http://:x/", ""])
def test_redirects_out_of_the_web_are_not_followed(server, fetch, tmp_path, to):
    url = server.offer("/a.npz", Reply(status=302, headers={"Location": to} if to else {}))
    assert_refused(fetch, url)
    assert files(tmp_path) == []


def test_no_redirect_leads_from_https_to_http():
    request = urllib.request.Request("https://host/a")
    (handler,) = (h for h in connection.opener(connection.Watch(1)).handlers if isinstance(h, connection._Redirects))
    with pytest.raises(UserError, match="https://host/a redirects to http://host/b, which is not safe"):
        handler.redirect_request(request, io.BytesIO(), 302, "Found", {}, "http://host/b")
    assert handler.redirect_request(request, io.BytesIO(), 302, "Found", {}, "https://host/b").full_url[-1] == "b"


def test_offline_the_sentence_says_what_to_put_where(fetch, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/a.npz"
        assert_refused(fetch, url, f"fetch {url} by other means and put it at {download.place(url, tmp_path)}")
    for host in ("no-such-host.invalid", "x" * 70 + ".invalid"):
        url = f"https://{host}/a.npz"
        assert_refused(fetch, url, f"fetch {url} by other means and put it at {download.place(url, tmp_path)}")


def test_a_server_that_speaks_no_http_is_refused(fetch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.npz"
        assert_refused(fetch, url, "no connection to", patience=download.Patience(attempts=1, stall=0.1))


# --- Servers that never come to an end, and caches that others can write ---


@contextmanager
def endless(begin, again, pause=0.0):
    """Run a server that sends ``begin`` to each that connects, and then ``again`` for ever."""
    stop = threading.Event()

    def serve(connection):
        with connection, suppress(OSError):
            connection.recv(65536)
            connection.sendall(begin)
            while not stop.wait(pause):
                connection.sendall(again)

    def accept():
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/a.npz"
        finally:
            stop.set()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"


@pytest.mark.parametrize(
    ("begin", "again", "pause"),
    [
        (b"HTTP/1.1 200 OK\r\nX: ", b"a", 0.05),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.001),
        (CHUNKED, b"X: a\r\n", 0.001),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;", b"a", 0.05),
    ],
    ids=["header", "continue", "trailer", "chunk"],
)
def test_what_never_ends_is_cut(fetch, begin, again, pause):
    with endless(begin, again, pause) as url:
        assert_refused(fetch, url, "cannot be fetched")


@pytest.mark.parametrize("part", ["bytes 1000-/*", "bytes 1000-1999/*", "bytes 1000-299999/1000", "1000-299999/300000"])
def test_a_resumed_file_is_as_long_as_was_promised(server, fetch, part):
    short = Reply(BODY[:2000], part=part, ranges="always")
    url = server.offer("/a.npz", Reply(BODY, stop=1000), short, Reply(BODY))
    assert fetch(url).read_bytes() == BODY


def test_a_link_in_the_cache_is_not_written_through(server, fetch, tmp_path):
    url = server.offer("/a.npz", Reply(BODY))
    place = download.place(url, tmp_path)
    place.parent.mkdir(parents=True)
    mine = tmp_path / "thesis"
    for make in ("symlink_to", "hardlink_to"):
        mine.write_text("mine")
        getattr(place.with_name("a.npz.partial"), make)(mine)
        place.with_name("a.npz.partial.json").write_text('{"etag": "\\"one\\"", "total": 300000}')
        assert fetch(url).read_bytes() == BODY
        assert mine.read_text() == "mine"
        place.unlink()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/null")])
def test_pipes_and_links_in_the_cache_are_not_waited_for(server, fetch, tmp_path, make):
    url = server.offer("/a.npz", Reply(BODY))
    place = download.place(url, tmp_path)
    place.parent.mkdir(parents=True)
    make(place.with_name("a.npz.json"))
    make(place.with_name("a.npz.partial"))
    make(place.with_name("a.npz.partial.json"))
    assert fetch(url).read_bytes() == BODY
    place.unlink()
    place.with_name("a.npz.lock").unlink()
    make(place.with_name("a.npz.lock"))
    assert_refused(fetch, url, "a.npz")


def test_what_a_server_says_is_shown_escaped(server, fetch, capsys):
    url = server.offer("/a.npz", Reply(status=503, headers={"Retry-After": "9" * 5000}))
    assert_refused(fetch, url, "503")
    progress.say("\x1b[2J")
    assert "\x1b" not in capsys.readouterr().err
