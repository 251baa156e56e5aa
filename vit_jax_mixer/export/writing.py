"""The folder of an export, which appears complete or not at all."""

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vit_jax_mixer.errors import UserError, suggest
from vit_jax_mixer.export import card, files
from vit_jax_mixer.models import resmlp
from vit_jax_mixer.trained import CARD, FILE, Trained, open_model


def export(
    reference: str,
    target: str | Path,
    *,
    formats: Sequence[str] | None = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    fold: bool = False,
    force: bool = False,
) -> list[str]:
    """Write a model to a folder, and return lines that say what was written.

    Args:
        reference: as for `open_model`.
        target: the folder.
        formats: keys of `files.WRITERS`; None for all that the packages here can write.
        platforms: what the StableHLO program runs on, of `files.PLATFORMS`.
        fold: merge the Aff and layer scales of a ResMLP, see `resmlp.fold`.
        force: replace the target if it is an export.

    Raises:
        UserError: the model cannot be opened or written so, or the target exists.
    """
    target = Path(target).expanduser().absolute()
    _check_target(target, force)
    _check_names("--platforms", platforms, files.PLATFORMS)
    said = []
    if formats is not None:
        _check_names("--format", formats, tuple(files.WRITERS))
    chosen = list(files.WRITERS if formats is None else formats)
    if "onnx" in chosen:
        try:
            files.check_onnx()
        except UserError as error:
            if formats is not None:
                raise
            chosen.remove("onnx")
            said.append(f"onnx is left out: {error}")
    trained = _prepared(open_model(reference), reference, fold)
    if trained.origin:
        said.append(f"{reference}: {trained.origin}")
    new = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        new.mkdir(parents=True)
        written = {
            name: files.WRITERS[name](trained, new, tuple(platforms)) for name in files.WRITERS if name in chosen
        }
        trained.about.write(new)
        card.write(trained, reference, new, written)
        _put(new, target)
    except OSError as error:
        raise UserError(f"cannot write {target} ({error.strerror or error}); choose another place.") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return [*(_line(target, name, done) for name, done in written.items()), *said]


def _line(target: Path, name: str, done: files.Written) -> str:
    size = sum((target / file).stat().st_size for file in done.names)
    checked = "" if done.difference is None else f", largest difference from the model {done.difference:.1e}"
    return f"{target / done.names[0]}: {name}, {size:,} bytes{checked}"


def _check_target(target: Path, force: bool) -> None:
    """Say before the work that the target cannot be replaced."""
    if not os.path.lexists(target):
        return
    if not ((target / FILE).is_file() and (target / CARD).is_file()):
        raise UserError(f"{target} exists and is no export; name another folder.")
    if not force:
        raise UserError(f"{target} exists; pass --force to replace it, or name another folder.")


def _check_names(flag: str, given: Sequence[str], known: Sequence[str]) -> None:
    if not given:
        raise UserError(f"{flag} is empty; name some of {', '.join(known)}.")
    for name in given:
        if name not in known:
            raise UserError(f"{flag}: {name!r} is not known{suggest(name, known)}")


def _prepared(trained: Trained, reference: str, fold: bool) -> Trained:
    """Return the model as it is exported: plain, in float32, and folded if that is wanted."""
    about, module, params = trained.about, trained.module, trained.params
    plain = {"dtype": "float32", "scan": False, "remat": False}
    changes: dict[str, Any] = {name: v for name, v in plain.items() if about.model.get(name, v) != v}
    if fold:
        if not isinstance(module, resmlp.ResMlp):
            raise UserError(f"{reference} is no ResMLP, and --fold merges what only a ResMLP has; leave it out.")
        if module.folded:
            raise UserError(f"{reference} is folded already; leave out --fold.")
        changes |= {"folded": True}
        params = resmlp.fold(params)
    about = dataclasses.replace(about, model={**about.model, **changes})
    return dataclasses.replace(trained, about=about, module=module.clone(**changes), params=params)


def _put(new: Path, target: Path) -> None:
    """Rename the new folder to the target, whose old files then go."""
    old = new.with_suffix(".old")
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
