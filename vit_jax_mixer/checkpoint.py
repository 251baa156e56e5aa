"""The train state on disk: Orbax, asynchronous, complete or absent."""

import dataclasses
import math
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
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN, PreservationPolicy

from vit_jax_mixer import distributed
from vit_jax_mixer.errors import UserError, suggest
from vit_jax_mixer.models import stacked
from vit_jax_mixer.saving_together import FAILURES, Manager, telling, told
from vit_jax_mixer.seal import damage, seal
from vit_jax_mixer.tasks.base import TrainState, Tree
from vit_jax_mixer.workdir import remember_checkpoint

_OPTIONAL = ("ema", "skipped")  # of the state; a run may begin or end to have them
_PAUSE = 5  # seconds, before a save that failed is tried again


class Checkpoints:
    """The checkpoints of a workdir, one folder a step under ``checkpoints/``."""

    def __init__(self, workdir: Path, *, every: int, keep: int, best: str) -> None:
        """Take ``config.checkpoint``.

        Args:
            workdir: where the run writes.
            every: steps between two checkpoints.
            keep: how many of the newest stay.
            best: the evaluation metric by which the best one stays too: the highest, or the lowest
                of a name that ends in "loss" or "loss_ema"; '' for none.
        """
        if every < 1 or keep < 1:
            raise UserError(f"config.checkpoint has every={every} and keep={keep}; both must be 1 or more.")
        policies: list[PreservationPolicy] = [LatestN(keep)]
        if best:
            policies.append(BestN(get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False))
        self.every = every
        self.best = best
        self._folder = workdir.absolute() / "checkpoints"
        self._writing = 0  # the step that is being written
        self._begun = False  # whether nobody knows yet if that is written
        self.given_up = False  # nothing more can be written
        self._failing = ""  # why the last save failed, while the run goes on in spite of it
        self.set_aside = _set_damaged_aside(self._folder)
        handler = ocp.StandardCheckpointHandler()
        self._manager = Manager(
            self._folder,
            item_handlers=handler if jax.process_count() == 1 else telling(handler, self._end),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(policies),
                best_fn=self._score if best else None,  # without it, Orbax does not write the metrics
                cleanup_tmp_directories=True,
                async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
            ),
        )

    def _score(self, metrics: Mapping[str, float]) -> float:
        """Return what the best checkpoint has most of; one without a finite metric is never the best."""
        value = metrics.get(self.best, math.nan)
        if not math.isfinite(value):
            return -math.inf
        return -value if self.best.removesuffix("_ema").endswith("loss") else value

    def latest(self) -> int | None:
        """Return the newest complete checkpoint's step."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, metrics: Mapping[str, float], *, last: bool = False) -> str:
        """Begin to write a checkpoint; returns once the state is copied from the devices.

        A save that fails, as on a full disk, is made up for by the next (see `failed`), which is then
        waited for and tried twice. If that fails too, the run goes on until the next that is due.

        Args:
            step: its number.
            state: what is saved.
            metrics: of an evaluation, if there was one.
            last: wait until it is written.

        Returns:
            What to tell the user; '' for nothing.

        Raises:
            UserError: it fails, and so did the one before or it is the last; or there are metrics, but
                ``best`` is none of them, in which case the checkpoint is written.
        """
        if metrics and self.best and self.best not in metrics:
            self._must_save(step, state, metrics)
            raise UserError(f"config.checkpoint.best: {self.best!r} is no metric{suggest(self.best, metrics)}")
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
        distributed.end(UserError(reason))

    def _must_save(self, step: int, state: TrainState, metrics: Mapping[str, float]) -> None:
        if error := self._settle() or self._begin(step, state, metrics) or self._settle():
            raise UserError(f"cannot write checkpoint {step} to {self._folder} ({error}); make room or mend the disk.")

    def _begin(self, step: int, state: TrainState, metrics: Mapping[str, float]) -> str:
        """Begin to write; return why that failed, or ''."""
        self._writing, self._begun = step, True
        try:
            args = ocp.args.StandardSave(stacked.unstack(_saved(state)))
            self._manager.save(step, args=args, metrics=dict(metrics) or None, force=True)
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
        """Is called by Orbax when all is written, before the folder gets its name."""
        if jax.process_index() == 0:
            with told(self._end) if jax.process_count() > 1 else nullcontext():
                seal(next(self._folder.glob(f"{self._writing}.*")))
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
        wanted = _saved(like)
        found = _shapes(self._manager.item_metadata(step))
        can_hold = wanted | {"ema": wanted["params"], "skipped": jax.ShapeDtypeStruct((), np.int32)}
        absent = [name for name in _OPTIONAL if not any(path.split("/")[0] == name for path in found)]
        held = can_hold | dict.fromkeys(absent, ())
        target = jax.eval_shape(stacked.unstack, held)
        _check(found, _shapes(target), step)
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(x)), target)
        restored = self._manager.restore(step, args=ocp.args.StandardRestore(target))
        state = stacked.stack(restored, held)
        begun = {"ema": state["params"], "skipped": np.zeros((), np.int32)}
        for name in _OPTIONAL:
            state[name] = (begun[name] if name in absent else state[name]) if jax.tree.leaves(wanted[name]) else ()
        return dataclasses.replace(like, **state)

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
        if error:
            raise UserError(f"cannot write checkpoint {self._writing} to {self._folder} ({error}); make room.")


def _set_damaged_aside(folder: Path) -> str:
    """Move the newest checkpoints away, down to the first that is whole; return what to tell of it.

    Raises:
        UserError: none is whole.
    """
    said = ""
    if jax.process_index() == 0 and folder.is_dir():
        for step in sorted((int(path.name) for path in folder.iterdir() if path.name.isdecimal()), reverse=True):
            what = damage(folder / str(step))
            if not what:
                said = said and f"{said}; going on from step {step}."
                break
            aside = folder.parent / "damaged_checkpoints" / str(step)
            if aside.exists():
                shutil.rmtree(aside)
            aside.parent.mkdir(exist_ok=True)
            (folder / str(step)).rename(aside)
            said = f"checkpoint {step} is damaged ({what}), and is now {aside}"
        else:
            if said:
                raise UserError(f"{said}; there is no other: choose another --workdir, or pass --start_anew.")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")
    return said


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


def _check(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], step: int) -> None:
    # Parameters first: the optimizer's copies of them say less.
    for name in sorted(found.keys() | expected.keys(), key=lambda name: (not name.startswith("params/"), name)):
        if found.get(name) != expected.get(name):
            raise UserError(
                f"checkpoint {step}: {name} has shape {found.get(name, 'none: it is absent')}, the config needs "
                f"{expected.get(name, 'no such array')}; take the config it was made with, or another --workdir."
            )
