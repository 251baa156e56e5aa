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
from vit_jax_mixer.data import record
from vit_jax_mixer.data.sources import open_source, open_splits
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.predictors.image_files import find_images


def items(source):
    """Return (path, label) of all examples, in order."""
    return [(source.where(i), source.examples[i]["label"]) for i in range(len(source.examples))]


def failure(name, split="train"):
    with pytest.raises(UserError) as error:
        open_source(name, split).check_labelled(name, "the task")
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
        ("dog\nctt\n", r"/train: 1 of its 2 classes are none of .*/classes.txt's 2, 'cat'; .* did you mean 'ctt'"),
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
    assert f"{tmp_path} holds no folder and no image" in failure(name)
    (tmp_path / "train").mkdir()
    assert f"{tmp_path}/train holds no class folder with images" in failure(name)
    (tmp_path / "train/dog").mkdir()
    assert f"it holds {tmp_path}/train/dog (no image in it). Give each class a folder" in failure(name)
    write_image(tmp_path / "train/cat/x.png")
    assert "has no split 'test'" in failure(name, "test")
    write_image(tmp_path / "test/catt/x.png")
    assert "test: 1 of its 1 classes are none of the training split's 1, 'catt'" in failure(name, "test")
    assert "did you mean 'cat'" in failure(name, "test")
    write_image(tmp_path / "train/stray.png")
    assert f"{tmp_path}/train holds stray.png outside the class folders" in failure(name)


def make(root, *names):
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        elif name.endswith((".png", ".jpg")):
            write_image(path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return f"folder:{root}"


def test_what_is_no_image_is_passed_over_and_listed_all_at_once(tmp_path):
    name = make(tmp_path, *(f"{split}/{c}/{i}.png" for split in ("train", "val") for c in "ab" for i in range(4)))
    strays = ["train/a/notes.txt", "train/b/x.heic", "train/b.zip", "train/c/", "train/d/only.tiff", "val/a/Y.MOV"]
    make(tmp_path, *strays, "train/a/Thumbs.db", "README.md")
    train = open_source(name, "train[:4]")
    assert set(train.passed_over) == {
        *(f"{tmp_path}/{s}" for s in (*strays[:3], strays[4], "train/a/Thumbs.db")),
        f"{tmp_path}/train/c (no image in it)",
        f"{tmp_path}/train/d (no image in it)",
    }
    assert train.class_names == ("a", "b")
    assert train.remarks()[0].startswith("passed over: 7 files or folders hold no image: ")
    assert len(open_source(name, "train+val").passed_over) == 8
    with pytest.raises(UserError, match=r"split 'train': 7 files .*train/a/notes.txt.*on_bad_example='skip'"):
        open_source(name, "train", skip_bad=False)


SYSTEM = (
    "@eaDir|#recycle|#snapshot|__MACOSX|.AppleDouble|$RECYCLE.BIN|System Volume Information|lost+found|@Recycle|@tmp"
    "|.ipynb_checkpoints|~snapshot|.thumbnails|.Trash-1000|FOUND.001|$Extend|LOST.DIR|@SynoResource|_NAS_Recycle_RAID"
    "|@GMT-2024.01.02-03.04.05|Cleanup At Startup"
)


@pytest.mark.parametrize("folder", SYSTEM.split("|"))
def test_folders_of_the_system_are_no_classes(tmp_path, folder):
    name = make(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png")
    for place in (".", "train", "train/a", "train/b"):
        make(tmp_path / place / folder, "0.png/SYNOPHOTO_THUMB_M.png", "._1.png", "x/y.png")
    make(tmp_path / "train/a", "Thumbs.db", "desktop.ini", ".DS_Store", "._1.png", "~$a.docx")
    make(tmp_path / "train/a", "1.png:Zone.Identifier", "1.png@SynoEAStream")
    source = open_source(name, "train", skip_bad=False)
    assert source.class_names == ("a", "b")
    assert len(source.examples) == 2
    assert set(open_splits(name)) == {"train", "test"}
    make(tmp_path, *(f"train/a/{folder}/thumb{i}.png" for i in range(3)))
    assert len(find_images(f"{tmp_path}/train")) == 2


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (("Training/a/1.png", "Testing/a/1.png"), {"Training", "Testing"}),
        (("TRAIN/a/1.png", "dev/a/1.png"), {"TRAIN", "dev"}),
        (("train/a/1.png", "test/1.png"), {"train", "test"}),  # as Kaggle has them
        (("val/a/1.png",), {"val"}),
        (("train/a/1.png", "test.zip"), {"train", "test"}),
        (("a/1.png", "b/x/1.png"), {"b", "all"}),
        (("test/1.png", "control/1.png"), {"all"}),
        (("train2017/a/1.png", "val2017/a/1.png"), {"train2017", "val2017"}),
        (("seg_train/a/1.png", "seg_test/a/1.png", "seg_pred/1.png"), {"seg_train", "seg_test"}),
        (("bullet_train/a/1.png", "car/a/1.png"), {"bullet_train", "car", "all"}),
    ],
)
def test_splits_are_known_by_their_usual_names(tmp_path, files, splits):
    assert set(open_splits(make(tmp_path, *files))) == splits


