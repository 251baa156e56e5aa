import os

import pytest

from vit_jax_mixer import files
from vit_jax_mixer.errors import UserError, printable


def test_only_regular_files_of_a_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    (tmp_path / "fine").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("fine")
    assert files.read_bytes(tmp_path / "link", 3) == b"abc"
    for name, words in [
        ("pipe", "is a pipe"),
        ("zero", "is a device"),
        ("sparse", "more than the 3"),
        (".", "is a folder"),
        ("none", "No such file"),
    ]:
        with pytest.raises(UserError, match=words):
            files.read_bytes(tmp_path / name, 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"{", "is damaged"),
        (b"[1]", "holds a list"),
        (b"\xff", "not text in UTF-8"),
        (b'{"a": ' + b"1" * 5_000 + b"}", "is damaged"),
    ],
)
def test_a_damaged_description_is_told(tmp_path, text, words):
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(UserError, match=words):
        files.read_json(tmp_path / "x.json")


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path):
    path = tmp_path / "x"
    files.write_atomically(path, "caf\udce9")
    assert path.read_bytes() == b"caf\xe9"
    with pytest.raises(UnicodeEncodeError):
        files.write_atomically(path, "\ud800")
    assert path.read_bytes() == b"caf\xe9"
    assert os.listdir(tmp_path) == ["x"]


def test_what_a_terminal_would_obey_is_shown_escaped():
    assert printable("a\x1b[31m\x9b\n\u202e\udce9 ü字") == r"a\x1b[31m\x9b\x0a\u202e\xe9 ü字"
    assert str(UserError("a\x1b\nb")) == "a\\x1b\nb"
