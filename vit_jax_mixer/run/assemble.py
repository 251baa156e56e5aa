"""The parts of a run, made from its config in one place: to train it, to plan and time it, to look at it."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from vit_jax_mixer import specs, tasks
from vit_jax_mixer.checkpoints import best, checksums, keeping
from vit_jax_mixer.classes import few
from vit_jax_mixer.config import Config
from vit_jax_mixer.data.pipeline import Loader
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import initialisation, stacked
from vit_jax_mixer.run import checkpoint, optim, parallel, plateau, step
from vit_jax_mixer.run.workdir import CONFIG
from vit_jax_mixer.tasks import Task, TrainState
from vit_jax_mixer.tasks.base import Tree


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """What a run consists of.

    Attributes:
        run: the config.
        devices: how the step runs on all of them.
        loader: makes batches of this process's share.
        task: what is learnt.
        scheme: how fresh parameters are drawn; None as the model itself does.
        new_state: from (params, extra) to the state before the first step.
        train_step: one update, ``train_step(across, state, batch)``, as `parallel.Parallel` takes it.
    """

    run: Config
    devices: parallel.Parallel
    loader: Loader
    task: Task
    scheme: initialisation.Scheme | None
    new_state: Callable[[Tree, Tree], TrainState]
    train_step: Callable[..., Any]

    def init(self) -> tuple[Tree, Tree]:
        """Return fresh (params, extra); pure, to be traced."""
        key = step.init_key(self.run.seed)
        params, extra = self.task.init(key)
        return initialisation.draw(self.scheme, key, params), extra

    def shapes(self) -> TrainState:
        """Return the shapes and types of a state, but for what is frozen."""
        return jax.eval_shape(lambda: self.new_state(*self.init()))

    def fresh_state(self) -> TrainState:
        """Return the state that a run begins with, random or pretrained, on the devices."""
        return self._placed(self.devices.make(self.new_state, *self.task.load(*self.devices.make(self.init))))

    def restored_state(self, checkpoints: checkpoint.Checkpoints, step: int) -> TrainState:
        """Return the state of a checkpoint, on the devices."""
        return self._placed(checkpoints.restore(step, self.shapes(), self.devices.saved_sharding))

    def check_published(self) -> None:
        """Raise a `ValueError`, before anything is trained, if a task publishes what its model cannot be used with."""
        about, published = self.task.about(), self.task.published
        if about is None or not published:
            return
        state = _shapes(jax.eval_shape(stacked.unstack, self.shapes()))
        held = {name.removeprefix(f"{published}/"): s for name, s in state.items() if name.startswith(f"{published}/")}
        read = _shapes(about.shapes(about.create("Task.about")))
        if odd := [name for name in held | read if held.get(name) != read.get(name)]:
            where = f"{type(self.task).__name__}.published, {published!r},"
            raise ValueError(f"{where} is not what the model of its about() has: they differ in {few(sorted(odd))}")

    def _placed(self, state: TrainState) -> TrainState:
        return self.devices.put_state(dataclasses.replace(state, frozen=self.task.frozen()))


def _shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the leaves, by their names in a checkpoint."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}


def assemble(run: Config, devices: Sequence[Any] | None = None) -> Parts:
    """Make the parts of a run; the data are opened, and nothing is read of them but an example or two.

    Args:
        run: its config.
        devices: where it is to run; everywhere if not given. They may be described ones.

    Raises:
        UserError: a field is wrong, or the devices do not divide the batch.
    """
    if run.epochs:  # only the task knows how many examples there are
        run = run.in_steps(len(tasks.create(run).train_data))
    how = parallel.create(run.parallel, devices)
    parallel.check_batch_size(run.batch_size, "config.batch_size", run.accum_steps, len(devices or ()))
    loader = specs.call(Loader, run.loader, "config.loader")
    optimizer, rate = specs.call(optim.create, run.optim, "config.optim", steps=run.steps, seed=run.seed)
    if run.plateau.get("metric"):
        optimizer = plateau.scaled(optimizer)
    scheme = initialisation.parse(run.init)
    task = tasks.create(run)
    if (batches := task.train_data.batches) is not None:
        for size in batches.groups.sizes(run.batch_size):
            parallel.check_batch_size(size, "the rows of a batch", run.accum_steps, len(devices or ()))
    return Parts(run, how, loader, task, scheme, *step.of_run(run, task, optimizer, rate))


class Opened(NamedTuple):
    """A run that was opened to be looked at."""

    config: Config
    task: Task
    state: TrainState  # as it was saved, on the first device


def open_run(workdir: str | Path, step: int | None = None) -> Opened:
    """Return the config, the task and the state of a run, complete or under way; its folder is only read.

    Args:
        workdir: its folder.
        step: of the checkpoint; the newest if not given.

    Raises:
        UserError: there is no such run or checkpoint, it is damaged, or the run's data are not here.
    """
    path = Path(workdir).expanduser()
    folder = path / "checkpoints"
    steps = best.steps(folder) if folder.is_dir() else []
    if not steps or not (path / CONFIG).exists():
        raise UserError(f"{path} is no workdir with a {CONFIG} and a checkpoint; name the folder of a run.")
    if step is None:
        step = steps[-1]
    if step not in steps:
        raise UserError(f"{path} has no checkpoint of step {step}, but of {', '.join(map(str, steps))}; name one.")
    try:
        keeping.check(folder / str(step))
    except checksums.DamageError as error:
        raise UserError(f"checkpoint {step} in {path} is damaged ({error}); name another step.") from error
    run = Config.of_fields(checksums.read_json(path / CONFIG, may_lack_it=True), str(path / CONFIG))
    # It may have run on more devices than there are here.
    parts = assemble(dataclasses.replace(run, parallel="jit"), jax.local_devices()[:1])
    state = checkpoint.read(folder / str(step), parts.shapes(), parts.devices.saved_sharding)
    return Opened(
        dataclasses.replace(parts.run, parallel=run.parallel),
        parts.task,
        dataclasses.replace(state, frozen=parts.task.frozen()),
    )
