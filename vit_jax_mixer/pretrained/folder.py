"""Our own checkpoints as weights: the parameters in a workdir, without the optimizer's state."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained.checks import Flat, check_dtype


def read(path: Path) -> Flat:
    """Return the parameters in a folder, or their running mean where the run kept one, by name.

    The folder is a workdir or its ``checkpoints`` (the best checkpoint counts where the run kept
    one, or else the newest), a checkpoint in it, or what `write` made.

    Raises:
        UserError: there is no checkpoint in it, it is damaged, or it holds something else.
    """
    try:
        folder = epath.Path(arrays_folder(path))
    except OSError as error:
        raise UserError(f"cannot read the folder {path} ({error.strerror}); mend its permissions.") from error
    handler = ocp.PyTreeCheckpointHandler()
    try:
        metadata = handler.metadata(folder).tree
        part = ""
        if "opt_state" in metadata:  # a state, whose parameters are read alone
            part = "ema" if metadata.get("ema") else "params"
            metadata = {part: metadata[part]}
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata)
        arrays = handler.restore(
            folder, args=ocp.args.PyTreeRestore(metadata, restore_args=arguments, partial_restore=True)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(f"{folder} is not a checkpoint that can be read ({reason}); take another.") from error
    finally:
        handler.close()
    flat: Flat = {}
    for name, value in traverse_util.flatten_dict(arrays[part] if part else arrays, sep="/").items():
        if not isinstance(value, np.ndarray):
            raise UserError(f"{folder}: {name} is no array; is it a checkpoint of a model?")
        check_dtype(name, value.dtype, folder)
        flat[name] = value
    return flat


def write(path: Path, flat: Flat) -> None:
    """Write parameters alone, as Orbax's simplest form: a tree of arrays in a folder."""
    tree = traverse_util.unflatten_dict(
        {name: np.ascontiguousarray(v).reshape(v.shape) for name, v in flat.items()}, sep="/"
    )
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), tree)


def holds_arrays(path: Path) -> bool:
    """Say whether Orbax wrote a tree of arrays right into the folder."""
    return (path / "_METADATA").is_file() or (path / "manifest.ocdbt").is_file()


def arrays_folder(path: Path) -> Path:
    """Return the folder of the arrays that a person means by a workdir or a part of one; see `read`."""
    path = path.absolute()
    if (path / "checkpoints").is_dir():
        path = path / "checkpoints"
    steps = [p for p in path.iterdir() if p.name.isdecimal() and (p / "default").is_dir()]
    if steps:
        path = max(steps, key=lambda p: (_score(p, _best(path.parent)), int(p.name)))
    if (path / "default").is_dir():
        path = path / "default"
    if not holds_arrays(path):
        raise UserError(f"there is no checkpoint in the folder {path}; give a workdir, or a folder in its checkpoints.")
    return path


def _best(workdir: Path) -> str:
    """Return the metric by which the run kept its best checkpoint; '' for none."""
    config = _json(workdir / "config.json")
    checkpoint = config.get("checkpoint", {})
    return checkpoint.get("best", "") if isinstance(checkpoint, dict) else ""


def _score(step: Path, best: str) -> float:
    """Return what the best step has most of, as `checkpoint.Checkpoints` counts."""
    value = _json(step / "metrics/metrics").get(best, math.nan) if best else math.nan
    if not isinstance(value, float) or not math.isfinite(value):
        return -math.inf
    return -value if best.removesuffix("_ema").endswith("loss") else value


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):  # metrics are there only where there were some
        return {}
    return content if isinstance(content, dict) else {}
