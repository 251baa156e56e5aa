"""The train loop: the only one. What differs between ways of learning is a task."""

import collections
import dataclasses
import fcntl
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import ml_collections

from vit_jax_mixer import config as config_lib
from vit_jax_mixer import distributed, hardware, optim, parallel, specs, step, tasks
from vit_jax_mixer.checkpoint import Checkpoints
from vit_jax_mixer.data.pipeline import Loader, OnSkipped, Share, indices_of
from vit_jax_mixer.data.skipped import Skipped
from vit_jax_mixer.errors import UserError, suggest, writing
from vit_jax_mixer.interruption import Interruption, Stopped
from vit_jax_mixer.metrics import Reports
from vit_jax_mixer.tasks import Task, TrainState
from vit_jax_mixer.tasks.base import Tree
from vit_jax_mixer.trace import Trace

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
        UserError: what the user can mend, in one sentence; what was trained until then is saved.
    """
    # --- From the config to the parts ---
    run = config_lib.Config.of(config)
    distributed.check_same(repr(config), "the config")
    devices = parallel.create(run.parallel)
    parallel.check_batch_size(run.batch_size, "config.batch_size", run.accum_steps)
    parallel.check_batch_size(run.eval_batch_size, "config.eval_batch_size")
    loader = specs.call(Loader, run.loader, "config.loader", share=Share.of_this_process())
    optimizer, learning_rate = specs.call(optim.create, run.optim, "config.optim", steps=run.steps)
    task = tasks.create(run)
    new_state, one_step = step.of_run(run, task, optimizer, learning_rate)
    train_step = _traceable(one_step, run.parallel) if run.debug_nans else devices.train_step(one_step)

    with (
        jax.debug_nans(run.debug_nans),
        open_workdir(workdir) as workdir,
        closing(specs.call(Checkpoints, run.checkpoint, "config.checkpoint", workdir=workdir)) as checkpoints,
    ):
        _check_best(checkpoints.best, task)

        # --- The state: fresh, pretrained or resumed ---
        start = checkpoints.latest() or 0
        distributed.check_same(f"{start}", "the newest checkpoint")
        if start and not change_config:
            config_lib.check_unchanged(config, workdir)
        state = start_state(task, new_state, devices, checkpoints, run.seed)
        with writing(workdir):
            config_lib.record(config, workdir)
            if jax.process_index() == 0 and (about := task.about()):
                about.write(workdir)

        # --- Steps ---
        trace = Trace(run.profile, workdir, start, run.steps)
        reports = _reports(run, task, start, workdir)
        with closing(reports), closing(trace), Interruption(start).heeded() as interruption:
            for line in (checkpoints.set_aside, _summary(run, task, start, workdir), trace.notice):
                reports.line(line)
            skipped = Skipped(workdir, jax.process_index(), reports.line)
            evaluate = Evaluation(task, devices, run.eval_batch_size, loader, skipped, interruption.check)
            if distributed.of_first(start > 0 and run.evaluates_after(start) and not reports.has_evaluation(start)):
                try:
                    reports.evaluation(start, evaluate(state))
                except Stopped as stopped:
                    reports.line(_stopped_line(f"{stopped}", start, run.steps, workdir))
                    return state
            batches = loader.train_batches(
                task.train_data, seed=run.seed, batch_size=run.batch_size, start=start, on_skipped=skipped
            )
            ready = ahead(batches, devices.put_batch)
            done = start
            try:
                for number in range(start + 1, run.steps + 1):
                    trace.before(number)
                    with reports.waiting():
                        batch = next(ready)
                    state, metrics = train_step(state, batch)
                    done = number
                    reports.training(number, metrics)
                    reports.line(trace.after(number, metrics))

                    scores, stopped = {}, interruption.agreed(number)
                    if run.evaluates_after(number) and not stopped:
                        reports.catch_up()
                        try:
                            scores = evaluate(state)
                            reports.evaluation(number, scores)
                        except Stopped:
                            stopped = interruption.agreed(number)
                    last = bool(stopped) or number == run.steps
                    if scores or last or number % checkpoints.every == 0 or checkpoints.failed():
                        reports.catch_up()  # so that a state that is not finite is never saved
                        reports.line(checkpoints.save(number, devices.saved_form(state), scores, last=last))
                    if stopped:
                        reports.line(_stopped_line(stopped, number, run.steps, workdir))
                        break
            except Exception as error:
                if jax.process_count() > 1:  # they could save only together, and the others are a step ahead
                    checkpoints.given_up = True
                elif isinstance(error, UserError):  # as an image that cannot be read; nothing that was trained is lost
                    reports.catch_up()
                    if not checkpoints.given_up and done > (checkpoints.latest() or 0):
                        checkpoints.save(done, devices.saved_form(state), {}, last=True)
                raise
            reports.line(skipped.summary())
    return state


def _traceable(one_step: Callable[..., Any], how: str) -> Callable[..., Any]:
    """Compile a step so that JAX can repeat it operation by operation, to find the one that makes a NaN."""
    if how.startswith("pmap"):
        raise UserError("config.debug_nans needs config.parallel='jit'; change one.")
    return jax.jit(partial(one_step, step.Across()))


def _reports(run: config_lib.Config, task: Task, start: int, workdir: Path) -> Reports:
    """Open the run's metrics; a step that is not finite leaves a file that names its examples."""

    def record(number: int) -> str:
        path = workdir / f"not_finite_step_{number}.json"
        data = task.train_data
        indices = indices_of(data, seed=run.seed, batch_size=run.batch_size, step=number - 1)
        examples = [{"index": index, "where": data.source.where(index)} for index in indices]
        try:
            if jax.process_index() == 0:
                path.write_text(json.dumps({"step": number, "examples": examples}, indent=1) + "\n")
        except OSError as error:
            return f" ({path}, for the names of its examples, cannot be written: {error.strerror})"
        return f" ({path} names its examples)"

    peak = hardware.peak_flop()
    return Reports(
        workdir,
        start,
        run.steps,
        run.log_every,
        run.batch_size,
        # The backward pass has twice the work of the forward.
        least_seconds=3 * task.forward_flop() * run.batch_size / peak if peak else 0.0,
        skips=run.skips,
        on_not_finite=record,
    )