def test_a_split_under_another_name_has_the_classes_of_training(tmp_path):
    name = make(tmp_path, "Training/a/1.png", "Training/b/1.png", "Testing/b/1.png", "valid/a/1.png")
    assert open_source(name, "train").class_names == ("a", "b")
    assert items(open_source(name, "test")) == [(f"{tmp_path}/Testing/b/1.png", 1)]
    assert open_source(name, "validation").class_names == ("a", "b")
    assert "b" in failure(make(tmp_path, "valid/c/1.png"), "val")


@pytest.mark.parametrize(
    ("files", "split", "message"),
    [
        (("data/train/a/1.png", "data/val/a/1.png"), "train", "{0} holds the splits train, val .*name folder:{0}/data"),
        (("data/train/a/1.png", "data/val/a/1.png"), "all", "name folder:{0}/data"),
        (("x/y/Training/a/1.png", "x/y/Testing/a/1.png"), "all", "name folder:{0}/x/y"),
        (("x/train/a/1.png",), "all", "name folder:{0}/x"),
        (
            ("a/train/1.png", "a/test/1.png", "b/train/1.png", "b/test/1.png"),
            "all",
            "/a holds test and train, which",
        ),
        (("train/1.png", "test/1.png"), "train", "the task needs labels, and {0}/train holds 1.png outside the class"),
        (("train/1.png",), "train", "{0}/train holds 1.png outside"),
        (("train/a/1.png", "test/1.png"), "test", "{0}/test holds 1.png outside the class folders"),
        (("train/a/1.png", "test.tar.gz"), "test", "{0}/test.tar.gz is packed; unpack it"),
        (("train.zip", "test.zip"), "train", "{0}/t.*.zip is packed; unpack it"),
        (("train/a.zip", "train/b.tgz"), "train", "{0}/train/a.zip is packed; unpack it"),
        (("train/a/a.7z", "train/b/1.png"), "train", "{0}/train/a/a.7z is packed"),
        (("1.png", "2.png"), "train", "has no split 'train' .cut it from 'all'"),
        (("1.png", "2.png"), "all", "the task needs labels, and {0} holds 1.png outside the class folders"),
    ],
)
def test_a_folder_with_another_layout_says_what_to_do(tmp_path, files, split, message):
    name = make(tmp_path, *files)
    with pytest.raises(UserError, match=message.format(tmp_path)):
        open_source(name, split).check_labelled(name, "the task")


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (("1.png", "2.png"), {"all": 2}),
        (("train/1.png", "train/2.png", "test/1.png"), {"train": 2, "test": 1}),
        (("train/1.png", "test/1.png", "unlabelled/1.png"), {"train": 1, "test": 1, "unlabelled": 1}),
        (("train/a/1.png", "train/b/1.png", "test/1.png"), {"test": 1}),
        (("a/1.png", "b/1.png", "2.png"), {"all": 3}),
        (("train/a/1.png", "train/2.png", "test/a/1.png"), {"train": 2}),
        (("val/1.png",), {"val": 1}),
    ],
)
def test_images_outside_of_classes_have_no_labels(tmp_path, files, splits):
    name = make(tmp_path, *files)
    for split, count in splits.items():
        examples = pickle.loads(pickle.dumps(open_source(name, split).examples))
        assert [examples[i].keys() for i in range(len(examples))] == [{"image"}] * count
        source = open_source(name, f"{split}[:50%]+{split}[50%:]")
        assert (source.class_names, len(source.examples), source.examples[0].keys()) == ((), count, {"image"})
        assert record.fingerprint(source)
    if "test/a/1.png" in files:
        assert open_source(name, "test").class_names == ("a",)


