"""A task over its evaluation data, on all devices, while it is being trained."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import jax

from vit_jax_mixer.config import Config
from vit_jax_mixer.data.pipeline import Loader, OnSkipped
from vit_jax_mixer.run import parallel, resident
from vit_jax_mixer.run import step as step_lib
from vit_jax_mixer.tasks import Task, TrainState

T = TypeVar("T")


class Evaluator:
    """Evaluates a task on all devices; every example counts once, whatever the batch size."""

    def __init__(
        self,
        run: Config,
        task: Task,
        devices: parallel.Parallel,
        loader: Loader,
        on_skipped: OnSkipped,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Take what it needs; ``check`` is called before each batch, and may raise to end an evaluation."""
        if unknown := task.every.keys() - task.eval_data.keys():
            raise ValueError(f"{type(task).__name__}.every names {sorted(unknown)}, which are none of its eval_data")
        self._run = run
        self._task = task
        self._loader = loader
        self._on_skipped = on_skipped
        self._check = check
        self._step = devices.eval_step(partial(step_lib.eval_step, task))
        self._placing = functools.cache(lambda name: resident.placing(task.eval_data[name], devices))

    def is_whole(self, step: int) -> bool:
        """Say whether the evaluation after ``step`` updates leaves nothing out."""
        return all(self._is_due(name, step) for name in self._task.eval_data)

    def __call__(self, step: int, state: TrainState) -> dict[str, float]:
        """Return the task's metrics for the state after ``step`` updates, {} where no dataset is due.

        Those of its running mean, if it has one, are there as NAME_ema.
        """
        if not any(self._is_due(name, step) for name in self._task.eval_data):
            return {}
        scores = self._scores(step, state)
        if jax.tree.leaves(state.ema):
            of_mean = self._scores(step, dataclasses.replace(state, params=state.ema))
            scores |= {f"{name}_ema": value for name, value in of_mean.items()}
        return scores

    def pictures(self, step: int, state: TrainState) -> Mapping[str, Any]:
        """Return the task's pictures for the state after ``step`` updates."""
        return self._task.pictures(self._outputs(step, state))

    def _is_due(self, name: str, step: int) -> bool:
        return self._run.evaluates_after(step, self._task.every.get(name, 1))

    def _scores(self, step: int, state: TrainState) -> dict[str, float]:
        return self._task.evaluate(self._outputs(step, state))

    def _outputs(self, step: int, state: TrainState) -> Callable[[str], Iterator[dict[str, Any]]]:
        def outputs(name: str) -> Iterator[dict[str, Any]]:
            if not self._is_due(name, step):
                return
            data, put, _ = self._placing(name)
            batches = self._loader.eval_batches(data, batch_size=self._run.eval_batch_size, on_skipped=self._on_skipped)

            def begin(batch: Any) -> Any:
                self._check()
                return self._step(state, batch)

            running = map(begin, ahead(batches, put))
            yield from map(parallel.rows_of, ahead(running, lambda rows: rows))

        return outputs


def ahead(items: Iterable[Any], begin: Callable[[Any], T], depth: int = 2) -> Iterator[T]:
    """Yield ``begin(item)`` in order, begun ``depth`` items before it is asked for."""
    begun: collections.deque[T] = collections.deque()
    for item in items:
        begun.append(begin(item))
        if len(begun) > depth:
            yield begun.popleft()
    yield from begun
