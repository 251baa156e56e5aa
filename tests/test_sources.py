import gzip
import importlib
import io
import struct

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from vit_jax_mixer.data.sources import open_source, read_idx
from vit_jax_mixer.errors import UserError


def write_image(path, value=0, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 255)).save(path)


def write_idx(path, array):
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def pixels(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)))


def test_the_embedded_digits_are_those_of_scikit_learn():
    train, test = (open_source("tfds:sklearn_digits", split) for split in ("train", "test"))
    assert (len(train.examples), len(test.examples)) == (1437, 360)
    assert train.class_names == tuple("0123456789")
    images, labels = load_digits(return_X_y=True)
    expected = sorted(
        (int(label), *np.round(image * 255 / 16).astype(int)) for image, label in zip(images, labels, strict=True)
    )
    examples = [source.examples[i] for source in (train, test) for i in range(len(source.examples))]
    assert sorted((int(e["label"]), *pixels(e["image"]).ravel().astype(int)) for e in examples) == expected


def test_tfds_takes_a_slice_and_a_folder():
    whole = open_source("tfds:sklearn_digits", "train")
    half = open_source("tfds:sklearn_digits", "train[:50%]")
    assert len(half.examples) == round(len(whole.examples) / 2)
    folder = str(importlib.import_module("tensorflow_datasets").builder("sklearn_digits").data_dir)
    again = open_source(f"tfds:{folder}", "train")
    assert again.examples[3]["image"] == whole.examples[3]["image"]


def test_an_image_folder_is_read_in_the_order_of_names(tmp_path):
    for i, name in enumerate(["train/dog/b.png", "train/dog/a.png", "train/cat/x.PNG", "test/dog/y.png"]):
        write_image(tmp_path / name, i)
    train, test = (open_source(f"folder:{tmp_path}", split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("cat", "dog")
    assert [train.examples[i]["label"] for i in range(3)] == [0, 1, 1]
    assert [pixels(train.examples[i]["image"])[0, 0, 0] for i in range(3)] == [2, 1, 0]
    assert test.examples[0]["label"] == 1
    assert train.where(1) == str(tmp_path / "train/dog/a.png")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read_gzipped_or_not(tmp_path, suffix):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28))
    for name, count in (("train", 5), ("t10k", 2)):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte{suffix}", images[:count])
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte{suffix}", np.array([3, 1, 9, 0, 2])[:count])
    source = open_source(f"idx:{tmp_path}", "train")
    assert len(source.examples) == 5
    assert source.examples[2]["label"] == 9
    np.testing.assert_array_equal(source.examples[2]["image"][..., 0], images[2])
    assert open_source(f"idx:{tmp_path}", "test").class_names == tuple("0123456789")


def test_a_broken_idx_file_is_named(tmp_path):
    path = tmp_path / "images"
    write_idx(path, np.zeros((3, 4, 4)))
    for data, message in [
        (path.read_bytes()[:-1], "holds 47 values, its header promises"),
        (b"<html>", "is not an IDX file"),
        (b"\0\0\x08\x03\0", "is not an IDX file"),
    ]:
        path.write_bytes(data)
        with pytest.raises(UserError, match=f"{path}.*{message}"):
            read_idx(path)
    zipped = tmp_path / "images.gz"
    zipped.write_bytes(gzip.compress(bytes(100))[:-20])
    with pytest.raises(UserError, match=f"cannot read {zipped}"):
        read_idx(zipped)


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("tdfs:cifar10", "train", "did you mean 'tfds'"),
        ("tfds:cifar01", "train", "has no dataset of that name; did you mean 'cifar10'"),
        ("tfds:cifar10", "train", "is not prepared in .*tfds build cifar10 --file_format=array_record"),
        ("tfds:sklearn_digits:9.9.9", "train", "cannot be opened"),
        ("tfds:sklearn digits", "train", "cannot be opened|has no dataset"),
        ("tfds:/nowhere", "train", "holds no dataset_info.json"),
        ("tfds:sklearn_digits", "tset", "has no split 'tset'; did you mean 'test'"),
        ("folder:/nowhere", "train", "/nowhere is not a folder"),
        ("idx:/nowhere", "train", "/nowhere holds no train-images-idx3-ubyte"),
        ("idx:/nowhere", "validation", "has no split 'validation'.*Known: test, train"),
    ],
)
def test_a_missing_dataset_is_one_sentence(name, split, message):
    with pytest.raises(UserError, match=message):
        open_source(name, split)


def test_a_name_like_no_other_does_not_list_a_thousand_datasets():
    with pytest.raises(UserError) as error:
        open_source("tfds:qqqqqqqq", "train")
    assert str(error.value) == "tfds:qqqqqqqq: TFDS has no dataset of that name."


def test_a_folder_that_is_not_whole_is_one_sentence(tmp_path):
    write_image(tmp_path / "train/cat/x.png")
    (tmp_path / "train/dog").mkdir()
    with pytest.raises(UserError, match=f"{tmp_path}/train/dog holds no image"):
        open_source(f"folder:{tmp_path}", "train")
    (tmp_path / "train/dog/notes.txt").touch()
    with pytest.raises(UserError, match=r"notes.txt is not an image \(.jpg"):
        open_source(f"folder:{tmp_path}", "train")
    with pytest.raises(UserError, match="has no split 'test'"):
        open_source(f"folder:{tmp_path}", "test")
    write_image(tmp_path / "test/catt/x.png")
    with pytest.raises(UserError, match="test/catt: the training split has no such class; did you mean 'cat'"):
        open_source(f"folder:{tmp_path}", "test")
