import http.server
import importlib
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from etils import epath

from tests.helpers import environment
from vit_jax_mixer.data.sources import open_source, open_splits, tfds_features
from vit_jax_mixer.data.sources.tfds import build
from vit_jax_mixer.data.sources.tfrecord import checksum
from vit_jax_mixer.errors import UserError

SHARDS = {"train": (500, 0, 937), "test": (360,)}


def frame(record):
    """Frame a record as TFRecord does."""
    length = struct.pack("<Q", len(record))
    return length + checksum(length) + record + checksum(record)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Return the digits as TFRecord: the records of TFDS's own ArrayRecord files, framed anew.

    TFDS needs TensorFlow to write them.
    """
    open_source("tfds:sklearn_digits", "train")
    builder = importlib.import_module("tensorflow_datasets").builder("sklearn_digits")
    folder = tmp_path_factory.mktemp("prepared") / "sklearn_digits" / "1.0.0"
    shutil.copytree(builder.data_dir, folder, ignore=shutil.ignore_patterns("*.array_record-*"))
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        counts = SHARDS[split["name"]]
        split["shardLengths"] = list(map(str, counts))
        records = iter(builder.as_data_source(split["name"]).data_source)
        for shard, count in enumerate(counts):
            data = b"".join(frame(next(records)) for _ in range(count))
            name = f"sklearn_digits-{split['name']}.tfrecord-{shard:05}-of-{len(counts):05}"
            (folder / name).write_bytes(data)
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


@pytest.fixture
def folder(prepared, tmp_path, monkeypatch):
    """Return a copy of the prepared folder that a test may damage, and give it a cache of its own."""
    monkeypatch.setenv("VIT_JAX_MIXER_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(prepared, tmp_path / "sklearn_digits" / "1.0.0"))


def failure(function, *args):
    with pytest.raises(UserError) as error:
        function(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_both_formats_give_the_same_examples(folder):
    for split in ("train", "test", "train[30%:]+test[:7]"):
        expected, found = (open_source(name, split) for name in ("tfds:sklearn_digits", f"tfds:{folder}"))
        assert found.class_names == expected.class_names == tuple("0123456789")
        assert len(found.examples) == len(expected.examples)
        assert all(found.examples[i] == expected.examples[i] for i in range(len(found.examples)))
    assert set(open_splits(f"tfds:{folder}")) == {"train", "test"}
    assert found.where(0).startswith(
        f"tfds:{folder}, split train, example 431 ({folder}/sklearn_digits-train.tfrecord-"
    )


def test_neither_format_loads_tensorflow(folder):
    script = (
        "import sys; from vit_jax_mixer.data.sources import open_source;"
        "[open_source(name, 'train').examples[0] for name in sys.argv[1:]];"
        "assert 'tensorflow' not in sys.modules"
    )
    line = [sys.executable, "-c", script, "tfds:sklearn_digits", f"tfds:{folder}"]
    subprocess.run(line, env=environment(), check=True)


@pytest.mark.parametrize("of_folder", [False, True])
def test_copies_are_small_and_read_the_same_in_threads(folder, of_folder):
    source = open_source(f"tfds:{folder}" if of_folder else "tfds:sklearn_digits", "train")
    pickled = cloudpickle.dumps(source)
    assert len(pickled) < 8 * 1437 + 5_000
    copy = pickle.loads(pickled)
    found = [{} for _ in range(8)]

    def read(k):
        found[k] = {i: copy.examples[i] for i in range(k, 1437, 4)}

    threads = [threading.Thread(target=read, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(example == source.examples[i] for part in found for i, example in part.items())
    assert copy.examples[-1] == source.examples[1436]
    with pytest.raises(IndexError):
        copy.examples[1437]


def test_the_index_is_made_once_and_anew_for_other_shards(folder):
    index = folder / "train.tfrecord_index"
    name = f"tfds:{folder}"
    last = open_source(name, "train").examples[1436]
    written = index.stat()
    assert index.stat().st_mode & 0o444 == 0o444 & ~_umask()
    open_source(name, "train")
    assert index.stat().st_mtime_ns == written.st_mtime_ns
    shard = folder / "sklearn_digits-train.tfrecord-00002-of-00003"
    os.utime(shard, ns=(1, 1))
    assert open_source(name, "train").examples[1436] == last
    assert index.stat().st_ino != written.st_ino
    good = index.read_bytes()
    os.mkfifo(folder / "pipe")
    for damage in (b"", b"PK\3\4 no archive", good[:-100], good + bytes(8), good[:50] + b"\1" + good[51:]):
        index.write_bytes(damage)
        assert open_source(name, "train").examples[1436] == last
    # An index that says otherwise than its shards: a step back, another beginning, numbers too large.
    numbers = np.frombuffer(good, "<i8", offset=4)
    starts, stamps = numbers[-1438:], numbers[:-1438]
    for wrong in (np.sort(starts)[::-1], starts + 1, starts * 2**40):
        body = np.concatenate([stamps, wrong]).tobytes()
        index.write_bytes(zlib.crc32(body).to_bytes(4, "little") + body)
        assert open_source(name, "train").examples[1436] == last
    index.unlink()
    (folder / "pipe").rename(index)
    assert open_source(name, "train").examples[1436] == last
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_index_goes_to_the_users_cache_where_the_folder_cannot_be_written(folder, tmp_path):
    # A folder in its place keeps even root from writing the file.
    (folder / "train.tfrecord_index" / "x").mkdir(parents=True)
    for _ in range(2):
        assert len(open_source(f"tfds:{folder}", "train").examples) == 1437
        (cached,) = (tmp_path / "cache").iterdir()
        assert cached.name.endswith("-train.tfrecord_index")
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").touch()  # and nowhere to write at all
    assert len(open_source(f"tfds:{folder}", "train").examples) == 1437


def test_a_damaged_shard_is_named(folder):
    name, shard = f"tfds:{folder}", folder / "sklearn_digits-train.tfrecord-00002-of-00003"
    data = shard.read_bytes()
    first = 12 + struct.unpack_from("<Q", data)[0] + 4
    for damage, message in [
        (data[:-1], f"{shard} is damaged or cut short: its {len(data) - 1} bytes end within record 936"),
        (data[:first] + data[first:][:5], f"has {first + 5} bytes, which hold no 937 records"),
        (data[:20_000], "its 20000 bytes end within record "),
        (b"\xff" * 20_000, "the length of record 0 of 937, at byte 0, is not what was written"),
        (data[first:], f"{shard} holds 936 records, dataset_info.json says 937"),
        (data + frame(b""), "holds 938 records"),
        (data + bytes(16), f"the length of record 937 of 937, at byte {len(data)}, is not what was written"),
        (b"", "has 0 bytes, which hold no 937 records"),
    ]:
        shard.write_bytes(damage)
        assert message in failure(open_source, name, "train")
    shard.unlink()
    assert f"cannot read {shard} (No such file or directory)" in failure(open_source, name, "train")
    assert len(open_source(name, "test").examples) == 360


def test_a_damaged_record_is_named_when_it_is_read(folder):
    shard = folder / "sklearn_digits-test.tfrecord-00000-of-00001"
    data = bytearray(shard.read_bytes())
    length = struct.unpack_from("<Q", data)[0]
    data[: 16 + length] = frame(b"\xff" * length)  # with the checksum of what it holds
    shard.write_bytes(data)
    source = open_source(f"tfds:{folder}", "test")
    assert source.examples[1]["label"] in range(10)
    message = failure(lambda: source.examples[0])
    assert f"split test, example 0 ({shard}, byte 0) is damaged" in message
    shard.write_bytes(data[:100])
    assert f"{shard} has no record of" in failure(lambda: source.examples[1])
    shard.unlink()
    assert f"cannot read {shard}" in failure(lambda: source.examples[1])


def test_a_flipped_bit_is_no_other_label_and_no_other_pixel(folder):
    shard = folder / "sklearn_digits-test.tfrecord-00000-of-00001"
    name, whole = f"tfds:{folder}", shard.read_bytes()
    good = open_source(name, "test").examples
    draw, first = np.random.default_rng(0), good.records.starts
    for bit in draw.integers(0, 8 * len(whole), 60):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        shard.write_bytes(data)
        index = int(np.searchsorted(first, bit // 8, side="right")) - 1
        assert "is not what was written" in failure(lambda i=index: open_source(name, "test").examples[i])


def test_a_description_that_promises_more_than_there_is(folder):
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"][0]["shardLengths"] = [str(10**15), *info["splits"][0]["shardLengths"][1:]]
    path.write_text(json.dumps(info))
    message = failure(open_source, f"tfds:{folder}", info["splits"][0]["name"])
    assert "hold no 1000000000000000 records" in message


def rewritten(folder, change):
    """Change a folder's features.json."""
    path = folder / "features.json"
    content = json.loads(path.read_text())
    change(content["featuresDict"]["features"])
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("key", ["pythonClassName", "type"])
def test_a_description_that_names_other_classes_runs_nothing(folder, tmp_path, key):
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Feature: ...")
    content = {} if key == "pythonClassName" else {"content": {}}
    rewritten(folder, lambda features: features.update(label={key: "evil_module.Feature", **content}))
    script = (
        "import sys; from vit_jax_mixer.data.sources import open_source;"
        "from vit_jax_mixer.errors import UserError\n"
        "for name in sys.argv[1:]:\n  try: open_source(name, 'train')\n  except UserError as error: print(error)"
    )
    places = {"PYTHONPATH": f"{environment()['PYTHONPATH']}:{tmp_path}", "TFDS_DATA_DIR": str(folder.parents[1])}
    line = [sys.executable, "-c", script, f"tfds:{folder}", "tfds:sklearn_digits"]
    done = subprocess.run(line, env=environment() | places, capture_output=True, text=True, check=True)
    assert done.stdout.count("names the feature class 'evil_module.Feature', which is none of TFDS's own") == 2
    assert not (tmp_path / "ran").exists()


