import base64
import hashlib
import io
import json
import subprocess
import sys
import time

import pytest

from tests.helpers import ROOT, assert_one_sentence, command, environment
from tests.hostile_server import BODY, OTHER, QUICK, Reply, assert_refused, files, running
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained import download

SHA = hashlib.sha256(BODY).hexdigest()
MD5 = hashlib.md5(BODY).hexdigest()
# Starts `download` as a program of its own, without what the package around it imports.
ALONE = f"""
import sys, types
package = types.ModuleType("vit_jax_mixer.pretrained")
package.__path__ = [{str(ROOT / "vit_jax_mixer/pretrained")!r}]
sys.modules[package.__name__] = package
from vit_jax_mixer.pretrained import download
assert "jax" not in sys.modules and "numpy" not in sys.modules
"""


@pytest.fixture
def server():
    with running() as server:
        yield server


@pytest.fixture
def fetch(tmp_path):
    return lambda url, **known: download.fetch(url, **{"patience": QUICK, "folder": tmp_path, **known})


def alone(code, *args):
    """Start a Python of its own that runs ``code`` after the lines above."""
    line = [sys.executable, "-c", ALONE + code, *map(str, args)]
    return subprocess.Popen(line, cwd=ROOT, env=environment(), stdout=-1, stderr=-1, text=True)


# --- What is kept, and where ---


def test_a_file_is_fetched_once(server, fetch, tmp_path):
    url = server.offer("/models/a.npz", Reply(BODY))
    path = fetch(url)
    assert path.read_bytes() == BODY
    assert path == fetch(url) == download.place(url, tmp_path)
    assert len(server.requests) == 1
    assert files(tmp_path) == ["a.npz", "a.npz.json"]
    assert json.loads((path.parent / "a.npz.json").read_text()) == {"url": url, "size": len(BODY), "sha256": SHA}


def test_files_of_one_name_do_not_meet(server, fetch):
    urls = [server.offer("/1k/a.npz", Reply(BODY)), server.offer("/21k/a.npz", Reply(OTHER))]
    urls += [server.offer("/a.npz?v=1", Reply(BODY)), server.offer("/a.npz?v=2", Reply(OTHER))]
    assert [fetch(url).read_bytes() for url in urls] == [BODY, OTHER, BODY, OTHER]
    assert {fetch(url).name for url in urls} == {"a.npz"}


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://host/..%2f..%2fetc%2fpasswd", "passwd"),
        ("https://host/a/..%5C..%5Cx.npz", "x.npz"),
        ("https://host/a/..", "weights"),
        ("https://host/%2e%2e", "weights"),
        ("https://host", "weights"),
        ("https://host/.bashrc", "bashrc"),
        ("https://host/a%00b%0a.npz", "a_b_.npz"),
        ("https://host/" + "x" * 5000 + ".npz", "x" * 96 + ".npz"),
        ("https://..../a.npz", "a.npz"),
    ],
)
def test_no_name_leads_out_of_the_folder(tmp_path, url, name):
    path = download.place(url, tmp_path)
    assert path.name == name
    assert path.resolve().parent.parent == tmp_path.resolve()


def test_google_storage_has_an_address_on_the_web(tmp_path):
    assert download.place("gs://bucket/a/b.npz", tmp_path) == download.place(
        "https://storage.googleapis.com/bucket/a/b.npz", tmp_path
    )


@pytest.mark.parametrize("url", ["s3://bucket/a.npz", "file:///etc/passwd", "ftp://host/a", "a.npz"])
def test_other_addresses_are_refused(fetch, url):
    assert_refused(fetch, url, repr(url))


@pytest.mark.parametrize(
    "url", ["http://me:secret@host/a", "http://host:x/a", "http://[::1/a", "http://a b/c", "https://"]
)
def test_addresses_without_a_plain_host_are_refused(fetch, url):
    assert_refused(fetch, url, "give one as https://host/file.npz")
    with pytest.raises(UserError, match=r"^((?!secret).)*$"):
        fetch(url)


# --- Lengths and hashes ---


@pytest.mark.parametrize("known", [{"sha256": SHA}, {"md5": MD5.upper()}, {"size": len(BODY)}])
def test_a_server_that_promises_too_little_is_found_out(server, fetch, tmp_path, known):
    url = server.offer("/a.npz", Reply(BODY, promise=1000))
    assert_refused(fetch, url, url, **known)
    assert files(tmp_path) == []
    server.offer("/a.npz", Reply(BODY))
    assert fetch(url, **known).read_bytes() == BODY


@pytest.mark.parametrize("known", [{"sha256": SHA}, {"md5": MD5}, {"size": len(BODY) + 1}])
def test_another_file_than_the_known_one_is_not_kept(server, fetch, tmp_path, known):
    url = server.offer("/a.npz", Reply(OTHER))
    assert_refused(fetch, url, url, **known)
    assert files(tmp_path) == []


def test_the_hash_that_googles_store_sends_is_compared(server, fetch, tmp_path):
    def digest(body):
        return base64.b64encode(hashlib.md5(body).digest()).decode()

    wrong = Reply(BODY, headers={"x-goog-hash": f"crc32c=AAAAAA==, md5={digest(OTHER)}"})
    url = server.offer("/a.npz", wrong)
    assert_refused(fetch, url, f"its MD5 is {MD5} and should be {hashlib.md5(OTHER).hexdigest()}", "try again")
    assert files(tmp_path) == []
    server.offer("/a.npz", Reply(BODY, headers={"x-goog-hash": f"crc32c=AAAAAA==,md5={digest(BODY)}"}))
    assert fetch(url).read_bytes() == BODY


