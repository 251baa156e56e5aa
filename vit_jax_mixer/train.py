"""The train loop: the only one. What differs between ways of learning is a task."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import ml_collections
import optax

from vit_jax_mixer import config as config_lib
from vit_jax_mixer import optim, parallel, specs, step, tasks
from vit_jax_mixer.checkpoint import Checkpoints
from vit_jax_mixer.data import pipeline
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.metrics import Behind, Console, Log
from vit_jax_mixer.tasks import Task, TrainState

T = TypeVar("T")


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: str | Path, *, change_config: bool = False
) -> TrainState:
    """Train from the workdir's newest checkpoint, or from the start, to ``config.steps``.

    A run is a pure function of (config, seed, step): stopped at any moment and called again, it
    ends bit for bit as if it had not been stopped.

    Args:
        config: as ``configs/*.py`` make it.
        workdir: takes checkpoints, metrics and the config.
        change_config: go on though the config differs from the one in the workdir.

    Returns:
        The last state, on the devices.

    Raises:
        UserError: what the user can mend, in one sentence.
    """
    # --- From the config to the parts ---
    run = config_lib.Config.of(config)
    devices = parallel.create(run.parallel)
    parallel.check_batch_size(run.batch_size, "config.batch_size", run.accum_steps)
    parallel.check_batch_size(run.eval_batch_size, "config.eval_batch_size")
    loader = specs.call(Loader, run.loader, "config.loader")
    optimizer, learning_rate = specs.call(optim.create, run.optim, "config.optim", steps=run.steps)
    task = tasks.create(run.task, model=run.model, data=run.data, init_from=run.init_from)
    train_step = devices.train_step(partial(step.train_step, task, optimizer, learning_rate, run.seed, run.accum_steps))
    evaluate = Evaluation(task, devices, run.eval_batch_size, loader)

    # --- The state: fresh, pretrained or resumed ---
    workdir = make_workdir(workdir)
    checkpoints = specs.call(Checkpoints, run.checkpoint, "config.checkpoint", workdir=workdir)
    start = checkpoints.latest()
    config_lib.record(config, workdir, resumes=start is not None, may_change=change_config)
    state = start_state(task, optimizer, devices, checkpoints, run.seed)
    start = start or 0

    # --- Steps ---
    log, console, behind = Log(workdir, start), Console(start, run.steps, run.batch_size), Behind()
    console.line(_summary(task, state, start, run.steps, workdir))

    def report(fetched: Iterable[tuple[int, dict[str, float]]]) -> None:
        for number, metrics in fetched:
            console.advance(number)
            if number % run.log_every == 0 or number == run.steps:
                speed = console.training(number, {k: metrics[k] for k in metrics if k not in _QUIET})
                log.write(number, {f"train/{name}": value for name, value in metrics.items()} | speed)

    with closing(checkpoints), closing(log), closing(console):
        batches = loader.train_batches(task.train_data, run.seed, run.batch_size, start)
        console.restart(start)
        for number, batch in zip(range(start + 1, run.steps + 1), ahead(batches, devices.put_batch), strict=False):
            state, metrics = train_step(state, batch)  # the state after `number` updates
            report(behind.add(number, metrics))

            scores = {}
            if number % run.eval_every == 0 or number == run.steps:
                report(behind.fetch())
                scores = evaluate(state)
                log.write(number, scores)
                console.evaluation(number, scores)
            if number % checkpoints.every == 0 or number == run.steps:
                report(behind.fetch())  # so that a state that is not finite is never saved
                checkpoints.save(number, devices.saved_form(state), scores)
            if scores:
                console.restart(number)
    return state


_QUIET = ("grad_norm", "learning_rate")  # logged, but not on the console


@dataclasses.dataclass(frozen=True)
class Loader:
    """``config.loader``: how many batches are made at once, and how many ahead."""

    threads: int
    prefetch: int

    def train_batches(self, data: pipeline.Dataset, seed: int, batch_size: int, start: int):
        return pipeline.train_batches(
            data,
            seed=seed,
            batch_size=batch_size,
            share=pipeline.Share.of_this_process(),
            start=start,
            threads=self.threads,
            prefetch=self.prefetch,
        )

    def eval_batches(self, data: pipeline.Dataset, batch_size: int):
        share = pipeline.Share.of_this_process()
        return pipeline.eval_batches(
            data, batch_size=batch_size, share=share, threads=self.threads, prefetch=self.prefetch
        )


class Evaluation:
    """Evaluates a task on all devices; every example counts once, whatever the batch size."""

    def __init__(self, task: Task, devices: parallel.Parallel, batch_size: int, loader: Loader) -> None:
        self._task = task
        self._devices = devices
        self._batch_size = batch_size
        self._loader = loader
        self._step = devices.eval_step(partial(step.eval_step, task))

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Return the task's metrics for a state."""

        def outputs(name: str) -> Iterator[dict[str, Any]]:
            batches = self._loader.eval_batches(self._task.eval_data[name], self._batch_size)
            running = (self._step(state, batch) for batch in ahead(batches, self._devices.put_batch))
            yield from map(parallel.rows_of, ahead(running, lambda rows: rows))

        return self._task.evaluate(outputs)


def start_state(
    task: Task,
    optimizer: optax.GradientTransformation,
    devices: parallel.Parallel,
    checkpoints: Checkpoints,
    seed: int,
) -> TrainState:
    """Return the newest checkpoint's state, or else a fresh (or pretrained) one, on the devices."""
    init = partial(task.init, step.init_key(seed))
    latest = checkpoints.latest()
    if latest is None:
        state = step.new_state(optimizer, *task.load(*jax.jit(init)()))
    else:
        like = jax.eval_shape(lambda: step.new_state(optimizer, *init()))
        state = checkpoints.restore(latest, like, devices.saved_sharding())
    return devices.put_state(dataclasses.replace(state, frozen=task.frozen()))


def ahead(items: Iterable[Any], begin: Callable[[Any], T], depth: int = 2) -> Iterator[T]:
    """Yield ``begin(item)`` in order, begun ``depth`` items before it is asked for."""
    begun: collections.deque[T] = collections.deque()
    for item in items:
        begun.append(begin(item))
        if len(begun) > depth:
            yield begun.popleft()
    yield from begun


def make_workdir(path: str | Path) -> Path:
    """Return the folder, made and tried for writing."""
    path = Path(path).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may have been faster
    except OSError as error:
        raise UserError(f"cannot write to the workdir {path} ({error.strerror}); choose another --workdir.") from error
    return path


def _summary(task: Task, state: TrainState, start: int, steps: int, workdir: Path) -> str:
    parameters = sum(p.size for p in jax.tree.leaves(jax.eval_shape(lambda: task.init(jax.random.key(0)))[0]))
    kinds = ", ".join(sorted({d.device_kind for d in jax.devices()}))
    begin = "complete" if start == steps else f"from step {start}" if start else "from the start"
    return (
        f"{workdir}: {begin}, {steps} steps; {parameters:,} parameters, "
        f"{len(task.train_data):,} training examples, {jax.device_count()} device(s) ({kinds})"
    )
