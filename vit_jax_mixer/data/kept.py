"""Examples that stay in memory once they are made: what is drawn of them at random, the step draws."""

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vit_jax_mixer.data.pipeline import Batch, Dataset
from vit_jax_mixer.data.sources.base import traits
from vit_jax_mixer.data.stacking import check_shapes
from vit_jax_mixer.data.workers import cores


class Kept:
    """The examples of a dataset whose transform draws nothing, each made when it is first asked for.

    So a run begins at once, reads nothing that it does not need, and is told of a bad example when it meets it.

    Attributes:
        on_devices: whether they are to be sent to the devices once, not a batch at a time.
        rows: {name: [N, ...]} of all examples, with anything in the place of those that are not made yet.
    """

    def __init__(self, dataset: Dataset, *, on_devices: bool = False) -> None:
        """Take the dataset, which does not skip bad examples; all are arrays of the first one's shapes."""
        self._dataset, self.on_devices = dataset, on_devices
        first = self._example(0)
        self.rows = {name: np.empty((len(dataset), *np.shape(of)), np.asarray(of).dtype) for name, of in first.items()}
        self._made = np.zeros(len(dataset), bool)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._dataset,)  # a copy makes its own

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not self._made[index]:
            self._make(index)
        return {name: rows[index] for name, rows in self.rows.items()}

    def batch(self, indices: np.ndarray) -> Batch:
        """Return these examples, i64[B], in one: {name: [B, ...]}."""
        self._make_these(indices)
        return {name: rows[indices] for name, rows in self.rows.items()}

    def all(self) -> Batch:
        """Return all of them, {name: [N, ...]}."""
        self._make_these(np.arange(len(self)))
        return self.rows

    def traits(self) -> Iterator[bytes]:
        """Yield those of the source."""
        return traits(self._dataset.source.examples)

    @functools.cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(cores())

    def _make_these(self, indices: np.ndarray) -> None:
        if not self._made[indices].all():
            missing = np.unique(indices[~self._made[indices]]).tolist()
            for _ in self._pool.map(self._make, missing):
                pass  # an error is raised here

    def _make(self, index: int) -> None:
        for name, value in self._example(index).items():
            check_shapes([value, self.rows[name][index]])
            self.rows[name][index] = value
        self._made[index] = True

    def _example(self, index: int) -> dict[str, Any]:
        return self._dataset.get(index, np.random.default_rng(0))
