"""The train state on disk: Orbax, asynchronous, complete or absent."""

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN

from vit_jax_mixer.checkpoints import best as best_lib
from vit_jax_mixer.checkpoints import checksums, keeping
from vit_jax_mixer.checkpoints.orbax_path import for_orbax
from vit_jax_mixer.errors import UserError, suggest, writing
from vit_jax_mixer.models import stacked
from vit_jax_mixer.run import processes
from vit_jax_mixer.run.saving_together import FAILURES, Manager, telling, told
from vit_jax_mixer.run.workdir import remember_checkpoint
from vit_jax_mixer.tasks.base import TrainState, Tree

_OPTIONAL = ("ema", "skipped")  # of the state; a run may begin or end to have them
_DELETED = ".deleted"  # in the folder of checkpoints, until the next save
_PAUSE = 5  # seconds, before a save that failed is tried again


class Checkpoints:
    """The checkpoints of a workdir, one folder a step under ``checkpoints/``."""

    def __init__(self, workdir: Path, *, every: int, keep: int, best: str) -> None:
        """Take ``config.checkpoint``.

        Args:
            workdir: where the run writes.
            every: steps between two checkpoints.
            keep: how many of the newest stay.
            best: the evaluation metric by which the best one stays too, as `best` says; '' for none.
        """
        if every < 1 or keep < 1:
            raise UserError(f"config.checkpoint has every={every} and keep={keep}; both must be 1 or more.")
        self.every = every
        self.best = best_lib.metric(best)
        self._folder = workdir.absolute() / "checkpoints"
        self._writing = 0  # the step that is being written
        self._shapes: dict[str, tuple[int, ...]] = {}  # of its arrays
        self._begun = False  # whether nobody knows yet if that is written
        self.given_up = False  # nothing more can be written
        self._failing = ""  # why the last save failed, while the run goes on in spite of it
        self._best = best
        self.set_aside = self._tidy(best)
        steps = best_lib.steps(self._folder) if self._folder.is_dir() else []
        self._scores = {step: best_lib.read(self._folder / str(step)) for step in steps}
        self._handler = ocp.StandardCheckpointHandler()
        self._manager = Manager(
            for_orbax(self._folder),
            item_handlers=self._handler if jax.process_count() == 1 else telling(self._handler, self._end),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy([LatestN(keep), keeping.KeepBest(self._scores, best)]),
                step_name_format=keeping.Names(),
                cleanup_tmp_directories=True,
                todelete_subdir=_DELETED,
                async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
            ),
        )

    def _tidy(self, best: str) -> str:
        """Set aside what is damaged; return what to tell of it."""
        said = ""
        if jax.process_index() == 0 and self._folder.is_dir():
            self._delete()
            with writing(self._folder):
                said = keeping.set_damaged_aside(self._folder, best)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        return said

    def _delete(self) -> None:
        """Delete what Orbax has put away: a kill in the midst of it leaves nothing that looks like a checkpoint."""
        if jax.process_index() == 0:
            shutil.rmtree(self._folder / _DELETED, ignore_errors=True)

    def latest(self) -> int | None:
        """Return the newest complete checkpoint's step."""
        return self._manager.latest_step()

    def is_scored(self, step: int) -> bool:
        """Say whether a checkpoint has scores."""
        return bool(self._scores.get(step))

    def score(self, step: int, scores: best_lib.Scores, *, whole: bool = True) -> None:
        """Add the scores of a checkpoint whose evaluation came after it, as one that is made up for.

        Args:
            step: a checkpoint that there is.
            scores: of the evaluation.
            whole: whether that left nothing out; else ``best`` may not have been due.

        Raises:
            UserError: they cannot be written, or ``best`` is none of them.
        """
        self._scores[step] = dict(scores)
        if jax.process_index() == 0:
            with writing(self._folder):
                best_lib.write(self._folder / str(step), scores)
        self._check_best(scores, whole)

    def conclusion(self) -> str:
        """Return which step is the best, and its score; '' where none has one."""
        step = best_lib.step(self._scores, self._best)
        return "" if step is None else f"step {step} is the best, {self.best} {self._scores[step][self.best]:.4g}"

    def _check_best(self, scores: best_lib.Scores, whole: bool) -> None:
        if self._lacks_best(scores, whole):
            raise UserError(f"config.checkpoint.best: {self.best!r} is no metric{suggest(self.best, scores)}")

    def _lacks_best(self, scores: best_lib.Scores, whole: bool) -> bool:
        return bool(whole and scores and self.best and self.best not in scores)

    def save(
        self, step: int, state: TrainState, metrics: Mapping[str, float], *, whole: bool = True, last: bool = False
    ) -> str:
        """Begin to write a checkpoint; returns once the state is copied from the devices.

        A save that fails, as on a full disk, is made up for by the next (see `failed`), which is then
        waited for and tried twice. If that fails too, the run goes on until the next that is due.

        Args:
            step: its number.
            state: what is saved.
            metrics: of an evaluation, if there was one.
            whole: whether that left nothing out; else ``best`` may not have been due.
            last: wait until it is written.

        Returns:
            What to tell the user; '' for nothing.

        Raises:
            UserError: it fails, and so did the one before or it is the last; or there are metrics, but
                ``best`` is none of them, in which case the checkpoint is written.
        """
        if self._lacks_best(metrics, whole):
            self._must_save(step, state, metrics)
            self._check_best(metrics, whole)
        before = self._settle() or self._failing
        error = (before if jax.process_count() > 1 else "") or self._begin(step, state, metrics)
        if not (before or error or last):
            return ""
        error = error or self._settle()
        if error and jax.process_count() > 1:
            self._end(error)
        if error:
            time.sleep(_PAUSE)
            error = self._begin(step, state, metrics) or self._settle()
        if not error:
            self._failing = ""
            return f"checkpoints can be written again: that of step {step} is ({before} before)" if before else ""
        if self._failing or last:
            self.given_up = True
            raise UserError(
                f"cannot write checkpoint {step} to {self._folder} ({error}), so the run stops; the newest there is of "
                f"step {self.latest()}: make room or mend the disk, and give the same command again."
            )
        self._failing = error
        return f"cannot write checkpoint {step} to {self._folder} ({error}); the run goes on until the next fails too"

    def failed(self) -> bool:
        """Say whether the save that was begun last has failed, and nobody was told; one process alone can."""
        if not self._begun or jax.process_count() > 1 or self._manager.is_saving_in_progress():
            return False
        self._begun = not (self._folder / str(self._writing)).is_dir()
        return self._begun

    def _end(self, error: Exception | str) -> NoReturn:
        """End this process, one of several; the others notice."""
        error = _reason(error) if isinstance(error, Exception) else error
        reason = (
            f"cannot write checkpoint {self._writing} to {self._folder} ({error}), and several processes could try "
            "again only together, so the run stops; make room or mend the disk, and give the same command again to all."
        )
        processes.end(UserError(reason))

    def _must_save(self, step: int, state: TrainState, metrics: Mapping[str, float]) -> None:
        if error := self._settle() or self._begin(step, state, metrics) or self._settle():
            raise UserError(f"cannot write checkpoint {step} to {self._folder} ({error}); make room or mend the disk.")

    def _begin(self, step: int, state: TrainState, metrics: Mapping[str, float]) -> str:
        """Begin to write; return why that failed, or ''."""
        self._writing, self._begun, self._scores[step] = step, True, dict(metrics)
        self._delete()
        try:
            tree = stacked.unstack(_saved(state))
            self._shapes = _shapes(tree)
            self._manager.save(step, args=ocp.args.StandardSave(tree), force=True)
        except FAILURES as error:
            return self._why(error)
        return ""

    def _settle(self) -> str:
        """Wait until what was begun is written; return why that failed, or ''."""
        self._begun = False
        try:
            self._manager.wait_until_finished()
        except FAILURES as error:
            return self._why(error)
        return ""

    def _why(self, error: Exception) -> str:
        """Return why a save failed, and see which checkpoints there are: Orbax forgets those it was about to delete."""
        # A device without memory, which no disk can mend; a full disk has the same words, but a type of TensorStore.
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
            raise error
        self._manager.reload()
        return _reason(error)

    def _seal(self) -> None:
        """Is called by Orbax when all is written, before the folder gets its name: read back what there is."""
        if jax.process_index() == 0:
            with told(self._end) if jax.process_count() > 1 else nullcontext():
                begun = f"{self._writing}{ocp.path.step.TMP_DIR_SUFFIX}"
                folder = next(path for path in self._folder.iterdir() if path.name.startswith(begun))
                if _shapes(self._handler.metadata(for_orbax(folder / "default"))) != self._shapes:
                    raise ValueError(f"{folder} does not hold what was written to it")
                if scores := self._scores[self._writing]:
                    best_lib.write(folder, scores)
                checksums.seal(folder)
                remember_checkpoint(self._folder.parent, self._writing)

    def restore(self, step: int, like: TrainState, sharding: Callable[[Any], jax.sharding.Sharding]) -> TrainState:
        """Read a checkpoint, saved on whatever devices.

        A running mean that it does not hold begins with its parameters, and a count of skips with 0.

        Args:
            step: which one.
            like: its form (shapes and types suffice).
            sharding: says for each array of ``like`` where it is to be.

        Raises:
            UserError: it holds other arrays; the sentence names the first, with both shapes.
        """
        return read(self._folder / str(step), like, sharding)

    def close(self) -> None:
        """Wait until what was begun is complete.

        Raises:
            UserError: it could not be written.
        """
        if self.given_up and jax.process_count() > 1:  # the others will not come to write what was begun
            return
        error = "" if self.given_up else self._settle()
        with suppress(*FAILURES):  # of which the user knows
            self._manager.close()
        self._delete()
        if error:
            raise UserError(f"cannot write checkpoint {self._writing} to {self._folder} ({error}); make room.")