FOREIGN = {"pythonClassName": "evil_module.Feature"}


@pytest.mark.parametrize(
    "description",
    [
        {"python_class_name": "evil_module.Feature"},  # which TFDS reads as well
        {
            "type": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "content": json.dumps({"features": {"a": FOREIGN}}),
        },
        {"content": json.dumps({"content": json.dumps(FOREIGN)})},
    ],
)
def test_a_class_may_be_named_in_other_ways(tmp_path, description):
    (tmp_path / "features.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"names the feature class 'evil_module.Feature', which is none of TFDS's own"):
        tfds_features.check(epath.Path(tmp_path))


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "label.labels.txt"])
def test_a_description_that_is_no_file_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="is a pipe, not a regular file"):
        tfds_features.check(epath.Path(tmp_path))
    (tmp_path / name).unlink()
    with (tmp_path / name).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match=r"more than the .* that are read"):
        tfds_features.check(epath.Path(tmp_path))


def test_a_folder_whose_name_is_a_pattern(folder, tmp_path):
    open_source("tfds:sklearn_digits", "train")
    original = importlib.import_module("tensorflow_datasets").builder("sklearn_digits").data_dir
    for place in (folder, original):
        odd = Path(
            shutil.copytree(place, tmp_path / "a [v2] *?" / Path(place).parent.parent.name / "sklearn_digits/1.0.0")
        )
        assert len(open_source(f"tfds:{odd}", "train").examples) == 1437
        assert open_source(f"tfds:{odd}", "train").examples[5]["label"] in range(10)


