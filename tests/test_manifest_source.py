"""Tables of image files and labels: CSV, TSV and Parquet."""

import cloudpickle
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.test_folder_source import failure, items
from tests.test_sources import pixels, write_image
from vit_jax_mixer.data.sources import open_source, open_splits
from vit_jax_mixer.errors import UserError


def write_table(path, text):
    """Write the comma-separated table as CSV, TSV or Parquet."""
    if path.suffix == ".parquet":
        header, *rows = [line.split(",") for line in text.splitlines()]
        columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
        if all(label.isdigit() for label in columns.get("label", ["cat"])):
            columns["label"] = [int(label) for label in columns["label"]]
        pq.write_table(pa.table(columns), path)
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
    assert "1 of its 2 classes are none of " in failure(f"manifest:{path}", "all")


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
        (b"path,label\n\xff,b\n", r"is not text in UTF-8 \(line 1 or later\)"),
        (b"path,label\na\0,b\n", "line 2, has 'a.x00' for its path"),
        (b"path,label,split\na,b,\n", "line 2, has '' for its split"),
        (b"path,label,split\na,b,test\n", "has no split 'train'; did you mean|has no split 'train'. Known: test"),
        (b"path,label\na,b\n", r"has no split 'train' \(cut it from 'all', as in all\[:90%\]\). Known: all"),
        (b"path,label\n", "list.csv has no row; list the images"),
    ],
)
def test_a_bad_manifest_is_one_sentence(tmp_path, text, message):
    (tmp_path / "list.csv").write_bytes(text)
    name = f"manifest:{tmp_path}/list.csv"
    with pytest.raises(UserError, match=message) as error:
        open_source(name, "train" if "split 'train'" in message else "all").check_labelled(name, "the task")
    starts = [f"{start}{tmp_path}/list.csv" for start in ("", "manifest:", "the task needs labels, and ")]
    assert str(error.value).startswith(tuple(starts))


@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
def test_files_without_labels_are_examples_all_the_same(tmp_path, name):
    for i in range(3):
        write_image(tmp_path / f"{i}.png", i)
    source = f"manifest:{tmp_path / name}"
    for text, counts in [
        ("path\n0.png\n1.png\n", {"all": 2}),
        ("path,split\n0.png,train\n1.png,test\n2.png,test\n", {"train": 1, "test": 2}),
        ("path,label\n0.png,cat\n1.png,\n", {"all": 2}),
        ("path,label,split\n0.png,cat,a\n1.png,dog,b\n2.png,,b\n", {"b": 2}),
    ]:
        write_table(tmp_path / name, text)
        for split, count in counts.items():
            found = open_source(source, split)
            assert [found.examples[i].keys() for i in range(len(found.examples))] == [{"image"}] * count
            assert found.class_names == ()
            assert found.unlabelled.startswith(str(tmp_path / name))
    assert open_source(source, "a").class_names == ("cat", "dog")
    assert open_source(source, "a").examples[0]["label"] == 0
    with pytest.raises(UserError, match=r"^the task needs labels, and .*(line 4|row 2), has '' for its label; fill"):
        open_source(source, "b").check_labelled(source, "the task")


def test_a_bad_parquet_manifest_is_one_sentence(tmp_path):
    path = tmp_path / "list.parquet"
    for columns, message in [
        ({"path": ["a"], "label": [0.5]}, "has the label 0.5, no whole number"),
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


def test_labels_are_whole_numbers_by_value(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("path,label,split\na,1.0,x\nb,10.0,y\nc,-1,x\nd,9999999999,y\ne,01,y\n")
    read = {split: open_source(f"manifest:{path}", split) for split in "xy"}
    assert read["x"].class_names == read["y"].class_names == ("-1", "1", "10", "9999999999")
    pq.write_table(pa.table({"path": ["a", "b", "c"], "label": [1.0, 2.0, 10.0]}), tmp_path / "list.parquet")
    assert open_source(f"manifest:{tmp_path}/list.parquet", "all").class_names == ("1", "2", "10")


def test_blanks_around_a_split_are_none_of_its_name(tmp_path):
    (tmp_path / "list.csv").write_text("path,label,split\na,x,train\nb,y, train\nc,x,train \nd,y,test\n")
    assert set(open_splits(f"manifest:{tmp_path}/list.csv")) == {"train", "test"}
    assert len(open_source(f"manifest:{tmp_path}/list.csv", "train").examples) == 3


@pytest.mark.parametrize("label", [1e300, float("inf"), 2.0**53])
def test_a_float_that_is_no_exact_number_is_no_label(tmp_path, label):
    pq.write_table(pa.table({"path": ["a", "b"], "label": [label, 2.0]}), tmp_path / "list.parquet")
    assert "no whole number" in failure(f"manifest:{tmp_path}/list.parquet", "all")


def test_a_manifest_takes_no_more_than_a_list_of_images_does(tmp_path):
    pq.write_table(pa.table({"path": ["x" * 100_000] * 10_000, "label": [1] * 10_000}), tmp_path / "list.parquet")
    assert "unpacks to far more than a list" in failure(f"manifest:{tmp_path}/list.parquet", "all")
    path = tmp_path / "list.csv"
    path.write_text("path,label\n" + "x" * 3_000_000)
    assert "line 2, has more than 1,048,576 characters" in failure(f"manifest:{path}", "all")
    path.write_text("path,label\n" + "x" * 200_000 + ",a\n")
    assert "line 2, is not well formed (field larger than field limit" in failure(f"manifest:{path}", "all")
    with path.open("wb") as file:
        file.truncate(200 << 30)
    assert "line 1, has more than" in failure(f"manifest:{path}", "all")
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "is a device, not a regular file" in failure(f"manifest:{path}", "all")
