"""Examples that live on the devices (``config.data.cache='device'``): the host sends which ones a batch has."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vit_jax_mixer.data.kept import Kept
from vit_jax_mixer.data.pipeline import Batch, Dataset
from vit_jax_mixer.run.parallel import Parallel
from vit_jax_mixer.tasks.base import Task

INDEX = "_index"  # i32[B] of a batch: which examples it has


class Placing(NamedTuple):
    """How batches of a dataset get to the devices.

    Attributes:
        data: what is to be read: the dataset itself, or one whose batches have `INDEX` in the place of examples.
        put: sends a batch of it and returns it, with its examples, on the devices; it does not wait.
        whole: returns a batch of it with its examples, on the host.
    """

    data: Dataset
    put: Callable[[Batch], Batch]
    whole: Callable[[Batch], Batch]


class _Indices:
    """Stands for examples in a dataset: a batch says which ones."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {INDEX: np.int32(index)}

    def batch(self, indices: np.ndarray) -> Batch:
        return {INDEX: indices.astype(np.int32)}


def placing(dataset: Dataset, devices: Parallel) -> Placing:
    """Return how its batches get to the devices; where its examples are to live there, they are sent now.

    Raises:
        UserError: an example is bad.
    """
    kept = _kept(dataset)
    if kept is None:
        return Placing(dataset, devices.put_batch, lambda batch: batch)
    look_up = devices.look_up(kept.all())

    def put(batch: Batch) -> Batch:
        placed = devices.put_batch(batch)
        return _with(look_up(placed[INDEX]), placed)

    def whole(batch: Batch) -> Batch:
        return _with(kept.batch(batch[INDEX]), batch)

    indices = dataclasses.replace(dataset.source, examples=_Indices(kept))
    return Placing(dataclasses.replace(dataset, source=indices), put, whole)


def _with(examples: Batch, batch: Batch) -> Batch:
    """Return a batch with its examples in the place of `INDEX`."""
    return examples | {name: value for name, value in batch.items() if name != INDEX}


def size(task: Task) -> int:
    """Return the bytes of the examples that live on each device."""
    kept = [_kept(dataset) for dataset in (task.train_data, *task.eval_data.values())]
    return sum(rows.nbytes for one in kept if one for rows in one.rows.values())


def _kept(dataset: Dataset) -> Kept | None:
    """Return the examples, where they are to live on the devices as they are."""
    examples = dataset.source.examples
    return examples if isinstance(examples, Kept) and examples.on_devices and dataset.gather else None
