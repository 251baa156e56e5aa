"""What lies in a run's folder of checkpoints: which are whole, and which stay."""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath
from orbax.checkpoint.checkpoint_managers import PreservationPolicy

from vit_jax_mixer.checkpoints import best as best_lib
from vit_jax_mixer.checkpoints import checksums
from vit_jax_mixer.errors import UserError


@dataclasses.dataclass(frozen=True)
class KeepBest(PreservationPolicy):
    """Keeps the checkpoint with the best score, also where that came after the checkpoint.

    Attributes:
        scores: of each step that has some; may change.
        best: as ``config.checkpoint.best``.
    """

    scores: Mapping[int, best_lib.Scores]
    best: str

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Say for each checkpoint whether it is the best."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = best_lib.step({step: self.scores.get(step, {}) for step in steps}, self.best)
        return [step == kept for step in steps]


class Names(ocp.path.step.NameFormat):
    """Orbax's names of steps, but of what lies in the folder only checkpoints: not ``1٣``, not a file ``7``."""

    def __init__(self) -> None:
        self._standard: Any = ocp.path.step.standard_name_format()

    def build_name(self, step: int) -> str:
        """Return the folder's name."""
        return self._standard.build_name(step)

    def find_all(self, base_path: epath.PathLike) -> Iterator[Any]:
        """Return what Orbax wants to know of each step."""
        steps = best_lib.steps(Path(base_path))
        return iter([self._standard.find_step(base_path, step) for step in steps])

    def find_step(self, base_path: epath.PathLike, step: int) -> Any:
        """Return it for one."""
        return self._standard.find_step(base_path, step)


def set_damaged_aside(folder: Path, best: str) -> str:
    """Move away what has a checkpoint's name but is not whole; return what to tell of it.

    Only the newest and the best are read as a whole, and those that take their place: a run needs no other.

    Raises:
        UserError: none is whole.
    """
    found = sorted((path for path in folder.iterdir() if best_lib.is_step(path)), key=lambda path: int(path.name))
    scores: dict[Path, best_lib.Scores] = {}
    damaged: dict[Path, str] = {}
    for path in found:
        try:
            scores[path] = best_lib.read(path)
        except UserError as error:
            damaged[path] = f"{error}"
    whole: set[Path] = set()
    newest_first = found[::-1]
    for order in (newest_first, sorted(scores, key=lambda path: -best_lib.value(scores[path], best)) if best else []):
        for path in order:
            try:
                if path not in damaged and path not in whole:
                    check(path)
            except checksums.DamageError as error:
                damaged[path] = f"{error}"
            if path not in damaged:
                whole.add(path)
                break
    said = "; ".join(_move(path, what) for path, what in damaged.items())
    if damaged and not whole:
        raise UserError(f"{said}; there is no other: choose another --workdir, or pass --start_anew.")
    return f"{said}; going on from step {max(int(path.name) for path in whole)}." if said else ""


def check(step: Path) -> None:
    """Read a checkpoint as a whole.

    Raises:
        checksums.DamageError: what is wrong with it.
    """
    if not (step / "default").is_dir():
        raise checksums.DamageError("it holds no checkpoint")
    checksums.check(step)
    if not (step / checksums.FILE).exists():
        _check_unsealed(step / "default")


def _check_unsealed(arrays: Path) -> None:
    """Read every array of an unsealed checkpoint, as older runs wrote them."""
    try:
        base = {"driver": "file", "path": f"{arrays}/"}
        store = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
        names = store.list().result()
        for name in names:
            store.read(name).result()
    except (OSError, ValueError, RuntimeError) as error:
        raise checksums.DamageError((str(error).splitlines() or [""])[0][:200]) from error
    if not names:
        raise checksums.DamageError("there are no arrays in it")


def _move(path: Path, what: str) -> str:
    aside = path.parent.parent / "damaged_checkpoints" / path.name
    if aside.is_dir():
        shutil.rmtree(aside)
    aside.parent.mkdir(exist_ok=True)
    path.rename(aside)
    return f"checkpoint {path.name} is damaged ({what}), and is now {aside}"
