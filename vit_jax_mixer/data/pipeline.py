"""From a source to batches, each a pure function of its step.

The training order is one infinite, seeded sequence: a fresh permutation of the examples each
epoch. The batch of step ``s`` is its slice ``[s * B, (s + 1) * B)``, and an example's
augmentation draws from the seed and its position in the sequence. Process ``p`` of ``P`` reads
every ``P``-th position of that same slice. So there is no iterator state: resuming is seeking.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np

from vit_jax_mixer.data.sources import Source
from vit_jax_mixer.errors import UserError

Example = dict[str, Any]
Batch = dict[str, Any]
MASK = "mask"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A source and what is done to each of its examples: ``transform(example, rng) -> arrays``."""

    source: Source
    transform: Callable[[Example, np.random.Generator], Example]

    def __len__(self) -> int:
        return len(self.source.examples)

    def get(self, index: int, rng: np.random.Generator) -> Example:
        """Return the transformed example; an error names where it comes from."""
        try:
            return self.transform(self.source.examples[index], rng)
        except UserError as error:
            raise UserError(f"{self.source.where(index)}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Share:
    """Which part of each batch this process reads: ``index`` of ``count``."""

    index: int
    count: int

    @classmethod
    def of_this_process(cls) -> "Share":
        return cls(jax.process_index(), jax.process_count())


def train_order(dataset: Dataset, *, seed: int, batch_size: int, share: Share) -> grain.MapDataset[Batch]:
    """Return the infinite sequence of batches: item ``s`` is this process's share of step ``s``.

    Args:
        dataset: what to read.
        seed: of the order and the augmentation.
        batch_size: B, over all processes; a multiple of their number.
        share: this process's part.
    """
    order = grain.MapDataset.source(range(len(dataset))).seed(seed).shuffle().repeat()
    examples = order.random_map(dataset.get)
    return examples[share.index :: share.count].batch(batch_size // share.count, batch_fn=_stack)


def train_batches(
    dataset: Dataset, *, seed: int, batch_size: int, share: Share, start: int, threads: int, prefetch: int
) -> Iterator[Batch]:
    """Iterate over the batches of steps ``start``, ``start + 1``, ...

    Args:
        dataset: what to read.
        seed: of the order and the augmentation.
        batch_size: B, over all processes; a multiple of their number.
        share: this process's part.
        start: the first step.
        threads: how many batches are made at the same time; 0 makes them in the caller.
        prefetch: how many batches are made ahead.
    """
    return _read(train_order(dataset, seed=seed, batch_size=batch_size, share=share)[start:], threads, prefetch)


def eval_batches(dataset: Dataset, *, batch_size: int, share: Share, threads: int, prefetch: int) -> Iterator[Batch]:
    """Iterate once over all examples in order; ``batch['mask']`` is False where the last one is padded."""
    count = -(-len(dataset) // batch_size) * batch_size

    def get(position: int, rng: np.random.Generator) -> Example:
        example = dataset.get(min(position, len(dataset) - 1), rng)
        return {**example, MASK: np.bool_(position < len(dataset))}

    examples = grain.MapDataset.source(range(count)).seed(0).random_map(get)
    return _read(
        examples[share.index :: share.count].batch(batch_size // share.count, batch_fn=_stack), threads, prefetch
    )


def _read(batches: grain.MapDataset[Batch], threads: int, prefetch: int) -> Iterator[Batch]:
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, prefetch) if threads else 0)
    return iter(batches.to_iter_dataset(options))


def _stack(examples: Sequence[Example]) -> Batch:
    """Stack each field along a new first axis."""

    def stack(*values: Any) -> np.ndarray:
        shapes = {np.shape(v) for v in values}
        if len(shapes) > 1:
            raise UserError(
                f"examples of a batch have shapes {sorted(shapes)[0]} and {sorted(shapes)[-1]}; "
                "bring them to one size, as with resize(224) in the config's operations."
            )
        return np.stack(values)

    return jax.tree.map(stack, *examples)
