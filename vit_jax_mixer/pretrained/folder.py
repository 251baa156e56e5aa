"""Our own checkpoints as weights: the parameters in a workdir, without the optimizer's state."""

import dataclasses
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from vit_jax_mixer.checkpoints import best as best_lib
from vit_jax_mixer.checkpoints import checksums
from vit_jax_mixer.checkpoints.orbax_path import for_orbax
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained import archive
from vit_jax_mixer.pretrained.checks import Choose, Flat, check_count, check_dtype, check_shape, everything

UNCHECKED = "VIT_JAX_MIXER_UNCHECKED"  # environment variable; set to 1, checksums are not compared


@dataclasses.dataclass(frozen=True)
class Place:
    """Where in a folder the arrays are.

    Attributes:
        path: the folder of the checkpoint, or of parameters alone.
        step: of the checkpoint; None for parameters alone.
        why: which checkpoint it is, for people, as 'step 500, the newest'.
    """

    path: Path
    step: int | None
    why: str


def read(path: Path, choose: Choose = everything) -> tuple[Flat, Place]:
    """Return the arrays in a folder, by name, and where in it they were.

    The folder is a workdir or its ``checkpoints`` (the best checkpoint counts where the run kept
    one, or else the newest, and the next where that is damaged), a checkpoint in it, or what
    `write` made. A checkpoint's files are compared with their checksums first.

    Raises:
        UserError: there is no checkpoint in it that is whole, or it holds something else.
    """
    problems: list[str] = []
    places = _places(path)
    for place in places:
        try:
            flat = _read(place, choose)
        except UserError as error:
            if len(places) == 1:
                raise
            problems.append(str(error))
        else:
            why = "; ".join([place.why, *(f"another is passed over: {problem}" for problem in problems)])
            return flat, dataclasses.replace(place, why=why)
    raise UserError(f"no checkpoint in {path} can be read: {problems[0]}")


def read_mean(path: Path, count: int, choose: Choose) -> tuple[Flat, Place]:
    """Return the mean of the arrays in the newest ``count`` checkpoints of a workdir, by name; and which they were.

    It is taken in float64; the types stay. Averaging checkpoints is usual in translation (Vaswani et al. 2017,
    arXiv 1706.03762, section 6.1, of the last 5).

    Raises:
        UserError: there are fewer, one of them is damaged, or they hold different arrays.
    """
    places = {place.step: place for place in _places(path) if place.step is not None}
    steps = sorted(places)[-count:]
    if len(steps) < count:
        raise UserError(
            f"the mean of the last {count} checkpoints of {path} was asked for, and it holds {len(steps)}; ask for "
            f"fewer, or train with config.checkpoint.keep={count}."
        )
    types: dict[str, np.dtype] = {}
    sums: dict[str, np.ndarray] = {}
    for step in steps:
        flat = _read(places[step], choose)
        types = types or {name: value.dtype for name, value in flat.items()}
        sums = sums or {name: np.zeros(value.shape, np.float64) for name, value in flat.items()}
        if {name: value.shape for name, value in flat.items()} != {name: value.shape for name, value in sums.items()}:
            raise UserError(f"the checkpoints {steps[0]} and {step} of {path} hold different arrays; ask for fewer.")
        for name, value in flat.items():
            sums[name] += value
    listed = ", ".join(map(str, steps))
    mean = {name: (value / count).astype(types[name]) for name, value in sums.items()}
    return mean, Place(path, None, f"the mean of the checkpoints of steps {listed}")


def _read(place: Place, choose: Choose) -> Flat:
    _check(place.path)
    inner = place.path / "default"
    return _arrays(inner if inner.is_dir() else place.path, choose)


def write(path: Path, flat: Flat) -> None:
    """Write parameters alone, as Orbax's simplest form: a tree of arrays in a folder."""
    tree = traverse_util.unflatten_dict(
        {name: np.ascontiguousarray(v).reshape(v.shape) for name, v in flat.items()}, sep="/"
    )
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(for_orbax(path), tree)


def holds_arrays(path: Path) -> bool:
    """Say whether Orbax wrote a tree of arrays right into the folder."""
    return (path / "_METADATA").is_file() or (path / "manifest.ocdbt").is_file()


def run_of(path: Path) -> Path:
    """Return the workdir that a folder of checkpoints, or a checkpoint, or its arrays, is in; or else the folder."""
    path = path.absolute()
    return next((one.parent for one in (path, *path.parents[:2]) if one.name == "checkpoints"), path)


