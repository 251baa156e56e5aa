"""Images that stay in memory: the same examples, and what is drawn of them in the step."""

import dataclasses
import itertools
import re

import cloudpickle
import jax
import numpy as np
import pytest

from configs import digits
from vit_jax_mixer import config as config_lib
from vit_jax_mixer import probes
from vit_jax_mixer.config import Config
from vit_jax_mixer.data import images, record
from vit_jax_mixer.data.kept import Kept
from vit_jax_mixer.data.pipeline import IS_EXAMPLE, POSITION, Dataset, Loader, Share
from vit_jax_mixer.data.sources import Source
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run.parallel import Jit
from vit_jax_mixer.run.step import augmented
from vit_jax_mixer.tasks.images import image_data

SHIFTED = "decode(1)|random_shift(1)|value_range(-1, 1)"
PLAIN = "decode(1)|value_range(-1, 1)"
CROPPED = "decode_crop(8, channels=1)|value_range(-1, 1)"


def data(**fields):
    config = digits.get_config()
    config.data.train, config.data.eval = "train[:40]", "test[:10]"
    config.data.update(fields)
    return image_data(Config.of(config))


def batches(dataset, *, start=0, count=6, share=Share(0, 1)):  # noqa: B008 # frozen
    read = Loader(0, 0, 1, share).train_batches(dataset, seed=3, batch_size=8, start=start)
    return list(itertools.islice(read, count))


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for batch, expected in zip(ours, theirs, strict=True):
        assert batch.keys() == expected.keys()
        for name, value in batch.items():
            assert value.dtype == expected[name].dtype
            np.testing.assert_array_equal(value, expected[name])


@pytest.mark.parametrize("views", [1, 2])
def test_where_nothing_is_drawn_the_batches_are_those_without_memory(views):
    kept, read = (data(train_ops=PLAIN, views=views, cache=cache) for cache in ("auto", "none"))
    assert kept.train.gather
    assert not read.train.gather
    assert_equal(batches(kept.train), batches(read.train))
    assert_equal(batches(kept.train, start=10**6), batches(read.train, start=10**6))
    evaluated = [list(Loader(0, 0, 1).eval_batches(one.eval, batch_size=8)) for one in (kept, read)]
    assert_equal(*evaluated)
    assert sum(batch[IS_EXAMPLE].sum() for batch in evaluated[0]) == 10


def test_the_step_draws_for_each_position_whatever_holds_it():
    """The same draws for a batch read at its step, by two hosts, on two devices, in parts and in another batch size."""
    train = data(train_ops=SHIFTED).train
    draw = jax.jit(lambda batch: augmented(train, 3, batch)["image"])
    read = batches(train)
    whole = [np.asarray(draw(batch)) for batch in read]
    assert not np.array_equal(whole[0], read[0]["image"])
    np.testing.assert_array_equal(draw(batches(train, start=5, count=1)[0]), whole[5])
    hosts = [batches(train, share=Share(p, 2)) for p in range(2)]
    for step in range(6):
        np.testing.assert_array_equal(np.concatenate([draw(host[step]) for host in hosts]), whole[step])
    np.testing.assert_array_equal(draw(Jit().put_batch(read[0])), whole[0])
    long = next(Loader(0, 0, 1).train_batches(train, seed=3, batch_size=16, start=0))
    np.testing.assert_array_equal(draw(long), np.concatenate(whole[:2]))
    again = batches(train, start=5)[0]  # step 5 begins epoch 1
    assert POSITION in again
    assert not np.array_equal(whole[5], whole[0])


def test_positions_beyond_32_bits_differ():
    train = data(train_ops=SHIFTED).train
    (far,) = batches(train, start=2**30, count=1)
    assert far[POSITION].tolist() == [[2, row] for row in range(8)]
    here = far | {POSITION: far[POSITION] - [2, 0]}
    assert not np.array_equal(*(augmented(train, 3, batch)["image"] for batch in (far, here)))


def drawn(spec, image, count=300):
    undrawn = images.undrawn(f"{spec}|value_range(-1, 1)", "here")
    assert undrawn.moved == (spec.partition("(")[0],)
    keys = jax.random.split(jax.random.key(0), count)
    found = jax.jit(lambda many: images.in_step(undrawn.twins, many, keys))(np.stack([image] * count))
    assert found.dtype == np.uint8
    return np.asarray(found)


