"""The train state on disk: Orbax, asynchronous, complete or absent."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN, PreservationPolicy

from vit_jax_mixer.errors import UserError, suggest
from vit_jax_mixer.tasks.base import TrainState, Tree


class Checkpoints:
    """The checkpoints of a workdir, one folder a step under ``checkpoints/``."""

    def __init__(self, workdir: Path, *, every: int, keep: int, best: str) -> None:
        """Take ``config.checkpoint``.

        Args:
            workdir: where the run writes.
            every: steps between two checkpoints.
            keep: how many of the newest stay.
            best: the evaluation metric by which the best one stays too: the highest, or the lowest
                of a name that ends in "loss"; '' for none.
        """
        if every < 1 or keep < 1:
            raise UserError(f"config.checkpoint has every={every} and keep={keep}; both must be 1 or more.")
        policies: list[PreservationPolicy] = [LatestN(keep)]
        if best:
            policies.append(BestN(get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False))
        self.every = every
        self.best = best
        self._manager = ocp.CheckpointManager(
            workdir.absolute() / "checkpoints",
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(policies),
                best_fn=self._score if best else None,  # without it, Orbax does not write the metrics
                cleanup_tmp_directories=True,
            ),
        )

    def _score(self, metrics: Mapping[str, float]) -> float:
        """Return what the best checkpoint has most of; one without a finite metric is never the best."""
        value = metrics.get(self.best, math.nan)
        if not math.isfinite(value):
            return -math.inf
        return -value if self.best.endswith("loss") else value

    def latest(self) -> int | None:
        """Return the newest complete checkpoint's step."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Begin to write a checkpoint; returns once the state is copied from the devices.

        Raises:
            UserError: there are metrics, but ``best`` is none of them; the checkpoint is written.
        """
        args = ocp.args.StandardSave(_saved(state))
        self._manager.save(step, args=args, metrics=dict(metrics) or None, force=True)
        if metrics and self.best and self.best not in metrics:
            raise UserError(f"config.checkpoint.best: {self.best!r} is no metric{suggest(self.best, metrics)}")

    def restore(self, step: int, like: TrainState, sharding: jax.sharding.Sharding) -> TrainState:
        """Read a checkpoint into the form of ``like`` (shapes and types suffice).

        Raises:
            UserError: it holds other arrays; the sentence names the first, with both shapes.
        """
        target = _saved(like)
        _check(_shapes(self._manager.item_metadata(step)), _shapes(target), step)
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), target)
        restored = self._manager.restore(step, args=ocp.args.StandardRestore(target))
        return dataclasses.replace(like, **restored)

    def close(self) -> None:
        """Wait until what was begun is complete."""
        self._manager.wait_until_finished()
        self._manager.close()


def _saved(state: TrainState) -> dict[str, Tree]:
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state, "extra": state.extra}


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
