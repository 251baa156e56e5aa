"""What a run's data are: the record tells changes, and not where the data lie."""

import shutil

import numpy as np
import pytest

from tests.test_sources import write_image
from vit_jax_mixer import probes
from vit_jax_mixer.data import record
from vit_jax_mixer.data.sources import open_source
from vit_jax_mixer.data.sources.base import Source
from vit_jax_mixer.data.sources.files import source_of_files


@pytest.fixture
def folder(tmp_path):
    for name in ("cat", "dog"):
        for i in range(5):
            write_image(tmp_path / f"here/train/{name}/{i}.png", i, (4 + i, 4))
    return tmp_path / "here"


def fingerprint(folder, split="train"):
    return record.fingerprint(open_source(f"folder:{folder}", split))


@pytest.mark.parametrize("split", ["train", "train[:50%]", "train[5:]+train[:5]"])
def test_a_fingerprint_is_that_of_the_data_wherever_they_lie(folder, tmp_path, split):
    before = fingerprint(folder, split)
    shutil.copytree(folder, tmp_path / "there")
    assert fingerprint(tmp_path / "there", split) == before


def add(folder):
    write_image(folder / "train/cat/new.png")


def remove(folder):
    (folder / "train/cat/1.png").unlink()


def rename(folder):
    (folder / "train/cat/1.png").rename(folder / "train/cat/one.png")


def move(folder):
    (folder / "train/cat/1.png").rename(folder / "train/dog/one.png")


def rename_class(folder):
    (folder / "train/cat").rename(folder / "train/eel")


def replace(folder):
    write_image(folder / "train/cat/1.png", 1, (40, 40))


@pytest.mark.parametrize("change", [add, remove, rename, move, rename_class, replace])
@pytest.mark.parametrize("split", ["train", "train[:50%]", "train[5:]+train[:5]"])
def test_a_fingerprint_tells_each_change(folder, change, split):
    before = fingerprint(folder, split)
    change(folder)
    assert fingerprint(folder, split) != before


def test_parts_of_one_split_are_not_alike(folder):
    splits = ["train", "train[:50%]", "train[50%:]", "train[5:]+train[:5]"]
    assert len({fingerprint(folder, split) for split in splits}) == 4


def test_a_manifest_with_other_labels_is_told(tmp_path):
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "b.png")
    found = set()
    for labels in ("cat dog", "dog cat", "cat cat"):
        rows = "".join(f"{name}.png,{label}\n" for name, label in zip("ab", labels.split(), strict=True))
        (tmp_path / "list.csv").write_text(f"path,label\n{rows}")
        found.add(record.fingerprint(open_source(f"manifest:{tmp_path / 'list.csv'}", "all")))
    assert len(found) == 3


def test_chosen_examples_are_those_of_their_source(folder):
    source = open_source(f"folder:{folder}", "train")
    before = record.fingerprint(probes.sample(source, 3))
    assert before == record.fingerprint(probes.sample(source, 3))
    assert before != record.fingerprint(probes.sample(source, 4))
    replace(folder)
    assert before != record.fingerprint(probes.sample(open_source(f"folder:{folder}", "train"), 3))


class Plain:
    """Examples without traits of their own, of which one is bad."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        if index == 1:
            raise ZeroDivisionError
        return {"image": np.full((2, 2, 1), self.values[index], np.uint8), "label": 0}


def test_other_sources_are_told_by_a_few_examples():
    found = [record.fingerprint(Source(Plain(values), (), str)) for values in ([1, 2, 3], [1, 9, 3], [1, 2, 4])]
    assert found[0] == found[1] != found[2]


def test_the_digits_have_one(tmp_path):
    source = open_source("tfds:sklearn_digits", "train")
    assert record.fingerprint(source) == record.fingerprint(open_source("tfds:sklearn_digits", "train"))
    assert record.fingerprint(source) != record.fingerprint(open_source("tfds:sklearn_digits", "test"))


def test_the_sizes_of_at_most_ten_thousand_files_are_looked_up(tmp_path):
    source = source_of_files(tmp_path, [(f"cat/{i}.png", 0) for i in range(30_001)], ("cat",))
    *_, sizes = source.examples.traits()
    assert 5_000 <= len(sizes) / np.dtype(np.int64).itemsize <= 10_000
