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
IS_EXAMPLE = "_is_example"  # bool[B] of an evaluation batch: False where a row is padding


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


@dataclasses.dataclass(frozen=True)
class Loader:
    """Reads this process's share of batches in threads, ahead of their use.

    Attributes:
        threads: how many batches are made at the same time; 0 makes them in the caller.
        prefetch: how many batches are made ahead.
        share: which part of each batch; that of this process if not given.
    """

    threads: int
    prefetch: int
    share: Share = dataclasses.field(default_factory=Share.of_this_process)

    def __post_init__(self) -> None:
        if self.threads < 0 or self.prefetch < 0:
            raise UserError(f"config.loader has threads={self.threads}, prefetch={self.prefetch}; none may be below 0.")

    def train_batches(self, dataset: Dataset, *, seed: int, batch_size: int, start: int) -> Iterator[Batch]:
        """Iterate over the batches of steps ``start``, ``start + 1``, ... of `train_order`."""
        return self._read(train_order(dataset, seed=seed, batch_size=batch_size, share=self.share)[start:])

    def eval_batches(self, dataset: Dataset, *, batch_size: int) -> Iterator[Batch]:
        """Iterate once over all examples in order; the last batch is padded, and says so in ``IS_EXAMPLE``."""
        count = -(-len(dataset) // batch_size) * batch_size

        def get(position: int, rng: np.random.Generator) -> Example:
            example = dataset.get(min(position, len(dataset) - 1), rng)
            return {**example, IS_EXAMPLE: np.bool_(position < len(dataset))}

        examples = grain.MapDataset.source(range(count)).seed(0).random_map(get)
        mine = examples[self.share.index :: self.share.count]
        return self._read(mine.batch(batch_size // self.share.count, batch_fn=_stack))

    def _read(self, batches: grain.MapDataset[Batch]) -> Iterator[Batch]:
        ahead = max(self.threads, self.prefetch) if self.threads else 0
        return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=ahead)))


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