@pytest.mark.parametrize(
    ("spec", "shape"), [("flip_lr", (5, 4, 3)), ("random_shift(1)", (5, 4, 3)), ("cutout(3)", (5, 4, 1))]
)
def test_a_twin_makes_what_its_namesake_makes(spec, shape):
    """The same set of images, about as often each."""
    image = np.arange(1, 1 + np.prod(shape), dtype=np.uint8).reshape(shape)
    of_host = images.parse(f"{spec}|value_range(-1, 1)", "here")
    host = [of_host(image, np.random.default_rng(seed)).tobytes() for seed in range(300)]
    twin = [made.tobytes() for made in drawn(spec, image)]
    assert set(twin) == set(host)
    assert max(abs(twin.count(one) - host.count(one)) for one in set(host)) < 60


def test_a_shift_beyond_the_picture_leaves_black():
    found = drawn("random_shift(30)", np.full((4, 5, 1), 255, np.uint8))
    assert 0.6 < np.mean(found.max((1, 2, 3)) == 0) < 1


def test_two_twins_draw_apart():
    undrawn = images.undrawn("decode(1)|flip_lr|flip_lr|value_range(-1, 1)", "here")
    keys = jax.random.split(jax.random.key(0), 64)
    many = np.broadcast_to(np.arange(2, dtype=np.uint8).reshape(1, 1, 2, 1), (64, 1, 2, 1))
    found = np.asarray(images.in_step(undrawn.twins, many, keys))
    assert 0 < (found != many).any((1, 2, 3)).sum() < 64


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"train_ops": SHIFTED},
            "training stay in memory, 0.0 MiB, random_shift inside the step; those of evaluation stay",
        ),
        ({"train_ops": PLAIN, "eval": ""}, "training stay in memory, 0.0 MiB$"),
        ({"train_ops": CROPPED}, "training are made anew each time: decode_crop is drawn on the host; those of eval"),
        ({"cache_mib": 0}, "training are made anew each time: 0 MiB are more than config.data.cache_mib leaves them$"),
        ({"on_bad_example": "skip"}, "training are made anew each time: config.data.on_bad_example is 'skip'$"),
    ],
)
def test_what_stays_in_memory_is_told(fields, told):
    found = data(**fields)
    (note,) = found.train.source.remarks()
    assert re.search(told, note)
    assert bool(found.train.gather) == ("training stay" in told)
    if not found.train.gather:
        assert not found.train.in_step
        for cache in ("host", "device"):
            with pytest.raises(UserError, match=rf"config.data.cache is '{cache}', but .*; set it to 'auto'"):
                data(cache=cache, **fields)


def test_a_bad_example_is_named_when_it_is_met_and_none_is_read_before():
    read = []

    class Pictures(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    def transform(example, rng):
        if example["id"] == 6:
            raise UserError("it is broken")
        return {"image": np.zeros((2, 2 + example["id"] // 7, 1), np.uint8)}

    kept = Kept(Dataset(Source(Pictures({"id": i} for i in range(8)), (), lambda i: f"picture {i}"), transform))
    assert kept.batch(np.array([5, 1, 5]))["image"].shape == (3, 2, 2, 1)
    assert kept.batch(np.array([1, 5]))["image"].shape == (2, 2, 2, 1)
    assert sorted(read) == [0, 1, 5]
    with pytest.raises(UserError, match="picture 6: it is broken"):
        kept.batch(np.array([1, 6]))
    with pytest.raises(UserError, match=r"shapes \(2, 2, 1\) and \(2, 3, 1\); bring them to one size"):
        kept.batch(np.array([7]))


def test_a_part_of_what_stays_in_memory_and_another_transform_are_what_they_say():
    """As a task takes a few examples of a dataset, or does more to them."""
    kept, read = (data(train_ops=PLAIN, cache=cache) for cache in ("auto", "none"))
    assert record.fingerprint(kept.train.source) == record.fingerprint(read.train.source)
    few = [dataclasses.replace(one.eval, source=probes.sample(one.eval.source, 4)) for one in (kept, read)]
    assert_equal(*(list(Loader(0, 0, 1).eval_batches(one, batch_size=8)) for one in few))

    def dark(example, rng):
        return {**example, "image": example["image"] // 2}

    found = batches(dataclasses.replace(kept.train, transform=dark), count=1)[0]
    np.testing.assert_array_equal(found["image"], batches(read.train, count=1)[0]["image"] // 2)
    (copied,) = batches(cloudpickle.loads(cloudpickle.dumps(dataclasses.replace(kept.train, in_step=None))), count=1)
    assert_equal([copied], batches(read.train, count=1))


def test_a_run_from_before_goes_on_without_memory_alone():
    new = config_lib.as_json(digits.get_config())
    old = {**new, "data": {k: v for k, v in new["data"].items() if not k.startswith("cache")}}
    assert config_lib.changes(old, new) == ["data.cache was 'none' and is 'auto'"]
    assert not config_lib.changes(old, {**new, "data": {**new["data"], "cache": "none"}})