def test_a_name_that_would_fetch_code_is_refused():
    assert "is not of the form NAME" in failure(open_source, "tfds:kubric:movi_a/x", "train")


def test_fields_go_by_other_names(folder):
    def change(features):
        features["img"] = features.pop("image")
        features["fine_label"], features["coarse_label"] = features["label"], features.pop("label")

    rewritten(folder, change)
    (folder / "fine_label.labels.txt").write_text((folder / "label.labels.txt").read_text())
    (folder / "coarse_label.labels.txt").write_text((folder / "label.labels.txt").read_text())
    source = open_source(f"tfds:{folder}", "test")
    assert "for coarse_label, end the source's name with ,label=NAME" in source.notes[0]
    assert not open_source(f"tfds:{folder},label=fine_label", "test").notes
    assert "has no label field 'img'" in failure(open_source, f"tfds:{folder},label=img", "test")


@pytest.mark.parametrize("others", [(), ("age", "mood")])
def test_images_without_a_clear_label_are_examples_all_the_same(folder, others):
    def change(features):
        label = features.pop("label")
        features.update(dict.fromkeys(others, label))

    rewritten(folder, change)
    for other in others:
        (folder / f"{other}.labels.txt").write_text((folder / "label.labels.txt").read_text())
    source = open_source(f"tfds:{folder}", "test")
    assert (source.class_names, source.examples[0].keys()) == ((), {"image"})
    with pytest.raises(UserError, match=r"^the task needs labels, and tfds:.* has .*,label=") as error:
        source.check_labelled("x", "the task")
    assert ("several fields for the label, " if others else "It has image: Image") in str(error.value)


