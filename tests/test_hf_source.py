import io
import json
import os
import pickle
import sys
import tracemalloc

import cloudpickle
import datasets
import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.test_sources import pixels
from vit_jax_mixer.data import record
from vit_jax_mixer.data.sources import open_source, open_splits
from vit_jax_mixer.errors import UserError


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """Keep the caches of Hugging Face in the test's folder, and the network away."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (value, 0, 255)).save(file, "PNG")
    return file.getvalue()


def table(labels, image="img", label="label", features=None):
    columns = {image: [{"bytes": png(i), "path": None} for i in range(len(labels))], label: labels}
    features = {image: datasets.Image(), label: datasets.Value("int64"), **(features or {})}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


CLASSES = {"label": datasets.ClassLabel(names=["cat", "dog", "emu"])}


def check(source, labels, first=0):
    assert [source.examples[i]["label"] for i in range(len(source.examples))] == labels
    assert [pixels(source.examples[i]["image"])[0, 0, 0] for i in range(len(labels))] == [
        first + i for i in range(len(labels))
    ]


def failure(name, split="train"):
    with pytest.raises(UserError) as error:
        open_source(name, split).check_labelled(name, "the task")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_save_to_disk_wrote(tmp_path):
    whole = table([0, 2, 1, 1], features=CLASSES)
    whole.save_to_disk(tmp_path / "one")
    parts = datasets.DatasetDict(train=whole, test=whole.select([2, 3]))
    parts.save_to_disk(tmp_path / "parts")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    source = open_source(f"hf:{tmp_path}/one", "train")
    assert source.class_names == ("cat", "dog", "emu")
    check(source, [0, 2, 1, 1])
    check(open_source(f"hf:{tmp_path}/parts", "train[1:3]"), [2, 1], first=1)
    check(open_source(f"hf:{tmp_path}/parts", "test"), [1, 1], first=2)
    assert source.where(1) == f"hf:{tmp_path}/one, split train, row 1"
    assert before == sorted(path.name for path in tmp_path.rglob("*"))  # nothing is written there
    assert "has no split 'tset'; did you mean 'test'" in failure(f"hf:{tmp_path}/parts", "tset")


def test_parquet_files_give_splits_by_their_names(tmp_path):
    (tmp_path / "data").mkdir()
    table([0, 2, 1], features=CLASSES).to_parquet(tmp_path / "data/train-00000-of-00001.parquet")
    table([1], features=CLASSES).to_parquet(tmp_path / "data/test.parquet")
    splits = open_splits(f"hf:{tmp_path}/data")
    assert set(splits) == {"train", "test"}
    check(splits["train"](), [0, 2, 1])
    check(splits["test"](), [1])
    assert splits["test"]().class_names == ("cat", "dog", "emu")
    file = open_splits(f"hf:{tmp_path}/data/test.parquet")
    assert set(file) == {"train"}
    check(file["train"](), [1])
    assert len(list((tmp_path / "data").iterdir())) == 2


@pytest.mark.parametrize(
    ("names", "found", "note"),
    [
        (("TRAIN", "TEST"), {"train": 1, "test": 2}, ""),  # which datasets would join
        (("data/Training", "data/valid"), {"train": 1, "validation": 2}, ""),
        (("part", "test"), {"test": 2}, "no split has 'part.parquet'"),
        (("part-a", "part-b"), {"train": 3}, ""),
    ],
)
def test_no_parquet_file_is_lost_or_in_another_split(tmp_path, names, found, note):
    for rows, name in enumerate(names, 1):
        path = tmp_path / "a [1]" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table([1] * rows, features=CLASSES).to_parquet(path)
    splits = {split: opened() for split, opened in open_splits(f"hf:{tmp_path}/a [1]").items()}
    assert {split: len(source.examples) for split, source in splits.items()} == found
    assert all(note in " ".join(source.notes) for source in splits.values())


def test_parquet_files_of_which_one_is_no_training_are_one_sentence(tmp_path):
    for name in ("part", "TEST"):
        table([1], features=CLASSES).to_parquet(tmp_path / f"{name}.parquet")
    assert "'TEST.parquet' is no file for training by its name" in failure(f"hf:{tmp_path}", "train")
    assert "names a field twice" in failure(f"hf:{tmp_path},label=a,label=b", "train")


def test_bytes_of_parquet_files_without_features_are_images(tmp_path):
    images = [png(i) for i in range(3)]
    for name, column in (("image", images), ("img", [{"bytes": data, "path": None} for data in images])):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({name: column, "labels": ["dog", "cat", "dog"], "other": [1, 2, 3]}), path)
        source = open_source(f"hf:{path}", "train")
        assert source.class_names == ("cat", "dog")
        check(source, [1, 0, 1])


def test_images_may_be_files(tmp_path):
    (tmp_path / "x.png").write_bytes(png(0))
    paths = [str(tmp_path / "x.png"), str(tmp_path / "y.png"), None]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": None, "path": path} for path in paths], kind)
    pq.write_table(pa.table({"image": images, "label": [0, 1, 1]}), tmp_path / "data.parquet")
    source = open_source(f"hf:{tmp_path}/data.parquet", "train")
    assert pixels(source.examples[0]["image"])[0, 0, 0] == 0
    with pytest.raises(UserError, match=r"cannot read .*y.png \(No such file"):
        source.examples[1]
    with pytest.raises(UserError, match="row 2 has no image"):
        source.examples[2]


def test_labels_without_names_take_the_classes_of_training(tmp_path):
    parts = datasets.DatasetDict(train=table([0, 4, 1]), test=table([2]))
    parts.save_to_disk(tmp_path / "numbers")
    assert open_source(f"hf:{tmp_path}/numbers", "test").class_names == tuple("01234")
    text = {"label": datasets.Value("string")}
    parts = datasets.DatasetDict(train=table(["b", "a"], features=text), test=table(["b"], features=text))
    parts.save_to_disk(tmp_path / "text")
    assert open_source(f"hf:{tmp_path}/text", "test").class_names == ("a", "b")
    check(open_source(f"hf:{tmp_path}/text", "test"), [1])


def test_rows_that_were_selected_keep_their_labels(tmp_path):
    whole = table([0, 2, 1, 1], features=CLASSES)
    whole.select([3, 1, 0]).save_to_disk(tmp_path / "data")
    source = open_source(f"hf:{tmp_path}/data", "train")
    assert [source.examples[i]["label"] for i in range(3)] == [1, 2, 0]
    assert [pixels(source.examples[i]["image"])[0, 0, 0] for i in range(3)] == [3, 1, 0]


def test_a_copy_is_small_and_reads_the_same(tmp_path):
    table([i % 3 for i in range(200)], features=CLASSES).save_to_disk(tmp_path / "data")
    source = open_source(f"hf:{tmp_path}/data", "train")
    pickled = cloudpickle.dumps(source)
    assert len(pickled) < 5_000
    copy = pickle.loads(pickled)
    assert [copy.examples[i] for i in (0, 7, -1)] == [source.examples[i] for i in (0, 7, 199)]
    with pytest.raises(IndexError):
        copy.examples[200]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1]}, "has no field for an image .*It has a: int64"),
        ({"image": [b"x"]}, "has no field for a label .*It has image: binary"),
        ({"image": ["x"], "label": [1]}, "has no field for an image .*image: string, label: int64"),
        ({"image": [b"x"], "label": [0.5]}, "has no field for a label .*label: float64"),
        ({"image": [b"x", b"y"], "label": [1, None]}, "column label is empty in 1 rows"),
        ({"image": [b"x"], "label": [-1]}, "column label has the label -1, which is none of the 1 classes"),
        ({"image": [b"x"], "label": [10**12]}, "has the label 1000000000000; number the classes from 0"),
    ],
)
def test_columns_that_do_not_fit_are_one_sentence(tmp_path, columns, message):
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "data")
    name = f"hf:{tmp_path}/data"
    with pytest.raises(UserError, match=message):
        open_source(name, "train").check_labelled(name, "the task")


@pytest.mark.parametrize("columns", [{}, {"label": [0.5, 1.5]}, {"label": [-1, -1]}, {"label": [1, None]}])
@pytest.mark.parametrize("kind", ["saved", "parquet"])
def test_images_without_labels_are_examples_all_the_same(tmp_path, kind, columns):
    rows = datasets.Dataset.from_dict({"image": [png(0), png(1)], **columns})
    name = f"hf:{tmp_path}/data" + ".parquet" * (kind == "parquet")
    rows.to_parquet(name[3:]) if kind == "parquet" else rows.save_to_disk(name[3:])
    source = open_source(name, "train")
    assert [source.examples[i].keys() for i in range(2)] == [{"image"}] * 2
    assert source.class_names == ()
    assert pixels(source.examples[1]["image"]).shape[-1] in (1, 3)
    assert len(pickle.loads(pickle.dumps(source.examples))) == 2
    assert record.fingerprint(source)


def test_labels_that_training_lacks_are_named(tmp_path):
    text = {"label": datasets.Value("string")}
    parts = datasets.DatasetDict(train=table(["dog", "cat"], features=text), test=table(["catt"], features=text))
    parts.save_to_disk(tmp_path / "data")
    assert "label 'catt', which is none of the 2 classes; did you mean 'cat'" in failure(f"hf:{tmp_path}/data", "test")
    hidden = table([-1, -1], features=CLASSES)
    hidden.save_to_disk(tmp_path / "hidden")
    assert "has the label -1, which is none of the 3 classes" in failure(f"hf:{tmp_path}/hidden")


def test_columns_go_by_other_names(tmp_path):
    two = {"coarse_label": datasets.ClassLabel(names=["pet", "bird"])}
    fine = table([2, 0], image="pixel_values", label="fine_label", features={"fine_label": CLASSES["label"]})
    fine.add_column("coarse_label", [1, 0]).cast_column("coarse_label", two["coarse_label"]).save_to_disk(
        tmp_path / "d"
    )
    source = open_source(f"hf:{tmp_path}/d", "train")
    assert source.class_names == ("cat", "dog", "emu")
    assert "for coarse_label, end the source's name with ,label=NAME" in source.notes[0]
    coarse = open_source(f"hf:{tmp_path}/d,label=coarse_label,image=pixel_values", "train")
    assert coarse.class_names == ("pet", "bird")
    assert not coarse.notes
    check(coarse, [1, 0])
    assert "no label field 'fine'; did you mean 'fine_label'" in failure(f"hf:{tmp_path}/d,label=fine")
    several = table([0, 1], label="first", features={"first": CLASSES["label"]})
    several.add_column("second", [1, 0]).cast_column("second", CLASSES["label"]).save_to_disk(tmp_path / "e")
    assert "several fields for the label, first, second; name one" in failure(f"hf:{tmp_path}/e")


def test_a_row_names_no_file_outside_of_the_dataset(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.png").write_bytes(png(0))
    (tmp_path / "data/link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(tmp_path / "data/pipe.png")
    paths = [str(tmp_path / "secret.png"), "../secret.png", "link.png", "pipe.png"]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": None, "path": path} for path in paths], kind)
    pq.write_table(pa.table({"image": images, "label": [0, 1, 1, 1]}), tmp_path / "data/data.parquet")
    examples = open_source(f"hf:{tmp_path}/data/data.parquet", "train").examples
    for index in range(3):
        with pytest.raises(UserError, match=f"row {index} names the file .*, which is not in {tmp_path}/data"):
            examples[index]
    with pytest.raises(UserError, match=r"pipe.png is a pipe"):
        examples[3]


def test_a_folder_whose_name_is_a_pattern(tmp_path):
    odd = tmp_path / "a [v2] *?{x}"
    table([0, 1]).save_to_disk(odd / "saved")
    check(open_source(f"hf:{odd}/saved", "train"), [0, 1])
    (odd / "data").mkdir()
    table([0, 2, 1], features=CLASSES).to_parquet(odd / "data/x.parquet")
    check(open_source(f"hf:{odd}/data/x.parquet", "train"), [0, 2, 1])
    check(open_source(f"hf:{odd}/data", "train"), [0, 2, 1])


def test_a_saved_format_imports_nothing(tmp_path):
    table([0, 1]).save_to_disk(tmp_path / "d")
    path = tmp_path / "d/state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state | {"_format_type": "tensorflow"}))
    check(open_source(f"hf:{tmp_path}/d", "train"), [0, 1])
    assert "tensorflow" not in sys.modules
    path.write_text(json.dumps(state | {"_data_files": [{"filename": "../d/data-00000-of-00001.arrow"}]}))
    assert "names the file '../d/data-00000-of-00001.arrow', which is not beside it" in failure(f"hf:{tmp_path}/d")
    path.write_text("[" * 100_000)
    assert "nested too deeply" in failure(f"hf:{tmp_path}/d")


def test_parquet_that_unpacks_to_gigabytes_is_refused(tmp_path):
    many = pa.DictionaryArray.from_arrays(np.zeros(20_000, np.int32), pa.array([bytes(1 << 20)]))
    pq.write_table(pa.table({"image": many, "label": np.zeros(20_000, np.int64)}), tmp_path / "x.parquet")
    assert (tmp_path / "x.parquet").stat().st_size < 1 << 19
    tracemalloc.start()
    assert "and unpacks to over" in failure(f"hf:{tmp_path}/x.parquet")
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()
    assert pa.total_allocated_bytes() < 1 << 28
    (tmp_path / "y.parquet").symlink_to("/dev/zero")
    assert "is a device" in failure(f"hf:{tmp_path}")


def test_a_place_that_is_not_there_is_one_sentence(tmp_path):
    assert "cannot be opened (Couldn't reach 'user/name' on the Hub" in failure("hf:user/name:config")
    assert "is not of the form NAME, USER/NAME" in failure("hf:a/b/c")
    assert f"{tmp_path}/none holds neither" in failure(f"hf:{tmp_path}/none")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    assert "cannot be read as Parquet" in failure(f"hf:{tmp_path}/bad.parquet")
    (tmp_path / "state.json").write_text("{}")
    assert "dataset_info.json (No such file" in failure(f"hf:{tmp_path}")


@pytest.mark.parametrize("name", ["*.arrow", "state.json", "dataset_info.json"])
def test_a_pipe_in_what_was_saved_is_not_waited_for(tmp_path, name):
    table([0, 1], features=CLASSES).save_to_disk(tmp_path / "saved")
    path = next((tmp_path / "saved").glob(name))
    path.unlink()
    os.mkfifo(path)
    assert "is a pipe, not a regular file" in failure(f"hf:{tmp_path}/saved", "train")


def test_many_threads_may_read(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    table([i % 3 for i in range(100)], features=CLASSES).save_to_disk(tmp_path / "data")
    source = open_source(f"hf:{tmp_path}/data", "train")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(source.examples.__getitem__, list(range(100)) * 5))
    assert [int(pixels(e["image"])[0, 0, 0]) for e in found] == list(range(100)) * 5
    np.testing.assert_array_equal([e["label"] for e in found], [i % 3 for i in range(100)] * 5)
