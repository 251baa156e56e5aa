"""Batches of examples that are about as long: a few static shapes, so that a step is compiled a few times."""

import abc
import itertools
from collections.abc import Generator, Iterator, Sequence

import numpy as np

from vit_jax_mixer.data.order import IS_EXAMPLE, Share

Batch = dict[str, np.ndarray]

Picked = tuple[np.ndarray, int]  # which examples, i64[B], and how many positions each has
EMPTY = -1  # in the place of an example, where a batch has fewer than its shape


class Batches(abc.ABC):
    """Examples in memory whose batches have shapes of their own (`pipeline.Dataset.batches`).

    Attributes:
        groups: which of them come together.
    """

    groups: "Groups"

    @abc.abstractmethod
    def gather(self, indices: np.ndarray, length: int) -> Batch:
        """Return the arrays [B, ...] of examples i64[B] of a group; an `EMPTY` one weighs nothing."""

    def training(self, seed: int, batch_size: int, share: Share, start: int) -> Generator[Batch, None, None]:
        """Yield this process's share of the batches of steps ``start``, ``start + 1``, ..."""
        for step in itertools.count(start):
            indices, length = self.groups.train(seed, batch_size, step)
            yield self.gather(indices[share.rows(len(indices))], length)

    def evaluation(self, rows: int, share: Share) -> Generator[Batch, None, None]:
        """Yield this process's share of batches in which each example comes once, with `IS_EXAMPLE`."""
        for indices, length in self.groups.once(rows):
            mine = indices[share.rows(rows)]
            yield self.gather(mine, length) | {IS_EXAMPLE: mine != EMPTY}

    def each_like(self, rows: int) -> Iterator[Batch]:
        """Yield a batch of evaluation of each shape that occurs."""
        for group in np.unique(self.groups.group).tolist():
            yield self.gather(np.full(rows, EMPTY), self.groups.lengths[group]) | {IS_EXAMPLE: np.zeros(rows, bool)}

    def like(self, batch_size: int) -> Batch:
        """Return a batch of training of the longest examples."""
        return self.gather(np.full(min(self.groups.sizes(batch_size)), EMPTY), max(self.groups.lengths))


class Groups:
    """Which examples come together: each batch is of one group, whose examples are padded to one length.

    An epoch is a permutation of all examples. Those of each group are cut into batches in its order, the last one
    filled up with `EMPTY`, and the batches of all groups are shuffled. So each example comes once an epoch, and the
    batch of a step is a function of (seed, step) alone.
    """

    def __init__(self, group: np.ndarray, lengths: Sequence[int], multiple: int) -> None:
        """Take the groups.

        Args:
            group: i64[N], of each example.
            lengths: positions of an example of each group.
            multiple: of rows in a batch, so that devices and processes can share it.
        """
        self.group = group
        self.lengths = tuple(lengths)
        self._multiple = multiple
        self._counts = np.bincount(group, minlength=len(lengths))
        self._latest: tuple[object, list[Picked]] = (None, [])  # an epoch, which follows from its key

    def sizes(self, batch_size: int) -> tuple[int, ...]:
        """Return the rows of each group's batches: as many as have about ``batch_size`` positions in all."""
        return tuple(max(batch_size // one // self._multiple, 1) * self._multiple for one in self.lengths)

    def train(self, seed: int, batch_size: int, step: int) -> Picked:
        """Return the batch of a step, over all processes."""
        sizes = self.sizes(batch_size)
        in_an_epoch = sum(-(-count // size) for count, size in zip(self._counts.tolist(), sizes, strict=True))
        epoch, place = divmod(step, in_an_epoch)
        if self._latest[0] != (seed, epoch, sizes):
            self._latest = ((seed, epoch, sizes), self._epoch(seed, epoch, sizes))
        return self._latest[1][place]

    def _epoch(self, seed: int, epoch: int, sizes: Sequence[int]) -> list[Picked]:
        rng = np.random.default_rng((seed, epoch))
        batches = self._cut(rng.permutation(len(self.group)), sizes)
        return [batches[i] for i in rng.permutation(len(batches))]

    def once(self, rows: int) -> Iterator[Picked]:
        """Yield batches of ``rows`` examples, group after group, in which each comes once."""
        yield from self._cut(np.arange(len(self.group)), (rows,) * len(self.lengths))

    def _cut(self, order: np.ndarray, sizes: Sequence[int]) -> list[Picked]:
        found: list[Picked] = []
        for number, size in enumerate(sizes):
            mine = order[self.group[order] == number]
            filled = np.full(-(-len(mine) // size) * size, EMPTY)
            filled[: len(mine)] = mine
            found.extend((one, self.lengths[number]) for one in filled.reshape(-1, size))
        return found


def lengths_for(needed: np.ndarray, most: int, unit: int = 8) -> tuple[int, ...]:
    """Return at most ``most`` lengths, multiples of ``unit``, that pad examples of ``needed`` positions i64[N] least.

    By dynamic programming: the least padding of the examples up to each length, with one more length at a time.
    """
    units = -(-np.maximum(needed, 1) // unit)
    ends = np.unique(units)  # the only lengths worth having
    upto = np.array([np.count_nonzero(units <= end) for end in ends])
    # cost[i, j]: positions of the examples beyond the i-th end, padded to the j-th
    before = np.concatenate([[0], upto])
    cost = (upto[None] - before[:, None]) * ends[None].astype(float)
    cost[np.arange(len(before))[:, None] > np.arange(len(ends))[None]] = np.inf
    best, paths = cost[0], [(j,) for j in range(len(ends))]
    for _ in range(min(most, len(ends)) - 1):
        tried = best[:, None] + cost[1:]  # [i, j]: the last but one is i
        last = np.argmin(tried, axis=0)
        better = tried[last, np.arange(len(ends))] < best
        paths = [(*paths[last[j]], j) if better[j] else paths[j] for j in range(len(ends))]
        best = np.where(better, tried[last, np.arange(len(ends))], best)
    return tuple(int(ends[j]) * unit for j in paths[-1])
