import dataclasses
import itertools

import numpy as np
import pytest

from vit_jax_mixer.data.pipeline import IS_EXAMPLE, Dataset, Loader, Share, train_order
from vit_jax_mixer.data.sources import Source
from vit_jax_mixer.errors import UserError


@dataclasses.dataclass
class Numbers:
    count: int

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"id": index}


def dataset(count=10):
    transform = lambda example, rng: {"id": np.int32(example["id"]), "draw": rng.random()}
    return Dataset(Source(Numbers(count), (), lambda i: f"number {i}"), transform)


def order(share=Share(0, 1), batch_size=4, seed=7):  # noqa: B008 # frozen
    return train_order(dataset(), seed=seed, batch_size=batch_size, share=share)


def ids(batches):
    return np.concatenate([batch["id"] for batch in batches])


def test_each_epoch_is_a_fresh_permutation():
    epochs = ids(order()[step] for step in range(15)).reshape(6, 10)
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_the_order_is_the_seeds():
    first = [order()[step] for step in range(5)]
    again = [order()[step] for step in range(5)]
    other = [order(seed=8)[step] for step in range(5)]
    assert all(np.array_equal(a["draw"], b["draw"]) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(ids(first), ids(other))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_same_order_and_the_same_draws(processes):
    for step in range(8):
        whole = order()[step]
        parts = [order(Share(p, processes))[step] for p in range(processes)]
        for name in ("id", "draw"):
            together = np.stack([part[name] for part in parts], 1).ravel()
            np.testing.assert_array_equal(together, whole[name])


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_reading_from_a_step_on_is_reading_on(threads):
    loader = Loader(threads, prefetch=2)
    read = lambda start: loader.train_batches(dataset(), seed=7, batch_size=4, start=start)
    for step, batch in enumerate(itertools.islice(read(3), 6), start=3):
        np.testing.assert_array_equal(batch["draw"], order()[step]["draw"])
    far = next(read(10**9))
    np.testing.assert_array_equal(far["id"], order()[10**9]["id"])


def test_draws_differ_between_epochs():
    draws = np.concatenate([order()[step]["draw"] for step in range(15)])
    assert len(set(draws)) == 60


@pytest.mark.parametrize(("batch_size", "processes"), [(1, 1), (4, 1), (4, 2), (16, 4), (10, 2)])
def test_evaluation_counts_every_example_once(batch_size, processes):
    seen, rows = [], 0
    for p in range(processes):
        loader = Loader(threads=1, prefetch=1, share=Share(p, processes))
        for batch in loader.eval_batches(dataset(), batch_size=batch_size):
            assert len(batch["id"]) == batch_size // processes
            seen += list(batch["id"][batch[IS_EXAMPLE]])
            rows += len(batch["id"])
    assert sorted(seen) == list(range(10))
    assert rows == -(-10 // batch_size) * batch_size


@pytest.mark.parametrize("threads", [0, 2])
def test_a_bad_example_is_named(threads):
    def transform(example, rng):
        if example["id"] == 6:
            raise UserError("it is broken")
        return {"id": example["id"]}

    bad = Dataset(Source(Numbers(10), (), lambda i: f"number {i}"), transform)
    batches = Loader(threads, prefetch=2).train_batches(bad, seed=0, batch_size=5, start=0)
    with pytest.raises(UserError) as error:
        list(itertools.islice(batches, 2))
    assert str(error.value) == "number 6: it is broken"


def test_examples_of_different_sizes_are_one_sentence():
    ragged = Dataset(Source(Numbers(10), (), str), lambda example, rng: {"image": np.zeros((example["id"] + 1, 2))})
    with pytest.raises(UserError, match=r"shapes \(\d+, 2\) and \(\d+, 2\); bring them to one size"):
        train_order(ragged, seed=0, batch_size=5, share=Share(0, 1))[0]
