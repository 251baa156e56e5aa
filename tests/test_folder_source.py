import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import cloudpickle
import pytest

from tests.helpers import environment
from tests.test_sources import pixels, write_image
from vit_jax_mixer.data.sources import open_source, open_splits
from vit_jax_mixer.errors import UserError


def items(source):
    """Return (path, label) of all examples, in order."""
    return [(source.where(i), source.examples[i]["label"]) for i in range(len(source.examples))]


def failure(name, split="train"):
    with pytest.raises(UserError) as error:
        open_source(name, split)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- Folders ---


def test_a_folder_gives_each_split_the_classes_of_training(tmp_path):
    names = ["train/dog/b.png", "train/dog/a.jpg", "train/cat/x.PNG", "train/big/cat/y.webp", "test/dog/y.bmp"]
    for i, name in enumerate(names):
        write_image(tmp_path / name, 50 * i)
    (tmp_path / "train/.DS_Store").touch()
    (tmp_path / "train/.hidden").mkdir()
    train, test = (open_source(f"folder:{tmp_path}", split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("big/cat", "cat", "dog")
    assert sorted(items(train)) == [
        (f"{tmp_path}/train/big/cat/y.webp", 0),
        (f"{tmp_path}/train/cat/x.PNG", 1),
        (f"{tmp_path}/train/dog/a.jpg", 2),
        (f"{tmp_path}/train/dog/b.png", 2),
    ]
    assert items(test) == [(f"{tmp_path}/test/dog/y.bmp", 2)]
    cat = next(i for i in range(4) if train.where(i).endswith("x.PNG"))
    assert pixels(train.examples[cat]["image"])[0, 0, 0] == 100
    assert set(open_splits(f"folder:{tmp_path}")) == {"train", "test"}


def test_a_folder_without_splits_is_cut_into_fair_parts(tmp_path):
    for name in ("cat", "dog"):
        for i in range(200):
            path = tmp_path / name / f"{i}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.touch()
    name = f"folder:{tmp_path}"
    train, test, whole = (items(open_source(name, split)) for split in ("all[:75%]", "all[75%:]", "all"))
    assert train + test == whole
    assert len(train) == 300
    assert 120 < sum(label for _, label in train) < 180
    # The order is of the paths alone: more files move none of those that are there.
    (tmp_path / "cat/new.jpg").touch()
    again = items(open_source(name, "all"))
    assert [item for item in again if "new.jpg" not in item[0]] == whole
    (tmp_path / "elsewhere").mkdir()
    for part in ("cat", "dog"):
        (tmp_path / part).rename(tmp_path / "elsewhere" / part)
    moved = items(open_source(f"{name}/elsewhere", "all"))
    assert [path.replace("elsewhere/", "") for path, _ in moved] == [path for path, _ in again]
    assert "has no split 'train' (cut it from 'all', as in all[:90%])" in failure(f"{name}/elsewhere")


def test_locomotives_may_be_a_class(tmp_path):
    for name in ("train", "bus"):
        write_image(tmp_path / name / "x.png")
    assert open_source(f"folder:{tmp_path}", "all").class_names == ("bus", "train")


def test_classes_txt_gives_the_order_of_labels(tmp_path):
    for name in ("train/cat/x.png", "train/dog/x.png", "test/dog/x.png"):
        write_image(tmp_path / name)
    (tmp_path / "classes.txt").write_text("\ufeffdog\nemu\ncat\n", "utf-8")
    train, test = (open_source(f"folder:{tmp_path}", split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("dog", "emu", "cat")
    assert sorted(label for _, label in items(train)) == [0, 2]
    for text, message in [
        ("dog\nctt\n", "train/cat: .*classes.txt lists no such class; did you mean 'ctt'"),
        ("dog\ncat\ndog\n", "classes.txt, line 3: 'dog' is there twice"),
        ("dog\n\ncat\n", "classes.txt, line 2: '' is empty"),
        ("", "classes.txt is empty"),
    ]:
        (tmp_path / "classes.txt").write_text(text)
        with pytest.raises(UserError, match=message):
            open_source(f"folder:{tmp_path}", "train")
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe")
    assert "is not text in UTF-8" in failure(f"folder:{tmp_path}")
    (tmp_path / "classes.txt").write_text("x\ny\n")
    (tmp_path / "x").mkdir()
    for name in ("train", "test", "x"):
        (tmp_path / name).rename(tmp_path / f".{name}")
    for name in ("x", "y"):
        write_image(tmp_path / name / "1.png")
    assert open_source(f"folder:{tmp_path}", "all").class_names == ("x", "y")


def test_a_folder_that_is_not_whole_is_one_sentence(tmp_path):
    name = f"folder:{tmp_path}"
    assert f"{tmp_path} holds no folder" in failure(name)
    (tmp_path / "train").mkdir()
    assert f"{name} has no split 'train'" in failure(name)
    (tmp_path / "train/dog").mkdir()
    assert f"{tmp_path}/train/dog holds no image" in failure(name)
    write_image(tmp_path / "train/cat/x.png")
    assert f"{tmp_path}/train/dog holds no image" in failure(name)
    (tmp_path / "train/dog/notes.txt").touch()
    assert f"{tmp_path}/train/dog/notes.txt is not an image (.jpg" in failure(name)
    (tmp_path / "train/dog/notes.txt").unlink()
    write_image(tmp_path / "train/dog/x.png")
    assert "has no split 'test'" in failure(name, "test")
    write_image(tmp_path / "test/catt/x.png")
    assert "test/catt: the training split has no such class; did you mean 'cat'" in failure(name, "test")
    write_image(tmp_path / "train/stray.png")
    assert f"{tmp_path}/train holds stray.png outside the class folders" in failure(name)


def test_links_and_odd_files_are_named_when_they_are_read(tmp_path):
    cat = tmp_path / "train/cat"
    cat.mkdir(parents=True)
    for name, target in (("broken.png", "nowhere.png"), ("self.png", "self.png")):
        (cat / name).symlink_to(target)
    source = open_source(f"folder:{tmp_path}", "train")
    for index in range(2):
        with pytest.raises(UserError, match=f"cannot read {source.where(index)} "):
            source.examples[index]
    os.mkfifo(cat / "pipe.png")  # reading it in the ordinary way would wait for ever
    source = open_source(f"folder:{tmp_path}", "train")
    pipe = next(i for i in range(3) if source.where(i).endswith("pipe.png"))
    assert source.examples[pipe]["image"] == b""


def test_links_to_folders_may_lead_aside_but_not_back(tmp_path):
    write_image(tmp_path / "train/cat/x.png")
    (tmp_path / "train/dog").symlink_to("cat")
    assert len(open_source(f"folder:{tmp_path}", "train").examples) == 2
    (tmp_path / "train/cat/up").symlink_to("..")
    assert "up is a link to a folder that it lies in" in failure(f"folder:{tmp_path}")


def test_a_file_that_goes_is_named_when_it_is_read(tmp_path):
    write_image(tmp_path / "train/cat/x.png")
    source = open_source(f"folder:{tmp_path}", "train")
    (tmp_path / "train/cat/x.png").unlink()
    with pytest.raises(UserError, match=f"cannot read {tmp_path}/train/cat/x.png .No such file"):
        source.examples[0]


@contextlib.contextmanager
def without_privileges():
    """The superuser, whom no permission stops, becomes nobody for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_what_may_not_be_read_is_named():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        cat = Path(folder) / "train/cat"
        write_image(cat / "x.png")
        source = open_source(f"folder:{folder}", "train")
        (cat / "x.png").chmod(0)
        with without_privileges(), pytest.raises(UserError, match=r"cannot read .*x.png .Permission denied"):
            source.examples[0]
        cat.chmod(0)
        with without_privileges():
            assert f"cannot read {cat} (Permission denied)" in failure(f"folder:{folder}")
        cat.chmod(0o755)


def test_a_copy_in_another_process_reads_the_same(tmp_path):
    for i in range(5):
        write_image(tmp_path / f"train/cat/ü {i}.png", i)
    os.rename(tmp_path / "train/cat/ü 4.png", os.fsencode(tmp_path) + b"/train/cat/\xff.png")
    source = open_source(f"folder:{tmp_path}", "train[1:]")
    (tmp_path / "source").write_bytes(cloudpickle.dumps(source))
    script = (
        "import pickle, sys; s = pickle.load(open(sys.argv[1], 'rb'));"
        "open(sys.argv[2], 'wb').write(pickle.dumps([(s.where(i), s.examples[i]) for i in range(len(s.examples))]))"
    )
    line = [sys.executable, "-c", script, tmp_path / "source", tmp_path / "read"]
    subprocess.run(line, env=environment(), check=True)
    read = pickle.loads((tmp_path / "read").read_bytes())
    assert read == [(source.where(i), source.examples[i]) for i in range(4)]