def read(folder: Path, like: TrainState, sharding: Callable[[Any], jax.sharding.Sharding]) -> TrainState:
    """Read the checkpoint in a folder, which is left as it is; see `Checkpoints.restore`."""
    handler = ocp.StandardCheckpointHandler()
    arrays = for_orbax(folder / "default")
    wanted = _saved(like)
    found = _shapes(handler.metadata(arrays))
    can_hold = wanted | {"ema": wanted["params"], "skipped": jax.ShapeDtypeStruct((), np.int32)}
    absent = [name for name in _OPTIONAL if not any(path.split("/")[0] == name for path in found)]
    held = can_hold | dict.fromkeys(absent, ())
    target = jax.eval_shape(stacked.unstack, held)
    _check(found, _shapes(target), folder.name)
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(x)), target)
    restored = handler.restore(arrays, args=ocp.args.StandardRestore(target))
    state = stacked.stack(restored, held)
    begun = {"ema": state["params"], "skipped": np.zeros((), np.int32)}
    for name in _OPTIONAL:
        state[name] = (begun[name] if name in absent else state[name]) if jax.tree.leaves(wanted[name]) else ()
    return dataclasses.replace(like, **state)


def _reason(error: Exception) -> str:
    """Return the words of an error that say what a person can mend."""
    lines = str(error).splitlines() or [type(error).__name__]
    return (getattr(error, "strerror", None) or lines[0].rpartition("Failed to ")[2])[:200]


def _saved(state: TrainState) -> dict[str, Tree]:
    names = ("step", "params", "opt_state", "extra", "ema", "skipped")
    return {name: getattr(state, name) for name in names}


def _shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _check(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], step: str) -> None:
    # Parameters first: the optimizer's copies of them say less.
    for name in sorted(found.keys() | expected.keys(), key=lambda name: (not name.startswith("params/"), name)):
        if found.get(name) != expected.get(name):
            raise UserError(
                f"checkpoint {step}: {name} has shape {found.get(name, 'none: it is absent')}, the config needs "
                f"{expected.get(name, 'no such array')}; take the config it was made with, or another --workdir."
            )
