"""From a source to batches, each a pure function of its step.

The training order is one infinite, seeded sequence: a fresh permutation of the examples each
epoch. The batch of step ``s`` is its slice ``[s * B, (s + 1) * B)``, and an example's
augmentation draws from the seed and its position in the sequence. Process ``p`` of ``P`` reads the
``p``-th of ``P`` equal blocks of that same slice. So there is no iterator state: resuming is seeking.

Examples that are in memory (`Dataset.gather`) are not made one by one: a batch is one gather of its rows. So are
those whose batches have shapes of their own (`Dataset.batches`), as sentences by their length; what the batch of a
step holds is then theirs to say, and still a function of (seed, step).
"""

import dataclasses
import itertools
import multiprocessing
import pickle
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Annotated, Any

import grain
import jax
import numpy as np
from absl import flags

from vit_jax_mixer.data import main_guard
from vit_jax_mixer.data.balance import Balance
from vit_jax_mixer.data.groups import EMPTY, Batches
from vit_jax_mixer.data.order import IS_EXAMPLE, Balanced, Blocks, Order, Share, Views, shuffled
from vit_jax_mixer.data.sources import Source
from vit_jax_mixer.data.stacking import stack
from vit_jax_mixer.data.workers import cores, end_with_parent
from vit_jax_mixer.errors import UserError, printable
from vit_jax_mixer.specs import Within

Example = dict[str, Any]
Batch = dict[str, Any]
POSITION = "_position"  # u32[B, 2] of a training batch: each row's position in the order, its upper and lower half
SKIPPED = "_skipped"  # i64[B], inside the loader: the index of the bad example that a row replaces, or -1
_TRIES = 100  # of finding another example for a bad one


def as_it_is(example: Example, rng: np.random.Generator) -> Example:
    """Do nothing: the transform of examples that are arrays already."""
    return example


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A source and what is done to each of its examples.

    Attributes:
        source: the examples.
        transform: ``transform(example, rng) -> arrays``; a bad example is a `UserError`.
        views: how often an example follows itself in the order of training, each time with other
            draws (repeated augmentation: Hoffer et al. 2019, arXiv 1901.09335).
        skip_bad: put another example, drawn from ``rng``, in the place of a bad one.
        beside: ``beside(positions, batch) -> batch`` adds what else is known of the rows of a training batch, by
            their positions i64[rows] in the order of training.
        in_step: what the step does to a batch of training: ``in_step(batch, keys)`` with a key for each row, of its
            (seed, position). Such batches have `POSITION`.
        balance: draws each class of training equally often; None to draw each example once an epoch.
        batches: examples in memory, and which of them come together; then nothing is transformed.
    """

    source: Source
    transform: Callable[[Example, np.random.Generator], Example]
    views: int = 1
    skip_bad: bool = False
    beside: Callable[[np.ndarray, Batch], Batch] | None = None
    in_step: Callable[[Batch, jax.Array], Batch] | None = None
    balance: Balance | None = None
    batches: Batches | None = None

    def __len__(self) -> int:
        return len(self.source.examples)

    @property
    def gather(self) -> Callable[[np.ndarray], Batch] | None:
        """What gives the batch of the examples i64[B] at once, where they are in memory as they are read."""
        return getattr(self.source.examples, "batch", None) if self.transform is as_it_is else None

    def get(self, index: int, rng: np.random.Generator) -> Example:
        """Return the transformed example; with ``skip_bad``, ``SKIPPED`` is the index of a bad one, or -1.

        Raises:
            UserError: it is bad, which ends the run or, with ``skip_bad``, so are many others.
        """
        if not self.skip_bad:
            return self._get(index, rng)
        first, bad = index, set[int]()
        for _ in range(_TRIES):
            try:
                if index not in bad:
                    return {**self._get(index, rng), SKIPPED: np.int64(-1 if index == first else first)}
            except UserError:
                bad.add(index)
            index = (index + 1 + int(rng.integers(len(self)))) % len(self)
        raise UserError(f"{self.fault(first)} So are {len(bad) - 1} others, drawn at random; mend the data.")

    def completed(self, positions: np.ndarray, batch: Batch) -> Batch:
        """Return a training batch with all that goes with its rows, by their positions i64[rows]."""
        if self.beside:
            batch = self.beside(positions, batch)
        if self.in_step:
            halves = np.stack([positions >> 32, positions & 0xFFFFFFFF], axis=1)
            batch = {**batch, POSITION: halves.astype(np.uint32)}
        return batch

    def fault(self, index: int) -> str:
        """Return the sentence that says what is wrong with a bad example."""
        try:
            self._get(index, np.random.default_rng(0))
        except UserError as error:
            return str(error)
        where = printable(self.source.where(index))
        return f"{where}: it failed with one draw of the augmentation, not with another."

    def _get(self, index: int, rng: np.random.Generator) -> Example:
        try:
            return self.transform(self.source.examples[index], rng)
        except UserError as error:
            raise placed(error, self.source, index) from error
        except Exception as error:  # a defect, of an operation or a source
            error.add_note(f"This happened in the example {printable(self.source.where(index))}.")
            if multiprocessing.parent_process() is not None and not _survives_pickling(error):
                # It could not reach the process that trains, which would wait for ever.
                raise RuntimeError("".join(traceback.format_exception(error))) from None
            raise


def _survives_pickling(error: Exception) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # whatever a class of errors does with its arguments
        return False


def placed(error: UserError, source: Source, index: int) -> UserError:
    """Return the error with the example's place in front, unless it names that itself."""
    where = printable(source.where(index))
    return error if where in str(error) else UserError(f"{where}: {error}")


