import gzip
import io
import pickle
import struct
import sys
import tracemalloc

import cloudpickle
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


def test_an_idx_file_takes_no_more_memory_than_it_holds(tmp_path):
    header = b"\0\0\x08\x03" + struct.pack(">3I", 1_000_000, 1000, 1000)  # a terabyte
    (tmp_path / "huge").write_bytes(header + bytes(10))
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 5) + bytes(50_000_000)))
    tracemalloc.start()
    with pytest.raises(UserError, match="holds 10 values, its header promises"):
        read_idx(tmp_path / "huge")
    with pytest.raises(UserError, match="holds more than 5 values"):
        read_idx(tmp_path / "bomb.gz")
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_a_gzipped_idx_file_unpacks_to_no_more_than_such_files_do(tmp_path):
    shape = (300_000, 28, 28)
    with gzip.open(tmp_path / "zeros.gz", "wb", 9) as file:
        file.write(b"\0\0\x08\x03" + struct.pack(">3I", *shape))  # the values need not be there
        file.write(bytes(1_000_000))
    with pytest.raises(UserError, match=r"promises 235,200,000 values .* no more than [\d,]+ are read"):
        read_idx(tmp_path / "zeros.gz")


@pytest.mark.parametrize("place", ["10,100000x100000x3", "9" * 9, "9" * 5000, "10," + "9" * 5000 + "x1x3"])
def test_blank_images_have_bounds(place):
    with pytest.raises(UserError, match=r"at most 1,048,576 classes and 67,108,864 pixels|is not of the form") as error:
        open_source(f"blank:{place}", "train")
    assert len(str(error.value)) < 300


def test_idx_files_that_do_not_belong_together_are_named(tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((3, 4, 4)))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(2))
    with pytest.raises(UserError, match=r"holds 3 images, but .*train-labels-idx1-ubyte 2 labels"):
        open_source(f"idx:{tmp_path}", "train")
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros((3, 1)))
    with pytest.raises(UserError, match="labels have one size"):
        open_source(f"idx:{tmp_path}", "train")


def test_a_copy_of_an_idx_source_reads_the_files_itself(tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte", np.ones((100, 28, 28)))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(100) % 10)
    pickled = cloudpickle.dumps(open_source(f"idx:{tmp_path}", "train"))
    assert len(pickled) < 5_000
    copy = pickle.loads(pickled)
    assert copy.examples[13]["label"] == 3
    assert copy.examples[13]["image"].shape == (28, 28, 1)
    assert copy.where(13) == f"{tmp_path}/train-images-idx3-ubyte, image 13"


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("tdfs:cifar10", "train", "did you mean 'tfds'"),
        ("tfds:cifar01", "train", "has no dataset of that name; did you mean 'cifar10'"),
        ("tfds:cifar10", "train", "is not prepared in .*`python -m vit_jax_mixer.data tfds:cifar10 --build`"),
        ("tfds:sklearn_digits:9.9.9", "train", "cannot be opened"),
        ("tfds:sklearn digits", "train", "is not of the form NAME"),
        ("tfds:/nowhere", "train", "holds no dataset_info.json"),
        ("tfds:sklearn_digits", "tset", "has no split 'tset'; did you mean 'test'"),
        ("tfds:sklearn_digits/blue", "train", "cannot be opened"),
        ("manifest:/nowhere.csv", "train", "cannot read /nowhere.csv"),
        ("manifest:/nowhere", "train", "is not a manifest"),
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


@pytest.mark.parametrize(
    ("package", "name", "message"),
    [
        ("datasets", "hf:cifar10", "hf:cifar10 needs the package datasets: pip install"),
        ("pyarrow", "manifest:x.parquet", r"x.parquet needs pyarrow to be read: pip install -e '.\[hf\]'"),
    ],
)
def test_a_missing_package_is_one_sentence(monkeypatch, package, name, message):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=message):
        open_source(name, "train")