def test_fields_that_are_not_used_are_not_unpacked(folder):
    rewritten(folder, lambda features: features.update(second=features["image"], much=features["image"]))
    assert "several fields" not in str(open_source(f"tfds:{folder}", "test").notes)
    assert set(open_source(f"tfds:{folder}", "test").examples.features) == {"image", "label"}


def test_array_record_files_that_are_not_whole_are_named(tmp_path):
    open_source("tfds:sklearn_digits", "train")
    original = importlib.import_module("tensorflow_datasets").builder("sklearn_digits").data_dir
    folder = Path(shutil.copytree(original, tmp_path / "sklearn_digits" / "1.0.0"))
    (shard,) = folder.glob("*train*")
    shard.write_bytes(shard.read_bytes()[:-1000])
    source = open_source(f"tfds:{folder}", "train")
    assert "split train, example 1436 is damaged" in failure(lambda: source.examples[1436])


def test_a_pipe_among_the_records_is_not_waited_for(tmp_path):
    open_source("tfds:sklearn_digits", "train")
    original = importlib.import_module("tensorflow_datasets").builder("sklearn_digits").data_dir
    folder = Path(shutil.copytree(original, tmp_path / "sklearn_digits/1.0.0"))
    shard = next(folder.glob("*-test.array_record*"))
    shard.unlink()
    os.mkfifo(shard)
    assert "is a pipe, not a regular file" in failure(open_source, f"tfds:{folder}", "test")


def test_another_format_is_one_sentence(folder):
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "riegeli"}))
    assert "is stored as riegeli, which has no random access" in failure(open_source, f"tfds:{folder}", "train")
    (folder / "dataset_info.json").write_text("{")
    assert "cannot be opened" in failure(open_source, f"tfds:{folder}", "train")


# --- Building; each is a process of its own ---


def test_build_prepares_a_dataset(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    build("sklearn_digits")
    assert len(list((tmp_path / "sklearn_digits/1.0.0").glob("*.array_record-*"))) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "sklearn_digits" in printed.err
    build("sklearn_digits")  # which is there


def test_build_says_in_one_sentence_what_failed(tmp_path, monkeypatch):
    assert "did you mean 'cifar10'" in failure(build, "cifar01")
    assert "is a folder; to build a dataset" in failure(build, "/cifar10")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    assert "imagenet2012 has to be downloaded by hand" in failure(build, "imagenet2012")
    (tmp_path / "file").touch()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "file"))
    assert f"cannot be written to {tmp_path}/file/sklearn_digits" in failure(build, "sklearn_digits")


def test_build_says_when_a_download_fails(tmp_path, monkeypatch):
    class NotFound(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # the library's name
            self.send_error(404)

        def log_message(self, *args):
            pass

    # A proxy of our own: no network, and none of TFDS's minutes of trying again.
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NotFound) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        message = failure(build, "kmnist")
        server.shutdown()
    assert "tfds:kmnist could not be downloaded" in message
    assert "404" in message


def test_build_says_when_tensorflow_is_missing(tmp_path, monkeypatch):
    # Also where it is installed, the child process is to find none.
    (tmp_path / "none").mkdir()
    (tmp_path / "none/tensorflow.py").write_text("raise ModuleNotFoundError('none', name='tensorflow')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "none"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    (tmp_path / "downloads/manual").mkdir(parents=True)
    (tmp_path / "downloads/manual/ILSVRC2012_img_train.tar").touch()
    assert "needs the package tensorflow to be prepared; `pip install tensorflow`" in failure(build, "imagenet2012")
