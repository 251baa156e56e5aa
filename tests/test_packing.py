"""Datasets of images in a few fast files, read again as TFDS's."""

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tests.helpers import ROOT, command, environment
from vit_jax_mixer.data import packing
from vit_jax_mixer.data.images import decoding
from vit_jax_mixer.data.sources import open_source
from vit_jax_mixer.errors import UserError


def photo(seed, size, mode="RGB", **how):
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode).save(stream, **how)
    return stream.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    return photo(5, (28, 20), format="JPEG", exif=exif)


KINDS = {
    "turned.jpg": turned(),
    "large.jpg": photo(0, (90, 60), format="JPEG"),
    "small.jpg": photo(1, (30, 20), format="JPEG"),
    "grey.jpg": photo(2, (64, 50), "L", format="JPEG"),
    "lossless.png": photo(3, (20, 30), format="PNG"),
    "clear.png": photo(4, (20, 20), "RGBA", format="PNG"),
    "other.webp": photo(6, (21, 31), format="WEBP", lossless=True),
}


@pytest.fixture
def photos(tmp_path):
    for split in ("train", "val"):
        for kind in ("cat", "dög"):
            (tmp_path / f"photos/{split}/{kind}").mkdir(parents=True)
            for name, data in KINDS.items():
                (tmp_path / f"photos/{split}/{kind}/{name}").write_bytes(data)
    return tmp_path / "photos"


def pack(photos, folder, workers=1, **changes):
    fields = dict(splits=("train", "val"), side=24, quality=90, skip_bad=False)
    return list(packing.pack(packing.Settings(f"folder:{photos}", **(fields | changes)), folder, workers))


def test_a_packed_dataset_is_the_same_images_no_larger_than_they_are_used(photos, tmp_path):
    said = pack(photos, tmp_path / "out")
    assert said[-1] == f"use it: --config.data.source=tfds:{tmp_path / 'out'}"
    assert "train: 14 examples in 1 files" in said[1]
    assert "4 were reduced, 0 bad ones left out" in said[1]
    original, found = (open_source(name, "train") for name in (f"folder:{photos}", f"tfds:{tmp_path / 'out'}"))
    assert found.class_names == original.class_names == ("cat", "dög")
    for i in range(14):
        one, other = original.examples[i], found.examples[i]
        name = original.where(i).rpartition("/")[2]
        assert one["label"] == other["label"]
        before, after = (decoding.to_array(example["image"], 3) for example in (one, other))
        if name in ("large.jpg", "grey.jpg"):
            assert min(after.shape[:2]) == 24
            assert decoding.format_of(other["image"]) == ("JPEG L" if name == "grey.jpg" else "JPEG RGB")
            small = np.asarray(Image.fromarray(before).resize(after.shape[1::-1], Image.Resampling.BICUBIC))
            assert np.abs(small.astype(int) - after).mean() < 6  # of the JPEG
        else:
            np.testing.assert_array_equal(before, after)
            assert (other["image"] == one["image"]) == (name in ("small.jpg", "lossless.png"))
    packed = json.loads((tmp_path / "out/packed.json").read_text())
    for name, done in packed["files"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == done["sha256"]
    assert not (tmp_path / "out/.packing").exists()
    assert pack(photos, tmp_path / "out") == [f"{tmp_path / 'out'} is complete"]


def test_what_has_one_split_becomes_a_training_split(photos, tmp_path):
    pack(photos / "train", tmp_path / "out", splits=("all",))
    assert len(open_source(f"tfds:{tmp_path / 'out'}", "train[:50%]").examples) == 7


def test_origins_are_kept_and_tfds_reads_it(photos, tmp_path):
    import tensorflow_datasets as tfds

    pack(photos, tmp_path / "out")
    builder = tfds.builder_from_directory(tmp_path / "out")
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {"train": 14, "val": 14}
    assert "JPEG quality 90" in builder.info.description
    records = builder.as_data_source("val", decoders={"image": tfds.decode.SkipDecoding()})
    assert records[0]["origin"].decode() == open_source(f"folder:{photos}", "val").where(0)


def test_files_that_are_whole_are_not_made_again(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_SHARD", 5)
    bad = photos / "val/dög/other.webp"
    data = bad.read_bytes()
    bad.write_bytes(data[:60])
    with pytest.raises(
        UserError, match=r"other.webp: it cannot be decoded .*To leave such examples out, pass --skip_bad"
    ):
        pack(photos, tmp_path / "out")
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.array_record-*")}
    assert len(made) == 5
    assert not (tmp_path / "out/dataset_info.json").exists()
    with pytest.raises(UserError, match=r"was begun with other settings: side differ"):
        pack(photos, tmp_path / "out", side=32)
    said = pack(photos, tmp_path / "out", skip_bad=True)
    assert said[0].endswith("5 of 6 files are there")
    assert "1 bad ones left out" in said[2]
    assert "other.webp" in said[3]
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.array_record-*")}
    assert made.items() <= again.items()
    assert len(open_source(f"tfds:{tmp_path / 'out'}", "val").examples) == 13


def test_what_cannot_be_packed_is_one_sentence(photos, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").touch()
    with pytest.raises(UserError, match="exists and is no packed dataset"):
        pack(photos, tmp_path / "full")
    with pytest.raises(UserError, match=r"two splits have one name; pack them one by one"):
        pack(photos, tmp_path / "out", splits=("train[:5]", "train[5:]"))
    monkeypatch.setattr(packing, "_digest", lambda path: str(path))  # as if a disk gave back something else
    with pytest.raises(UserError, match=r"is not what was written; remove it"):
        pack(photos, tmp_path / "out", splits=("train[:50%]",))
    result = command("data", f"folder:{photos}", "--pack=/proc/none", "--split=train")
    assert result.returncode == 1
    assert "choose another --pack" in result.stderr


KILLED = """
import sys
from pathlib import Path
from vit_jax_mixer.data import packing

packing._SHARD = 1
if __name__ == "__main__":
    settings = packing.Settings(f"folder:{sys.argv[1]}", ("train", "val"), 24, 90, False)
    for line in packing.pack(settings, Path(sys.argv[2]), int(sys.argv[3])):
        print(line, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_kill_at_any_moment_costs_the_files_in_the_making_alone(photos, tmp_path, workers):
    (tmp_path / "killed.py").write_text(KILLED)
    how = dict(cwd=ROOT, env=environment() | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    run = lambda out: [sys.executable, str(tmp_path / "killed.py"), str(photos), str(tmp_path / out), str(workers)]
    subprocess.run(run("whole"), check=True, **how)
    moments, before = random.Random(workers), 0
    for _ in range(4):
        process = subprocess.Popen(run("killed"), start_new_session=True, **how)
        while len(list(tmp_path.glob("killed/*.array_record-*"))) <= before and process.poll() is None:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.02))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / "killed/dataset_info.json").exists()
        before = len(list(tmp_path.glob("killed/*.array_record-*")))
    subprocess.run(run("killed"), check=True, **how)
    names = lambda out: {path.name for path in (tmp_path / out).iterdir()}
    assert names("killed") == names("whole")
    for split in ("train", "val"):  # a record's fields come in any order
        one, other = (open_source(f"tfds:{tmp_path / out}", split).examples for out in ("killed", "whole"))
        assert [one[i] for i in range(14)] == [other[i] for i in range(14)]
