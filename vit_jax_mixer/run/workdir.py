"""A run's folder: its files, who may write to it, and what it says of the run that it holds."""

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import ml_collections

from vit_jax_mixer import config as config_lib
from vit_jax_mixer import predictors
from vit_jax_mixer.checkpoints import checksums
from vit_jax_mixer.data import record
from vit_jax_mixer.errors import UserError, writing
from vit_jax_mixer.predictors import FILE as MODEL
from vit_jax_mixer.predictors import Predictor
from vit_jax_mixer.run import processes
from vit_jax_mixer.run.writers import METRICS

CONFIG = "config.json"
DAMAGED = "damaged_checkpoints"
DATA = "data.json"  # what the data are; see `data.record`
SAVED = "saved.json"  # the step of the run's first checkpoint; it stays when checkpoints are lost


@contextmanager
def opened(path: str | Path) -> Iterator["Workdir"]:
    """Make the folder, try it for writing, and keep other runs out of it until this one ends.

    Raises:
        UserError: it cannot be written, another run writes to it, or not all processes see it.
    """
    if "://" in str(path):
        raise UserError(f"the workdir {path} is no local folder, and others do not work yet; choose another --workdir.")
    path = Path(path).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(_lock(path), os.O_RDWR | os.O_CREAT, 0o666)  # for both, since a pipe is not waited for then
    except OSError as error:
        raise UserError(f"cannot write to the workdir {path} ({error.strerror}); choose another --workdir.") from error
    try:
        _keep_others_out(lock, path)
        processes.check_shared(path)
        yield Workdir(path, processes.of_first(jax.process_index() == 0 and _holds_a_run(path)))
    finally:
        os.close(lock)


@dataclass(frozen=True)
class Workdir:
    """A folder that this run alone writes to.

    Attributes:
        path: where it is.
        holds_a_run: whether there is, or was, a run that had a checkpoint, or a model.
    """

    path: Path
    holds_a_run: bool

    def check_begin(self, start: int, steps: int, *, start_anew: bool) -> None:
        """Raise a `UserError` if a run must not go on from step ``start``, 0 for the beginning, to ``steps``."""
        if not start and self.holds_a_run and not start_anew:
            raise UserError(
                f"{self.path} holds, or held, a run or a model, but no checkpoint that a run can go on from; restore "
                "its checkpoints/, choose another --workdir, or pass --start_anew to begin from the start and write "
                "over what is there."
            )
        if start > steps:
            raise UserError(
                f"the newest checkpoint in {self.path} is of step {start}, beyond config.steps ({steps}); set more "
                "steps, or choose another --workdir."
            )

    def is_of(
        self, config: ml_collections.ConfigDict, data: record.Record, *, change_config: bool, change_data: bool
    ) -> bool:
        """Say whether the folder's run had this config and these data, but for what changes nothing.

        Args:
            config: of the run that goes on.
            data: as `record.of` says it.
            change_config: whether the config may differ.
            change_data: whether the data may.

        Raises:
            UserError: one differs and may not; the sentence says in what, and names the switch.
        """
        fields = config_lib.as_json(config)
        same_config = self._is_same("config", CONFIG, lambda old: config_lib.changes(old, fields), change_config)
        return self._is_same("data", DATA, lambda old: record.changes(old, data), change_data) and same_config

    def _is_same(self, what: str, name: str, changes: Callable[[dict[str, Any]], list[str]], may_differ: bool) -> bool:
        switch = f"pass --change_{what} to go on with the new."
        try:
            changed = changes(self._recorded(name))
        except (ValueError, RecursionError) as error:
            changed = ["it cannot be read"]
            sentence = f"{str(error).rstrip('.')}, or {switch}"
        else:
            more = f"; and {len(changed) - 10} more" if len(changed) > 10 else ""
            sentence = (
                f"{self.path} was begun with other {what}: {'; '.join(changed[:10])}{more}. Go on with the old, "
                f"choose another --workdir, or {switch}"
            )
        if changed and not may_differ:
            raise UserError(sentence)
        return not changed

    def _recorded(self, name: str) -> dict[str, Any]:
        if os.path.lexists(self.path / name):
            found = checksums.read_json(self.path / name, may_lack_it=True)
            if name == DATA and "training" not in found:
                raise UserError(f"{self.path / name} is damaged (it says nothing of the training data); restore it.")
            return found
        if name == DATA and os.path.lexists(self.path / MODEL):  # of a run before there were records
            return {"training": {"classes": predictors.read(self.path).class_names}}
        return {}

    def record(
        self,
        start: int,
        config: ml_collections.ConfigDict,
        data: record.Record,
        about: Predictor | None,
        published: str = "",
    ) -> None:
        """Write what the run is that goes on from step ``start``, each file at once or not at all."""
        if jax.process_index() == 0:
            with writing(self.path):
                checksums.write_json(self.path / DATA, data)
                checksums.write_json(self.path / CONFIG, config_lib.as_json(config))
                if about:
                    about.write(self.path, published)
                if start:
                    remember_checkpoint(self.path, start)
                else:
                    (self.path / SAVED).unlink(missing_ok=True)

    def check_there(self) -> None:
        """Raise a `UserError` if somebody has removed or moved the folder while this run writes to it."""
        if not _lock(self.path).exists():
            raise UserError(
                f"the workdir {self.path} was removed or moved while this run wrote to it, so its metrics and earlier "
                "checkpoints are no longer there; the run stops, and what it has saved since is there anew."
            )


def remember_checkpoint(path: Path, step: int) -> None:
    """Note, just before a checkpoint is complete, that the run has one, unless that is noted."""
    if not os.path.lexists(path / SAVED):
        checksums.write_json(path / SAVED, {"step": step})


def _holds_a_run(path: Path) -> bool:
    """Say whether there is, or was, a run that had a checkpoint, or a model.

    A run that was killed before its first checkpoint was complete has lost nothing that was saved.
    """
    if os.path.lexists(path / SAVED):
        try:
            step = checksums.read_json(path / SAVED, may_lack_it=True).get("step")
        except UserError:
            return True
        if not isinstance(step, int):
            return True
        being_written = any((path / "checkpoints").glob(f"{step}.*"))
        if being_written and not (path / "checkpoints" / f"{step}").exists():
            (path / SAVED).unlink()
            return False
        return True
    if os.path.lexists(path / DATA):
        return False
    log = path / METRICS  # of a run before there were records, or of no run, as an export's model.json
    return any(os.path.lexists(path / name) for name in (MODEL, DAMAGED)) or (log.exists() and log.stat().st_size > 0)


def _keep_others_out(lock: int, path: Path) -> None:
    """Lock a file until it is closed, also by a kill; where there are no locks, there are none."""
    try:
        fcntl = importlib.import_module("fcntl")
    except ImportError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"another run writes to {path}; stop it, or choose another --workdir.") from error
    except OSError:
        pass  # a file system without locks


def _lock(path: Path) -> Path:
    return path / f".lock{jax.process_index()}"