def test_parts_of_which_one_has_no_labels_have_none(tmp_path):
    name = make(tmp_path, "train/a/1.png", "train/b/1.png", "test/1.png")
    source = open_source(name, "train+test")
    assert [source.examples[i].keys() for i in range(3)] == [{"image"}] * 3
    assert f"{tmp_path}/test holds 1.png outside" in failure(name, "train+test")


def test_an_archive_is_no_folder(tmp_path):
    make(tmp_path, "photos.tar.xz")
    assert "photos.tar.xz is packed; unpack it" in failure(f"folder:{tmp_path}/photos.tar.xz")
    assert "photos.tar.xz is packed; unpack it" in failure(f"manifest:{tmp_path}/photos.tar.xz")
    assert "is not a folder" in failure("folder:")
    assert "is not a folder" in failure("folder:~nobody-of-that-name/x")


def test_a_split_may_lie_in_a_folder_of_its_own_name(tmp_path):
    name = make(tmp_path, "seg_train/seg_train/a/1.png", "seg_train/seg_train/b/1.png", "seg_test/seg_test/b/1.png")
    assert open_source(name, "train").class_names == ("a", "b")
    assert items(open_source(name, "test")) == [(f"{tmp_path}/seg_test/seg_test/b/1.png", 1)]


def test_splits_by_names_of_their_own_are_noted(tmp_path):
    name = make(tmp_path, "fold1/a/1.png", "fold1/b/1.png", "fold2/a/1.png", "fold2/b/1.png")
    assert "if 'fold1', 'fold2' are splits" in open_source(name, "all").notes[0]
    make(tmp_path, "fold2/c/1.png")
    assert open_source(name, "all").notes == ()


def test_what_makes_classes_odd_is_noted(tmp_path):
    name = make(tmp_path, "photos/a/1.png", "photos/b/1.png")
    assert "all classes lie in its folder photos/" in open_source(name, "all").notes[0]
    assert "has one class alone, 'a'" in open_source(make(tmp_path / "one", "a/1.png"), "all").notes[0]


def test_names_of_any_bytes_are_classes(tmp_path):
    latin, form = os.fsdecode(b"caf\xe9"), "cafe\u0301"
    for split in ("train", "val"):
        make(tmp_path, f"{split}/{latin}/1.png", f"{split}/a\x1b[31m/{latin}.png")
    source = open_source(f"folder:{tmp_path}", "val")
    assert source.class_names == ("a\x1b[31m", latin)
    assert all(source.examples[i]["image"] for i in range(2))
    make(tmp_path, f"train/{form}/1.png", "val/caf\xe9/1.png")
    assert r"'caf\xe9' and 'cafe\u0301' differ in Unicode form alone" in failure(f"folder:{tmp_path}", "val")


def test_a_class_may_hold_any_character_in_classes_txt(tmp_path):
    make(tmp_path, "train/a\x0cb/1.png", "train/c\u2028d/1.png")
    (tmp_path / "classes.txt").write_bytes("c\u2028d\r\na\x0cb\r\n".encode())
    assert open_source(f"folder:{tmp_path}", "train").class_names == ("c\u2028d", "a\x0cb")
    (tmp_path / "classes.txt").write_text("cat\n\u3000cat\n")
    assert "differ in blanks at the ends alone" in failure(f"folder:{tmp_path}")


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
    (cat / "zero.png").symlink_to("/dev/zero")
    with open(cat / "sparse.png", "wb") as file:
        file.truncate(200 << 30)
    source = open_source(f"folder:{tmp_path}", "train")
    for index in range(len(source.examples)):
        with pytest.raises(UserError, match=r"cannot read|is a pipe|is a device|has 214,748,364,800 bytes, more than"):
            source.examples[index]


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
