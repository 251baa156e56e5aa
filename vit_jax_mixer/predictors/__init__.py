"""How a trained model is used, one file a kind: what it reads, answers and is scored by."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_jax_mixer import specs
from vit_jax_mixer.checkpoints import checksums
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.predictors.base import FILE, Answer, Evaluated, Predictor
from vit_jax_mixer.predictors.images import Images

__all__ = ["FILE", "KINDS", "Answer", "Evaluated", "Predictor", "read"]

KINDS: Mapping[str, type[Predictor]] = {Images.kind: Images}


def read(folder: Path) -> Any:
    """Return the predictor of its own kind that a folder's ``model.json`` describes.

    Raises:
        UserError: there is none, or it does not say what it must.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"there is no {path}, which training and export write; give a folder that has one.")
    fields = checksums.read_json(path, may_lack_it=True)
    kind = str(fields.pop("kind", Images.kind))  # earlier ones named none
    fields.pop("published", None)
    return specs.lookup(KINDS, kind, f"{path}: kind").of_json(fields, str(path))