def _places(path: Path) -> list[Place]:
    """Return the checkpoints that a person may mean by a folder, those to take first first.

    Raises:
        UserError: there is none, or the folder cannot be read.
    """
    try:
        path = path.absolute()
        if (path / "checkpoints").is_dir():
            path = path / "checkpoints"
        # Orbax names what is not whole yet, or is about to go, otherwise.
        steps = {int(p.name): p for p in path.iterdir() if best_lib.is_step(p) and p.is_dir()}
    except OSError as error:
        raise UserError(f"cannot read the folder {error.filename} ({error.strerror}); mend its permissions.") from error
    if not steps or holds_arrays(path):
        if not (holds_arrays(path) or (path / "default").is_dir()):
            raise UserError(
                f"there is no checkpoint in the folder {path}; give a workdir, or a folder in its checkpoints."
            )
        place = next((p for p in (path, path.parent) if best_lib.is_step(p) and p.parent.name == "checkpoints"), None)
        return [Place(place, int(place.name), f"step {place.name}") if place else Place(path, None, "")]
    best = _best(run_of(path))
    scores = {step: _score(folder, best) for step, folder in steps.items()}

    def why(step: int) -> str:
        if scores[step] > -math.inf:
            return f"step {step}, the best by {best}"
        return f"step {step}" + (", the newest" if step == max(steps) else "")

    order = sorted(steps, key=lambda step: (scores[step], step), reverse=True)
    return [Place(steps[step], step, why(step)) for step in order]


def _check(step: Path) -> None:
    """Compare a checkpoint with its checksums; ``VIT_JAX_MIXER_UNCHECKED=1`` leaves it out."""
    if os.environ.get(UNCHECKED, "") not in ("", "0"):
        return
    try:
        checksums.check(step)
    except checksums.DamageError as error:
        raise UserError(f"the checkpoint {step} is damaged ({error}); take another.") from error


def _best(workdir: Path) -> str:
    """Return the metric by which the run kept its best checkpoint; '' for none.

    Raises:
        UserError: the run's config does not tell.
    """
    path = workdir / "config.json"
    if not path.exists():
        return ""
    checkpoint = checksums.read_json(path, may_lack_it=True).get("checkpoint")
    best = checkpoint.get("best") if isinstance(checkpoint, dict) else None
    if not isinstance(best, str):
        raise UserError(f"{path} is damaged (it does not say checkpoint.best); restore it, or name a checkpoint.")
    return best


def _score(step: Path, best: str) -> float:
    """Return what the best step has most of."""
    try:
        return best_lib.value(best_lib.read(step), best)
    except UserError:  # then `_check` passes it over, and says so
        return math.inf


def _arrays(path: Path, choose: Choose) -> Flat:
    """Read what Orbax wrote to a folder.

    Raises:
        UserError: it is damaged, holds other things than arrays, or promises more than it can hold.
    """
    if not holds_arrays(path):
        raise UserError(f"{path} holds no arrays; take another checkpoint.")
    size = sum(_sizes(path))
    folder = for_orbax(path)
    handler = ocp.PyTreeCheckpointHandler()
    try:
        metadata: dict[str, Any] = traverse_util.flatten_dict(handler.metadata(folder).tree, sep="/")
        check_count(len(metadata), path)
        shapes = {}
        for name, value in metadata.items():
            archive.check_name(name, path)
            if hasattr(value, "shape") and hasattr(value, "dtype"):  # neither a text nor an empty dict
                check_shape(name, value.shape, path)
                shapes[name] = tuple(value.shape)
        wanted = choose(shapes)
        _check_size(path, size, [metadata[name] for name in wanted.values()])
        tree = traverse_util.unflatten_dict({name: metadata[name] for name in wanted.values()}, sep="/")
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        restored = handler.restore(
            folder, args=ocp.args.PyTreeRestore(tree, restore_args=arguments, partial_restore=True)
        )
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(f"{path} is not a checkpoint that can be read ({reason}); take another.") from error
    finally:
        handler.close()
    arrays = traverse_util.flatten_dict(restored, sep="/")
    flat: Flat = {}
    for new, name in wanted.items():
        value = arrays[name]
        if not isinstance(value, np.ndarray):
            raise UserError(f"{path}: {name} is no array; is it a checkpoint of a model?")
        check_dtype(name, value.dtype, path)
        flat[new] = value
    return flat


def _sizes(path: Path) -> Iterator[int]:
    """Yield the bytes of each file below a folder, on the disk where that is less.

    Raises:
        UserError: there is a pipe or a device, which reading would wait for.
    """
    for folder, _, names in os.walk(path):
        for name in names:
            status = os.stat(os.path.join(folder, name))
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{folder}/{name} is no regular file; remove it, or take another checkpoint.")
            yield status.st_size


def _check_size(path: Path, size: int, arrays: list[Any]) -> None:
    """Refuse arrays, or the pieces in which they lie, that are far larger than the files: those unpack to zeros."""
    pieces = [getattr(array.storage, "chunk_shape", None) or array.shape for array in arrays]
    promised = sum(
        max(archive.size_of(tuple(shape), np.dtype(array.dtype)) for shape in (array.shape, piece))
        for array, piece in zip(arrays, pieces, strict=True)
    )
    if promised > max(archive.MAX_RATIO * size, archive.SMALL):
        raise UserError(
            f"{path} has {size:,} bytes and promises {promised:,}, which weights cannot do; it is damaged or a trap."
        )
