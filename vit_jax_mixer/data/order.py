"""The order of examples: a permutation of them each epoch, in blocks that processes share.

There are two ways to the same order: one position at a time, with Grain (`shuffled`, `Views`, `Blocks`), and many
at once, for examples that are in memory (`Order`).
"""

import dataclasses
import functools
from typing import Any

import grain
import jax
import numpy as np

from vit_jax_mixer.data import permutation
from vit_jax_mixer.data.balance import Balance

IS_EXAMPLE = "_is_example"  # bool[B] of an evaluation batch: False where a row is padding


@dataclasses.dataclass(frozen=True)
class Share:
    """Which part of each batch this process reads: ``index`` of ``count``."""

    index: int
    count: int

    @classmethod
    def of_this_process(cls) -> "Share":
        return cls(jax.process_index(), jax.process_count())

    def rows(self, batch_size: int) -> np.ndarray:
        """Return which rows of a batch of that size are this process's, i64[B / count]."""
        count = batch_size // self.count
        return self.index * count + np.arange(count)


_FEW = 1000  # below so many examples, Grain's shuffle takes up to 300 times as long to name the next one


def shuffled(count: int, seed: int) -> grain.MapDataset[int]:
    """Return 0 .. count - 1 in another order each epoch, without end."""
    order = _in_order(count, seed)
    return (_ShuffledFew(order) if count < _FEW else order.shuffle()).repeat()


def _in_order(count: int, seed: int) -> grain.MapDataset[int]:
    return grain.MapDataset.source(range(count)).seed(seed)


class _ShuffledFew(grain.MapDataset[int]):
    """A few numbers, in another order each epoch.

    Grain's shuffle walks through a permutation of at least 2^16 numbers, until one is small enough.
    """

    def __init__(self, parent: grain.MapDataset[int]) -> None:
        super().__init__(parent)
        self.drawn_from = int(self._default_seed or 0)

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        epoch, place = divmod(index, len(self))
        return self._parent[epoch * len(self) + int(_permutation(self.drawn_from, epoch, len(self))[place])]


@functools.lru_cache(maxsize=256)  # threads are in a few epochs at once
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


class Blocks(grain.MapDataset[Any]):
    """A process's block of each batch.

    Blocks side by side are the batch in its order. So row i has the same mixup partner and the same
    dropout for any number of processes.
    """

    def __init__(self, parent: grain.MapDataset[Any], batch_size: int, share: Share) -> None:
        super().__init__(parent)
        self._batch_size = batch_size
        self._rows = batch_size // share.count
        self._first = share.index * self._rows

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * self._rows

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, self._rows)
        return self._parent[batch * self._batch_size + self._first + row]


class Views(grain.MapDataset[int]):
    """Each element of an infinite dataset several times; `FlatMapMapDataset` would allow no batches."""

    def __init__(self, parent: grain.MapDataset[int], count: int) -> None:
        super().__init__(parent)
        self._count = count

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index: Any) -> Any:
        return self.slice(index) if isinstance(index, slice) else self._parent[index // self._count]


class Balanced(grain.MapDataset[int]):
    """The examples at the shuffled places of a `Balance`."""

    def __init__(self, parent: grain.MapDataset[int], balance: Balance) -> None:
        super().__init__(parent)
        self._balance = balance

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        return int(self._balance(index // self._balance.places, self._parent[index]))


class Order:
    """Which examples come at positions of the training order, many at once: `shuffled`, each ``views`` times."""

    def __init__(self, count: int, seed: int, views: int, balance: Balance | None = None) -> None:
        self._count = count = balance.places if balance else count
        self._balance = balance
        self._views = views
        self._seed = _ShuffledFew(_in_order(count, seed)).drawn_from  # that of Grain's shuffle in its place, too

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Return i64[B], the indices of the examples at positions i64[B]."""
        epochs, places = np.divmod(positions // self._views, self._count)
        found = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            if self._count < _FEW:
                found[here] = _permutation(self._seed, epoch, self._count)[places[here]]
            else:
                found[here] = permutation.of((self._seed + epoch) % 2**32, self._count)[places[here]]
        return self._balance(epochs, found) if self._balance else found
