import itertools

import numpy as np
import pytest

from vit_jax_mixer.data.groups import EMPTY, Batches, Groups, lengths_for
from vit_jax_mixer.data.order import IS_EXAMPLE, Share
from vit_jax_mixer.data.pipeline import Dataset, Loader, indices_of, like_batch
from vit_jax_mixer.data.sources import Source

NEEDED = np.clip(np.random.default_rng(0).gamma(4, 8, 500).astype(int) + 1, 1, 90)
LENGTHS = lengths_for(NEEDED, 4)


class Numbers(Batches):
    """Examples that are their own number, as often as they need positions."""

    def __init__(self):
        self.groups = Groups(np.searchsorted(LENGTHS, NEEDED), LENGTHS, 4)

    def gather(self, indices, length):
        there = (np.arange(length) < NEEDED[indices][:, None]) & (indices != EMPTY)[:, None]
        return {"token": np.where(there, indices[:, None], -1)}


BATCHES = Numbers()
DATA = Dataset(Source([{}] * 500, (), str), lambda example, rng: example, batches=BATCHES)


WHOLE = Share(0, 1)


def batches(start, share=WHOLE):
    loader = Loader(0, 0, 0, share)
    return loader.train_batches(DATA, seed=0, batch_size=512, start=start)


def test_lengths_pad_least():
    padded = lambda lengths: np.array(lengths)[np.searchsorted(lengths, NEEDED)].sum()
    ends = np.unique(-(-NEEDED // 8)) * 8
    for count in (1, 2, 3):
        others = [c for c in itertools.combinations(ends.tolist(), count) if c[-1] == ends[-1]]
        assert padded(lengths_for(NEEDED, count)) == min(map(padded, others))
    assert lengths_for(NEEDED, 100) == tuple(ends)
    assert lengths_for(np.array([3]), 8) == (8,)


def test_a_batch_has_one_of_a_few_shapes_and_about_as_many_positions():
    shapes = {batch["token"].shape for batch in itertools.islice(batches(0), 60)}
    assert {length for _, length in shapes} == set(LENGTHS)
    assert len(shapes) == len(LENGTHS) <= 4
    assert all(512 - 4 * length < rows * length <= 512 and rows % 4 == 0 for rows, length in shapes)
    assert like_batch(DATA, 512)["token"].shape == max(shapes, key=lambda shape: shape[1])


def test_each_example_comes_once_an_epoch_in_another_order_each_epoch():
    steps = sum(-(-np.sum(BATCHES.groups.group == n) // size) for n, size in enumerate(BATCHES.groups.sizes(512)))
    of = lambda first: [indices_of(DATA, seed=0, batch_size=512, step=s) for s in range(first, first + steps)]
    first, second = of(0), of(steps)
    assert sorted(itertools.chain(*first)) == sorted(itertools.chain(*second)) == list(range(500))
    assert first != second
    assert first != [indices_of(DATA, seed=1, batch_size=512, step=s) for s in range(steps)]


def test_a_batch_is_a_function_of_its_step_for_any_number_of_processes():
    whole = [batch["token"] for batch in itertools.islice(batches(0), 50)]
    later = [batch["token"] for batch in itertools.islice(batches(37), 13)]
    halves = [itertools.islice(batches(0, Share(i, 2)), 50) for i in range(2)]
    joined = [np.concatenate([one["token"], two["token"]]) for one, two in zip(*halves, strict=True)]
    for found, expected in ((later, whole[37:]), (joined, whole)):
        assert all(map(np.array_equal, found, expected))
    said = indices_of(DATA, seed=0, batch_size=512, step=41)
    assert [row.max() for row in whole[41] if row.max() >= 0] == said


@pytest.mark.parametrize("count", [1, 2])
def test_an_evaluation_has_each_example_once(count):
    found = []
    for index in range(count):
        for batch in Loader(0, 0, 0, Share(index, count)).eval_batches(DATA, batch_size=16):
            assert batch["token"].shape[0] == 16 // count
            found += batch["token"][batch[IS_EXAMPLE]].max(1).tolist()
    assert sorted(found) == list(range(500))
