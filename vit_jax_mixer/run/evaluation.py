"""A task over its evaluation data, on all devices, while it is being trained."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import jax

from vit_jax_mixer.data.pipeline import Loader, OnSkipped
from vit_jax_mixer.run import parallel, step
from vit_jax_mixer.tasks import Task, TrainState

T = TypeVar("T")


class Evaluator:
    """Evaluates a task on all devices; every example counts once, whatever the batch size."""

    def __init__(
        self,
        task: Task,
        devices: parallel.Parallel,
        batch_size: int,
        loader: Loader,
        on_skipped: OnSkipped,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Take what it needs; ``check`` is called before each batch, and may raise to end an evaluation."""
        self._task = task
        self._devices = devices
        self._batch_size = batch_size
        self._loader = loader
        self._on_skipped = on_skipped
        self._check = check
        self._step = devices.eval_step(partial(step.eval_step, task))

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Return the task's metrics for a state, and those of its running mean as NAME_ema if it has one."""
        scores = self._scores(state)
        if jax.tree.leaves(state.ema):
            of_mean = self._scores(dataclasses.replace(state, params=state.ema))
            scores |= {f"{name}_ema": value for name, value in of_mean.items()}
        return scores

    def _scores(self, state: TrainState) -> dict[str, float]:
        def outputs(name: str) -> Iterator[dict[str, Any]]:
            batches = self._loader.eval_batches(
                self._task.eval_data[name], batch_size=self._batch_size, on_skipped=self._on_skipped
            )

            def begin(batch: Any) -> Any:
                self._check()
                return self._step(state, batch)

            running = map(begin, ahead(batches, self._devices.put_batch))
            yield from map(parallel.rows_of, ahead(running, lambda rows: rows))

        return self._task.evaluate(outputs)


def ahead(items: Iterable[Any], begin: Callable[[Any], T], depth: int = 2) -> Iterator[T]:
    """Yield ``begin(item)`` in order, begun ``depth`` items before it is asked for."""
    begun: collections.deque[T] = collections.deque()
    for item in items:
        begun.append(begin(item))
        if len(begun) > depth:
            yield begun.popleft()
    yield from begun
