import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import cloudpickle
import numpy as np
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


# --- Manifests ---


def write_table(path, text):
    """Write the comma-separated table as CSV, TSV or Parquet."""
    if path.suffix == ".parquet":
        pa = pytest.importorskip("pyarrow")
        header, *rows = [line.split(",") for line in text.splitlines()]
        columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
        if all(label.isdigit() for label in columns["label"]):
            columns["label"] = [int(label) for label in columns["label"]]
        pytest.importorskip("pyarrow.parquet").write_table(pa.table(columns), path)
    else:
        path.write_text(text.replace(",", "\t") if path.suffix == ".tsv" else text, "utf-8-sig")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_a_manifest_names_files_labels_and_splits(tmp_path, suffix):
    for i in range(4):
        write_image(tmp_path / f"images/{i}.png", i)
    path = tmp_path / f"list.{suffix}"
    outside = tmp_path / "images/3.png"
    write_table(
        path,
        f"split,path,note,label\ntrain,images/0.png,,dog\ntrain,images/1.png,,cat\n"
        f"test,images/2.png,,dog\ntrain,{outside},,10\n",
    )
    train, test = (open_source(f"manifest:{path}", split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("10", "cat", "dog")
    assert sorted(items(train)) == [(f"{tmp_path}/images/{i}.png", label) for i, label in ((0, 2), (1, 1), (3, 0))]
    assert items(test) == [(f"{tmp_path}/images/2.png", 2)]
    assert pixels(test.examples[0]["image"])[0, 0, 0] == 2


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_integers_are_classes_in_their_order(tmp_path, suffix):
    path = tmp_path / f"list.{suffix}"
    write_table(path, "path,label\na,10\nb,9\nc,09\n" if suffix == "csv" else "path,label\na,10\nb,9\nc,9\n")
    source = open_source(f"manifest:{path}", "all")
    assert source.class_names == ("9", "10")
    files = {source.where(i): int(source.examples.labels[i]) for i in range(3)}
    assert files == {f"{tmp_path}/a": 1, f"{tmp_path}/b": 0, f"{tmp_path}/c": 0}
    (tmp_path / "classes.txt").write_text("10\n9\n")
    assert open_source(f"manifest:{path}", "all[:50%]").class_names == ("10", "9")
    (tmp_path / "classes.txt").write_text("10\n")
    assert "the label '9', which" in failure(f"manifest:{path}", "all")


def test_a_manifest_and_a_folder_have_one_order(tmp_path):
    names = [f"{c}/{i}.png" for c in "ab" for i in range(20)]
    for name in names:
        write_image(tmp_path / name)
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"{name},{name[0]}\n" for name in sorted(names)))
    manifest = open_source(f"manifest:{tmp_path}/list.csv", "all[:70%]")
    (tmp_path / "list.csv").unlink()  # which is no image
    assert items(manifest) == items(open_source(f"folder:{tmp_path}", "all[:70%]"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "has the column path not; its header is empty"),
        (b"path,class\na,b\n", "has the column label not; its header is path, class"),
        (b"path,label,label\na,b,c\n", "has the column label twice"),
        (b"path,label\na,b\n\nc,\n", "line 4, has '' for its label"),
        (b"path,label\na,b\nc\n", "line 3, has 1 cells, the header 2"),
        (b'path,label\na,"b\n', "line 2, is not well formed"),
        (b"path,label\n\xff,b\n", r"is not text in UTF-8 \(byte 11\)"),
        (b"path,label\na\0,b\n", "line 2, has 'a.x00' for its path"),
        (b"path,label,split\na,b,\n", "line 2, has '' for its split"),
        (b"path,label,split\na,b,test\n", "has no split 'train'; did you mean|has no split 'train'. Known: test"),
        (b"path,label\na,b\n", r"has no split 'train' \(cut it from 'all', as in all\[:90%\]\). Known: all"),
        (b"path,label\n", "list.csv has no row; list the images"),
    ],
)
def test_a_bad_manifest_is_one_sentence(tmp_path, text, message):
    (tmp_path / "list.csv").write_bytes(text)
    with pytest.raises(UserError, match=message) as error:
        open_source(f"manifest:{tmp_path}/list.csv", "train")
    assert str(error.value).startswith((f"{tmp_path}/list.csv", f"manifest:{tmp_path}/list.csv"))


def test_a_bad_parquet_manifest_is_one_sentence(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "list.parquet"
    for columns, message in [
        ({"path": ["a"], "label": [0.5]}, "the column label is of type double"),
        ({"path": [b"a"], "label": [1]}, "the column path is of type binary"),
        ({"path": ["a", None], "label": [1, 2]}, "row 1, has '' for its path"),
        ({"path": ["a"]}, "has the column label not"),
    ]:
        pq.write_table(pa.table(columns), path)
        assert message in failure(f"manifest:{path}", "all")
    path.write_bytes(path.read_bytes()[:-10])
    assert "is not a whole Parquet file" in failure(f"manifest:{path}", "all")
    path.unlink()
    assert f"cannot read {path}" in failure(f"manifest:{path}", "all")


def test_a_million_files_pickle_small(tmp_path):
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"x/{i}.jpg,{i % 7}\n" for i in range(20_000)))
    source = open_source(f"manifest:{tmp_path}/list.csv", "all[10%:]")
    assert len(cloudpickle.dumps(source)) < 20_000 * 25
    assert np.bincount(source.examples.sources[0].examples.labels).min() > 2_800
