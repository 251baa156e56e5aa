"""How a trained model is used, one file a kind: what it reads, answers and is scored by."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_jax_mixer import plugins
from vit_jax_mixer.checkpoints import checksums
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.predictors.base import FILE, Answer, Evaluated, Predictor
from vit_jax_mixer.predictors.images import Images
from vit_jax_mixer.predictors.multilabel import MultiLabel
from vit_jax_mixer.predictors.rows import Rows
from vit_jax_mixer.predictors.text import Text

__all__ = ["FILE", "KINDS", "Answer", "Evaluated", "Predictor", "read"]

KINDS: Mapping[str, type[Predictor]] = {kind.kind: kind for kind in (Images, MultiLabel, Rows, Text)}


def read(folder: Path) -> Any:
    """Return the predictor of its own kind that a folder's ``model.json`` describes.

    Raises:
        UserError: there is none, it does not say what it must, or its kind is of a module that may not be imported.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"there is no {path}, which training and export write; give a folder that has one.")
    fields = checksums.read_json(path, may_lack_it=True)
    kind = str(fields.pop("kind", Images.kind))  # earlier ones named none
    fields.pop("published", None)
    found = plugins.lookup(KINDS, kind, f"{path}: kind")
    if not (isinstance(found, type) and issubclass(found, Predictor)):
        raise UserError(f"{path}: kind {kind!r} is no Predictor; name a class that is one.")
    return found.of_json(fields, str(path))