class Evaluation:
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


def start_state(
    task: Task,
    new_state: Callable[[Tree, Tree], TrainState],
    devices: parallel.Parallel,
    checkpoints: Checkpoints,
    seed: int,
) -> TrainState:
    """Return the newest checkpoint's state, or else a fresh (or pretrained) one, on the devices."""
    init = partial(task.init, step.init_key(seed))
    latest = checkpoints.latest()
    if latest is None:
        state = devices.make(new_state, *task.load(*devices.make(init)))
    else:
        like = jax.eval_shape(lambda: new_state(*init()))
        state = checkpoints.restore(latest, like, devices.saved_sharding)
    return devices.put_state(dataclasses.replace(state, frozen=task.frozen()))


def ahead(items: Iterable[Any], begin: Callable[[Any], T], depth: int = 2) -> Iterator[T]:
    """Yield ``begin(item)`` in order, begun ``depth`` items before it is asked for."""
    begun: collections.deque[T] = collections.deque()
    for item in items:
        begun.append(begin(item))
        if len(begun) > depth:
            yield begun.popleft()
    yield from begun


@contextmanager
def open_workdir(path: str | Path) -> Iterator[Path]:
    """Make the folder, try it for writing, and keep other runs out of it until this one ends.

    Raises:
        UserError: it cannot be written, another run writes to it, or not all processes see it.
    """
    if "://" in str(path):
        raise UserError(f"the workdir {path} is no local folder, and others do not work yet; choose another --workdir.")
    path = Path(path).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / f".lock{jax.process_index()}").open("w")
    except OSError as error:
        raise UserError(f"cannot write to the workdir {path} ({error.strerror}); choose another --workdir.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a kill frees it
        except BlockingIOError as error:
            raise UserError(f"another run writes to {path}; stop it, or choose another --workdir.") from error
        except OSError:
            pass  # a file system without locks
        distributed.check_shared(path)
        yield path


def _check_best(best: str, task: Task) -> None:
    """Raise a `UserError`, before anything is trained, if no evaluation can give that metric."""
    if best and best.rpartition("/")[0] not in task.eval_data:
        known = [f"{name}/..." for name in task.eval_data]
        raise UserError(f"config.checkpoint.best: {best!r} is no metric of this run{suggest(best, known)}")


def _stopped_line(why: str, step: int, steps: int, workdir: Path) -> str:
    return f"{why}: stopped after step {step} of {steps}, saved in {workdir}; the same command goes on from there"


def _summary(run: config_lib.Config, task: Task, start: int, workdir: Path) -> str:
    parameters = sum(p.size for p in jax.tree.leaves(jax.eval_shape(lambda: task.init(jax.random.key(0)))[0]))
    kinds = ", ".join(sorted({d.device_kind for d in jax.devices()}))
    fresh = f"from {run.init_from}" if run.init_from else "from random weights"
    begin = f"complete at step {start}" if start >= run.steps else f"from step {start}" if start else fresh
    return (
        f"{workdir}: {begin}, {run.steps} steps; {parameters:,} parameters, "
        f"{len(task.train_data):,} training examples, {jax.device_count()} device(s) ({kinds})"
    )