def field(example: Mapping[str, Any], name: str) -> Any:
    """Return a field of an example; a `UserError` if it has none of that name."""
    if name not in example:
        raise UserError(f"it has no field {name!r}, only {', '.join(sorted(example))}; choose another dataset.")
    return example[name]


OnSkipped = Callable[[Dataset, int], None]  # told of the index of each bad example that is left out


def _ignore(dataset: Dataset, index: int) -> None:
    pass


def train_order(dataset: Dataset, *, seed: int, batch_size: int, share: Share) -> grain.MapDataset[Batch]:
    """Return the infinite sequence of batches: item ``s`` is this process's share of step ``s``.

    Args:
        dataset: what to read.
        seed: of the order and the augmentation.
        batch_size: B, over all processes; a multiple of their number.
        share: this process's part.
    """
    # Grain's own end, 2^63 - 1, would round up beyond what a length may be.
    batches = _batches(_order(dataset, seed).random_map(dataset.get)[: 2**60], batch_size, share, stack)
    rows = share.rows(batch_size)
    return batches.map_with_index(lambda step, batch: dataset.completed(step * batch_size + rows, batch))


def like_batch(dataset: Dataset, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and types of a training batch; where there are several, of the longest examples."""
    if dataset.batches is not None:
        return {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in dataset.batches.like(batch_size).items()}
    example = first_example(dataset)
    return {name: jax.ShapeDtypeStruct((batch_size, *one.shape), one.dtype) for name, one in example.items()}


def first_example(dataset: Dataset) -> dict[str, np.ndarray]:
    """Return an example as training batches have it."""
    batch = dataset.completed(np.arange(1), stack([dataset.get(0, np.random.default_rng(0))]))
    return {name: rows[0] for name, rows in batch.items() if name != SKIPPED}


def indices_of(dataset: Dataset, *, seed: int, batch_size: int, step: int) -> list[int]:
    """Return which examples of the source the batch of a step holds, over all processes."""
    if dataset.batches is not None:
        indices, _ = dataset.batches.groups.train(seed, batch_size, step)
        return [index for index in indices.tolist() if index != EMPTY]
    order: Any = _order(dataset, seed)
    return [int(order[position]) for position in range(step * batch_size, (step + 1) * batch_size)]


def _order(dataset: Dataset, seed: int) -> grain.MapDataset[int]:
    _check_some(dataset, "training")
    balance = dataset.balance
    order = Balanced(shuffled(balance.places, seed), balance) if balance else shuffled(len(dataset), seed)
    return Views(order, dataset.views) if dataset.views > 1 else order


def _check_some(dataset: Dataset, split: str) -> None:
    if not len(dataset):
        raise UserError(f"the {split} split has no example; name another.")


def _batches(
    examples: grain.MapDataset[Example], batch_size: int, share: Share, batch_fn: Callable[[Sequence[Example]], Batch]
) -> grain.MapDataset[Batch]:
    return Blocks(examples, batch_size, share).batch(batch_size // share.count, batch_fn=batch_fn)


@dataclasses.dataclass(frozen=True)
class Loader:
    """Reads this process's share of batches ahead of their use.

    Threads suffice where the work is done outside of Python's interpreter lock, as decoding and
    resizing is; from about eight of them on, the rest of the work wants several processes. They
    make training batches, which come through shared memory; evaluation, whose start would cost
    more than it gains, has threads alone. At most ``max(threads, prefetch)`` batches of a process
    are being made or wait, and with worker processes four more of each are on their way.

    Attributes:
        workers: processes that make training batches; 0 for none, -1 to choose by the cores.
        threads: how many batches a process makes at the same time; 0 makes them when they are asked
            for, -1 chooses by the cores.
        prefetch: how many batches a process makes ahead.
        share: which part of each batch; that of this process if not given.
    """

    workers: Annotated[int, Within(-1, 1024)]
    threads: Annotated[int, Within(-1, 1024)]
    prefetch: Annotated[int, Within(0, 4096)]
    share: Share = dataclasses.field(default_factory=Share.of_this_process)

    def train_batches(
        self, dataset: Dataset, *, seed: int, batch_size: int, start: int, on_skipped: OnSkipped = _ignore
    ) -> Generator[Batch, None, None]:
        """Iterate over the batches of steps ``start``, ``start + 1``, ... of `train_order`."""
        if dataset.batches is not None:
            return dataset.batches.training(seed, batch_size, self.share, start)
        if dataset.gather is not None:
            return _gathered(dataset, dataset.gather, seed, batch_size, self.share, start)
        workers, threads = self.crew()
        if workers:
            main_guard.check()
        order = train_order(dataset, seed=seed, batch_size=batch_size, share=self.share)
        return self._read(order[start:], dataset, on_skipped, workers, threads)

    def eval_batches(
        self, dataset: Dataset, *, batch_size: int, on_skipped: OnSkipped = _ignore
    ) -> Generator[Batch, None, None]:
        """Iterate once over all examples in order; ``IS_EXAMPLE`` says which rows are not padding.

        The last batch is padded; so is a bad example's place, where such are skipped.
        """
        _check_some(dataset, "evaluation")
        if dataset.batches is not None:
            return dataset.batches.evaluation(batch_size, self.share)
        if dataset.gather is not None:
            return _gathered_once(dataset, dataset.gather, batch_size, self.share)
        count = -(-len(dataset) // batch_size) * batch_size
        rows = batch_size // self.share.count

        def get(position: int, rng: np.random.Generator) -> Example:
            if position >= len(dataset) and position % rows:
                return {}  # padding, which `_padded` makes of the row before
            example = dataset.get(min(position, len(dataset) - 1), rng)
            return {**example, IS_EXAMPLE: np.bool_(position < len(dataset) and example.get(SKIPPED, -1) < 0)}

        examples = grain.MapDataset.source(range(count)).seed(0).random_map(get)
        workers, threads = self.crew()
        batches = _batches(examples, batch_size, self.share, _padded)
        return self._read(batches, dataset, on_skipped, 0, threads * max(workers, 1))

    def crew(self) -> tuple[int, int]:
        """Return how many worker processes there are, and threads in each."""
        count = cores()
        workers = self.workers if self.workers >= 0 else count // 4 if count > 8 else 0
        # One more than cores, since a thread at times waits for the interpreter lock.
        threads = self.threads if self.threads >= 0 else 4 if workers else count + 1
        return workers, threads

    def _read(
        self, batches: grain.MapDataset[Batch], dataset: Dataset, on_skipped: OnSkipped, workers: int, threads: int
    ) -> Generator[Batch, None, None]:
        ahead = max(threads, self.prefetch) if threads else 0
        read = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
        if workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain reads flags of its own there, also outside of commands
            read = read.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1), end_with_parent
            )
        iterator = iter(read)
        try:
            for batch in iterator:
                for index in batch.pop(SKIPPED, ()):
                    if index >= 0:
                        on_skipped(dataset, int(index))
                yield batch
        except RuntimeError as error:
            if "Worker process" not in str(error):
                raise
            raise UserError(
                f"a process that reads data died ({error}); if memory ran out, lower config.loader.workers or "
                "config.loader.prefetch."
            ) from error
        finally:
            iterator.close()


def _gathered(
    dataset: Dataset, gather: Callable[[np.ndarray], Batch], seed: int, batch_size: int, share: Share, start: int
) -> Generator[Batch, None, None]:
    """Iterate over the batches of `train_order`, each made when it is asked for: that takes microseconds."""
    _check_some(dataset, "training")
    order = Order(len(dataset), seed, dataset.views, dataset.balance)
    for step in itertools.count(start):
        positions = step * batch_size + share.rows(batch_size)
        yield dataset.completed(positions, gather(order(positions)))


def _gathered_once(
    dataset: Dataset, gather: Callable[[np.ndarray], Batch], batch_size: int, share: Share
) -> Generator[Batch, None, None]:
    """Iterate over the batches of an evaluation, padded with the last example."""
    for first in range(0, len(dataset), batch_size):
        positions = first + share.rows(batch_size)
        rows = gather(np.minimum(positions, len(dataset) - 1))
        yield {**rows, IS_EXAMPLE: positions < len(dataset)}


def _padded(examples: Sequence[Example]) -> Batch:
    """Stack examples; each empty one becomes the one before it, and is none."""
    rows = list(examples)
    for i, row in enumerate(rows):
        if not row:
            rows[i] = {**rows[i - 1], IS_EXAMPLE: np.bool_(False)}
    return stack(rows)
