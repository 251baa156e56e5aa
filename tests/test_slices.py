import dataclasses
import importlib
import pickle

import cloudpickle
import numpy as np
import pytest

from vit_jax_mixer.data.sources import Source, open_source
from vit_jax_mixer.data.sources.slices import find, open_expression, role
from vit_jax_mixer.errors import UserError

BOUNDS = ["", "0", "1", "7", "-1", "-7", "100", "-100", "1437", "-1437", "1438"]
PERCENTS = ["", "0%", "1%", "33%", "50%", "98%", "99.5%", "100%", "-2%", "-10%", "-100%", "12.345%", "101%", "-101%"]


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Examples that are their own index, named by the split."""

    split: str
    length: int

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return f"{self.split} {range(self.length)[index]}"


def splits(**lengths):
    def opener(split):
        return lambda: Source(Numbers(split, lengths[split]), ("cat", "dog"), lambda i: f"here {split} {i}")

    return {split: opener(split) for split in lengths}


def items(source):
    return [source.examples[i] for i in range(len(source.examples))]


def by_tfds(expression, lengths):
    """Return what TFDS reads of shardless splits, or None where it refuses."""
    core = importlib.import_module("tensorflow_datasets").core
    infos = {name: core.SplitInfo(name=name, shard_lengths=[length], num_bytes=0) for name, length in lengths.items()}
    try:
        parts = core.ReadInstruction.from_spec(expression).to_absolute(infos)
    except ValueError:
        return None
    ranges = [(p.splitname, range(p.from_ or 0, lengths[p.splitname] if p.to is None else p.to)) for p in parts]
    return [f"{split} {i}" for split, indices in ranges for i in indices]


def vanishes(bound, length):
    return bound.startswith("-") and bound.endswith("%") and round(float(bound[:-1]) * length / 100) == 0


@pytest.mark.parametrize("bounds", [BOUNDS, PERCENTS])
def test_slices_are_those_of_tfds(bounds):
    compared = 0
    for length in (1, 7, 150, 1437):
        for start in bounds:
            for stop in bounds:
                if not start and not stop:  # which we read as the whole, and TFDS refuses
                    continue
                if any(vanishes(bound, length) for bound in (start, stop)):  # which TFDS counts from the beginning
                    continue
                expression = f"train[{start}:{stop}]"
                expected = by_tfds(expression, {"train": length})
                try:
                    found = items(open_expression(splits(train=length), expression, "x"))
                except UserError:
                    found = None
                assert found == expected, (expression, length)
                compared += expected is not None
    assert compared > 100


@pytest.mark.parametrize("expression", ["train", "train+test", "test[:2] + train[-10%:]", "train[:3]+train[3:]"])
def test_sums_are_those_of_tfds(expression):
    lengths = {"train": 35, "test": 4}
    assert items(open_expression(splits(**lengths), expression, "x")) == by_tfds(expression, lengths)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 30, 35, 49, 50, 51, 150])
def test_a_percentage_cuts_into_two_parts_that_are_the_whole(length):
    whole = [f"train {i}" for i in range(length)]
    for percent in ("-1%", "-0.5%", "-2%", "-33.3%", "-99%", "-100%", "0%", "1%", "0.5%", "49.9%", "50%", "99%"):
        parts = [f"train[:{percent}]", f"train[{percent}:]"]
        first, last = (items(open_expression(splits(train=length), part, "x")) for part in parts)
        assert first + last == whole
        kept = abs(float(percent[:-1])) / 100 * length
        assert abs(len(last if percent.startswith("-") else first) - kept) <= 0.5


def test_a_split_is_found_by_another_usual_name():
    read = splits(Training=3, val=2, TEST_set=1)
    for asked, found in [("train", "Training"), ("validation", "val"), ("dev", "val"), ("test[:1]", "TEST_set")]:
        assert items(open_expression(read, asked, "x"))[0] == f"{found} 0"
    both = splits(val=1, dev=2, valid_images=3)
    assert items(open_expression(both, "dev", "x")) == ["dev 0", "dev 1"]
    with pytest.raises(UserError, match=r"no split 'validation'; did you mean .* Known: dev, val, valid_images"):
        open_expression(both, "validation", "x")
    with pytest.raises(UserError, match="no split 'test'"):
        open_expression(splits(train=1, val=1), "test", "x")


def test_splits_are_known_by_their_last_words_where_several_have_one():
    assert find("train", ["seg_train", "seg_test", "seg_pred"]) == "seg_train"
    assert find("validation", ["train2017", "val2017"]) == "val2017"
    assert find("train", ["bullet_train", "car"]) is None


def test_another_split_for_the_same_is_told():
    read = splits(train=3, Train=2, val=1)
    assert open_expression(read, "train", "x").notes == ("x, split train, leaves out 'Train'.",)
    assert open_expression(read, "val", "x").notes == ()


def test_a_name_of_a_split_may_look_like_an_expression():
    read = splits(**{"train+extra": 2, "x[1]": 1})
    assert items(open_expression(read, "train+extra", "x")) == ["train+extra 0", "train+extra 1"]
    assert items(open_expression(read, "x[1]", "x")) == ["x[1] 0"]


@pytest.mark.parametrize("bound", ["-0", "-0%", "-0.0%"])
def test_the_last_none_are_none(bound):
    assert not items(open_expression(splits(train=10), f"train[{bound}:]", "x"))
    assert len(items(open_expression(splits(train=10), f"train[:{bound}]", "x"))) == 10


@pytest.mark.parametrize("name", ["trainer", "evaluate", "contest", "tests", "training_day", "vale", "", "dev/test"])
def test_other_names_are_no_usual_ones(name):
    assert role(name) == ""


@pytest.mark.parametrize("bound", ["9" * 5000, "-" + "9" * 5000, "9" * 5000 + "%", "0." + "9" * 5000 + "%", "٣", "²%"])
def test_a_bound_of_many_digits_is_one_short_sentence(bound):
    with pytest.raises(UserError, match=r"has the bound .* it must be a number") as error:
        open_expression(splits(train=10), f"train[:{bound}]", "x")
    assert len(str(error.value)) < 300


@dataclasses.dataclass(frozen=True)
class Labelled(Numbers):
    @property
    def labels(self):
        return np.arange(self.length) % 3


def test_classes_without_an_example_are_told():
    read = {s: (lambda s=s, n=n: Source(Labelled(s, n), ("a", "b", "c"), str)) for s, n in (("train", 9), ("test", 2))}
    for expression, lacking in [("train", ""), ("train[:4]", ""), ("train[:2]", "1 of its 3 classes: 'c'")]:
        notes = open_expression(read, expression, "x").notes
        assert notes == ((f"{expression} has no example of {lacking}.",) if lacking else ())
    assert open_expression(read, "test", "x").notes == ("test has no example of 1 of its 3 classes: 'c'.",)
    assert open_expression(read, "test+train[2:3]", "x").notes == ()
    assert open_expression(splits(train=9), "train[:1]", "x").notes == ()  # the labels are not at hand


def test_a_slice_of_a_prepared_dataset_holds_what_tfds_reads():
    tfds = importlib.import_module("tensorflow_datasets")
    open_source("tfds:sklearn_digits", "train")
    builder = tfds.builder("sklearn_digits")
    decoders = {"image": tfds.decode.SkipDecoding()}
    for expression in ("train[:98%]", "train[-33%:]", "test[5:9]+train[10:20]"):
        expected = builder.as_data_source(expression, decoders=decoders)
        found = open_source("tfds:sklearn_digits", expression).examples
        assert len(found) == len(expected) == builder.info.splits[expression].num_examples
        assert [found[i] for i in (0, len(found) - 1)] == [expected[i] for i in (0, len(found) - 1)]


def test_a_slice_keeps_classes_and_says_where_its_examples_are():
    source = open_expression(splits(train=10, test=5), "train[4:6]+test[-1:]", "x")
    assert source.class_names == ("cat", "dog")
    assert [source.where(i) for i in range(3)] == ["here train 4", "here train 5", "here test 4"]
    assert source.examples[-1] == "test 4"
    with pytest.raises(IndexError):
        source.examples[3]
    copy = pickle.loads(cloudpickle.dumps(source))
    assert items(copy) == items(source)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("tset", r"x has no split 'tset'; did you mean 'test'\? Known: test, train"),
        ("all[:90%]", "x has no split 'all'. Known: test, train"),
        ("train[:50%]+tset", "has no split 'tset'"),
        ("train[:5O%]", r"train\[:5O%\] has the bound '5O%'; it must be a number of examples or a percentage"),
        ("train[0.5:]", "has the bound '0.5'"),
        ("train[10:50%]", "has one bound in per cent and one in examples"),
        ("train[:11]", "reaches beyond the split's 10 examples"),
        ("train[:110%]", "reaches beyond the split's 10 examples"),
        ("train[5]", "is not of the form train"),
        ("train[", "is not of the form train"),
        ("train[:1:2]", "is not of the form train"),
        ("train+", "is not of the form train"),
        ("", "is not of the form train"),
    ],
)
def test_a_bad_split_is_one_sentence(expression, message):
    with pytest.raises(UserError, match=message):
        open_expression(splits(train=10, test=10), expression, "x")


def test_a_slice_may_not_be_empty():
    with pytest.raises(UserError, match=r"split 'test\[5:5\]', holds no example; name another split"):
        open_source("tfds:sklearn_digits", "test[5:5]")


def test_splits_of_other_classes_are_joined_without_labels():
    mixed = {**splits(train=3), "test": lambda: Source(Numbers("test", 3), ("cat",), str)}
    source = open_expression(mixed, "train+test", "x")
    assert source.class_names == ()
    with pytest.raises(UserError, match=r"^the task needs labels, and the splits of x, .*, have different classes"):
        source.check_labelled("x", "the task")
