"""Each class is drawn equally often, in an order that stays a function of (seed, position)."""

import dataclasses

import numpy as np
import pytest

from configs import digits, tabular
from tests.test_pipeline import loader
from vit_jax_mixer.config import Config
from vit_jax_mixer.data.balance import Balance, balanced
from vit_jax_mixer.data.pipeline import Dataset, Share, as_it_is, indices_of, train_order
from vit_jax_mixer.data.sources import Source, base
from vit_jax_mixer.data.sources.base import labels_of
from vit_jax_mixer.data.tables.encoded import Encoded
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run.assemble import assemble


def dataset(counts, views=1):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int32)
    examples = Encoded(np.arange(len(labels), dtype=np.float32)[:, None], labels)
    names = tuple(map(str, range(len(counts))))
    return Dataset(Source(examples, names, str), as_it_is, views, balance=Balance(labels)), labels


def drawn(data, count, seed=3):
    return np.concatenate([indices_of(data, seed=seed, batch_size=10, step=step) for step in range(count // 10)])


@pytest.mark.parametrize("counts", [(40, 7, 1), (700, 300, 40)])  # below and above where Grain shuffles
def test_classes_come_equally_often_and_so_do_the_examples_of_each(counts):
    data, labels = dataset(counts)
    whole = len(counts) * max(counts)
    found = drawn(data, 10 * whole)  # ten passes
    for one in found.reshape(10, whole):
        np.testing.assert_array_equal(np.bincount(labels[one]), max(counts))
    times = np.bincount(found, minlength=len(labels))
    for kind in range(len(counts)):
        assert np.ptp(times[labels == kind]) <= 1
    assert not np.array_equal(found[:whole], found[whole : 2 * whole])
    assert not np.array_equal(drawn(data, whole - whole % 10, seed=4), found[: whole - whole % 10])


@pytest.mark.parametrize("views", [1, 3])
def test_hosts_memory_and_a_resume_have_one_order(views):
    data, _ = dataset((40, 7, 1), views)
    expected = [indices_of(data, seed=3, batch_size=12, step=step) for step in range(30)]
    one_by_one = train_order(data, seed=3, batch_size=12, share=Share(0, 1))
    assert [one_by_one[step]["row"][:, 0].tolist() for step in range(30)] == expected
    parts = []
    for index in range(3):
        batches = loader(share=Share(index, 3)).train_batches(data, seed=3, batch_size=12, start=17)  # in memory
        parts.append([next(batches)["row"][:, 0] for _ in range(13)])
    found = [np.concatenate(rows).tolist() for rows in zip(*parts, strict=True)]
    assert found == expected[17:]


def test_a_class_without_examples_is_left_out():
    labels = np.array([0, 3, 3])
    assert sorted(Balance(labels)(0, np.arange(4)).tolist()) == [0, 0, 1, 2]


def test_what_cannot_be_balanced_is_one_sentence(monkeypatch):
    data, labels = dataset((3, 2))
    source = data.source
    with pytest.raises(UserError, match=r"config.data.balance is 'class'; it must be 'classes', or ''"):
        balanced("class", source)
    with pytest.raises(UserError, match=r"config.data.balance needs labels, and the dataset has no class labels"):
        balanced("classes", dataclasses.replace(source, class_names=()))
    with pytest.raises(UserError, match=r"config.data.balance needs labels, and 0 has -1; name another split"):
        balanced("classes", dataclasses.replace(source, examples=Encoded(np.zeros((1, 1)), np.array([-1]))))
    listed = [{"label": label} for label in labels.tolist()]
    np.testing.assert_array_equal(labels_of(dataclasses.replace(source, examples=listed), "x"), labels)
    monkeypatch.setattr(base, "_MOST_READ", 4)
    with pytest.raises(UserError, match=r"labels of all 5 examples at once.* gives them one by one.*use a folder:"):
        balanced("classes", dataclasses.replace(source, examples=listed))


def test_a_run_of_images_and_one_of_rows_draw_so():
    config = digits.get_config()
    config.data.balance, config.data.train = "classes", "train[:50]"
    data = assemble(Config.of(config)).task.train_data
    assert data.balance
    assert any("each of 10 classes is drawn equally often" in note for note in data.source.notes)
    first = next(loader().train_batches(data, seed=0, batch_size=data.balance.places, start=0))
    np.testing.assert_array_equal(np.bincount(first["label"]), data.balance.each)
    assert np.ptp(np.bincount([data.source.examples[i]["label"] for i in range(50)])) > 0

    config = tabular.get_config()
    config.data.balance = "classes"
    data = assemble(Config.of(config)).task.train_data
    first = next(loader().train_batches(data, seed=0, batch_size=data.balance.places, start=0))
    assert np.bincount(first["label"]).tolist() == [data.balance.each] * 2
    with config.unlocked():
        config.data.source = "sklearn:diabetes"
    with pytest.raises(UserError, match=r"config.data.balance is set, but the target is a number"):
        assemble(Config.of(config))
