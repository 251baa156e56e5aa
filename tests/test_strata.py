"""Parts of splits in which each class has the share that it has in the whole."""

import pickle

import numpy as np
import pytest
from PIL import Image

from vit_jax_mixer.data import record
from vit_jax_mixer.data.sources import open_source
from vit_jax_mixer.errors import UserError


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Fifty cats, ten dogs and three mice."""
    root = tmp_path_factory.mktemp("photos")
    for name, count in (("cat", 50), ("dog", 10), ("mouse", 3)):
        (root / name).mkdir()
        for i in range(count):
            Image.new("RGB", (4, 4), (i, 0, 0)).save(root / name / f"{i}.png")
    return f"folder:{root}"


def where(source):
    return [source.where(i) for i in range(len(source.examples))]


def test_parts_have_the_same_shares_and_make_up_the_whole(photos):
    parts = [open_source(photos, f"all[{cut}]|stratified") for cut in (":60%", "60%:80%", "-20%:")]
    assert [np.bincount(part.examples.labels, minlength=3).tolist() for part in parts] == [
        [30, 6, 2],
        [10, 2, 0],
        [10, 2, 1],
    ]
    assert "has no example of 1 of its 3 classes: 'mouse'" in parts[1].notes[0]
    assert sorted(path for part in parts for path in where(part)) == sorted(where(open_source(photos, "all")))
    first = parts[0]
    again = pickle.loads(pickle.dumps(first.examples))  # as in a worker process
    assert [again[i]["label"] for i in range(38)] == first.examples.labels.tolist()
    assert [example["label"] for example in (again[0], again[-1])] == again.labels[[0, -1]].tolist()
    whole = where(open_source(photos, "all"))
    assert where(first) == [one for one in whole if one in set(where(first))]  # in the order of the split
    assert record.fingerprint(first) != record.fingerprint(open_source(photos, "all[:70%]|stratified"))


def test_labels_that_are_read_one_by_one_do_as_well():
    part = open_source("tfds:sklearn_digits", "test[:50%]|stratified")
    whole = open_source("tfds:sklearn_digits", "test")
    counts = [np.bincount([s.examples[i]["label"] for i in range(len(s.examples))]) for s in (part, whole)]
    assert np.abs(counts[0] - counts[1] / 2).max() <= 0.5


def test_rows_go_by_the_column_that_is_learnt_or_another(tmp_path):
    path = tmp_path / "rows.csv"
    rows = [f"{i},{'mf'[i % 2]},{'rare' if i % 10 == 0 else 'common'}" for i in range(100)]
    path.write_text("\n".join(["x,sex,label", *rows, "7,m,"]) + "\n")  # the last has no label
    words = lambda part, column: sorted(part.examples[i][column] for i in range(len(part.examples)))
    part = open_source(f"table:{path}", "all[:30%]|stratified")
    assert words(part, "label").count("rare") == 3
    assert len(part.examples) == 30  # round(27) and round(3) and round(0.3)
    assert words(open_source(f"table:{path}", "all[:50%]|stratified('sex')"), "sex") == ["f"] * 25 + ["m"] * 26
    with pytest.raises(UserError, match=r"has no column 'sez'.*did you mean 'sex'"):
        open_source(f"table:{path}", "all[:50%]|stratified('sez')")
    with pytest.raises(UserError, match=r"goes by the column 'x', which has 100 different values in 101 rows"):
        open_source(f"table:{path}", "all[:50%]|stratified('x')")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("all[:10]|stratified", r"all\[:10\] is to be stratified, but has a bound in examples; give bounds in per"),
        ("all[:10%]|stratfied", r"the split 'all\[:10%\]\|stratfied': 'stratfied' is not known.*'stratified'"),
        ("all[:10%]|stratified('sex')", r"names the column 'sex', but only rows of a table have some; leave it out"),
    ],
)
def test_what_cannot_be_stratified_is_one_sentence(photos, split, message):
    with pytest.raises(UserError, match=message):
        open_source(photos, split)


def test_data_without_labels_are_one_sentence():
    with pytest.raises(UserError, match=r"'train\[:50%\]\|stratified' of blank:0 needs labels, and"):
        open_source("blank:0", "train[:50%]|stratified")