def test_a_file_that_changed_since_the_first_time_is_refused_until_its_record_is_deleted(server, fetch, tmp_path):
    url = server.offer("/a.npz", Reply(BODY))
    path = fetch(url)
    path.unlink()
    server.offer("/a.npz", Reply(OTHER))
    record = path.with_name("a.npz.json")
    assert_refused(fetch, url, SHA, hashlib.sha256(OTHER).hexdigest(), f"delete {record}")
    assert files(tmp_path) == ["a.npz.json"]
    record.unlink()
    assert fetch(url).read_bytes() == OTHER


def test_a_cached_file_of_another_size_is_fetched_again(server, fetch):
    url = server.offer("/a.npz", Reply(BODY))
    path = fetch(url)
    path.write_bytes(BODY[:1000])
    assert fetch(url).read_bytes() == BODY
    assert len(server.requests) == 2


def test_verifying_reads_a_cached_file(server, fetch):
    url = server.offer("/a.npz", Reply(BODY))
    path = fetch(url)
    assert fetch(url, verify=True) == path
    path.write_bytes(BODY[:-1] + b"?")
    assert fetch(url) == path
    assert_refused(fetch, url, f"{path} is damaged", f"should be {SHA}", "delete it", verify=True)
    assert len(server.requests) == 1


def test_a_file_that_was_put_there_by_hand_is_used(server, fetch, tmp_path):
    url = server.offer("/a.npz", Reply(OTHER))
    path = download.place(url, tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    assert_refused(fetch, url, f"{path} is damaged or another file", sha256=hashlib.sha256(OTHER).hexdigest())
    assert fetch(url, sha256=SHA) == path
    path.write_bytes(BODY[:-1] + b"?")
    assert_refused(fetch, url, f"should be {SHA}", verify=True)
    assert server.requests == []


# --- The disk, and other processes ---


def test_a_process_that_was_killed_leaves_what_the_next_can_use(server, fetch, tmp_path):
    url = server.offer("/a.npz", Reply(BODY, stop=200_000, hang=60), Reply(BODY))
    process = alone("download.fetch(sys.argv[1], folder=sys.argv[2])", url, tmp_path)
    partial = download.place(url, tmp_path).with_name("a.npz.partial")
    while not partial.exists() or partial.stat().st_size < 100_000:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert fetch(url).read_bytes() == BODY
    assert server.ranges()[1] is not None


def test_a_folder_that_cannot_be_written_is_named(server, fetch, tmp_path):
    (tmp_path / "file").write_text("")
    url = server.offer("/a.npz", Reply(BODY))
    assert_refused(fetch, url, "cannot read or write", "Not a directory", download.CACHE, folder=tmp_path / "file")


def test_a_full_disk_is_one_sentence_and_left_clean(server, tmp_path):
    url = server.offer("/a.npz", Reply(BODY))
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    download.fetch(sys.argv[1], folder=sys.argv[2])
except download.UserError as error:
    print(error)
"""
    out, err = alone(code, url, tmp_path).communicate()
    assert "cannot read or write" in out, err
    assert "File too large" in out
    assert files(tmp_path) == []


def fetch_in_processes(url, folder, before=""):
    code = f"{before}\nprint(download.fetch(sys.argv[1], folder=sys.argv[2]))"
    processes = [alone(code, url, folder) for _ in range(4)]
    results = [process.communicate() for process in processes]
    paths = {out.strip() for out, _ in results}
    assert paths == {str(download.place(url, folder))}, results
    assert download.place(url, folder).read_bytes() == BODY
    assert files(folder) == ["a.npz", "a.npz.json"]


def test_of_several_processes_one_fetches(server, tmp_path):
    url = server.offer("/a.npz", Reply(BODY, hang=0.5))
    fetch_in_processes(url, tmp_path)
    assert len(server.requests) == 1
    assert server.sent == len(BODY)


def test_without_locks_several_processes_do_not_disturb_each_other(server, tmp_path):
    url = server.offer("/a.npz", Reply(BODY, stop=100_000, hang=0.2), Reply(BODY, hang=0.2))
    fetch_in_processes(url, tmp_path, before="download.fcntl = None")


# --- What is shown ---


def test_lines_at_the_beginning_and_the_end(server, fetch, capsys):
    url = server.offer("/a.npz", Reply(BODY))
    path = fetch(url)
    first, last = capsys.readouterr().err.splitlines()
    assert first == f"fetching {url} (0.3 MB)"
    assert last.startswith("fetched 0.3 MB in ")
    assert last.endswith(f" s to {path}")


def test_a_bar_on_a_terminal(server, fetch, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    fetch(server.offer("/a.npz", Reply(BODY)))
    fetch(server.offer("/b.npz", Reply(BODY, promise=None)))
    assert "\r  " in terminal.getvalue()
    assert "%" in terminal.getvalue()


def test_the_command_fetches_an_address_and_verifies_it(server, tmp_path, monkeypatch):
    monkeypatch.setenv(download.CACHE, str(tmp_path))
    url = server.offer("/a.npz", Reply(BODY))
    result = command("pretrained", url)
    assert result.stdout == f"{download.place(url)}\n", result.stderr
    download.place(url).write_bytes(BODY[:-1] + b"?")
    assert_one_sentence(command("pretrained", url, "--verify"), "is damaged", SHA)
    assert len(server.requests) == 1
