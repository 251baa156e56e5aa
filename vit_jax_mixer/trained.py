"""A model that is ready for use, by a published name, a workdir, an export or a file of weights.

What a model reads and answers stands in ``model.json`` (`predictors`), which training writes to the
workdir and `export` beside its files. A bare file of weights tells it by the shapes in it.
"""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from vit_jax_mixer import files, predictors, pretrained
from vit_jax_mixer.checkpoints import best
from vit_jax_mixer.data import images
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.predictors.base import FILE
from vit_jax_mixer.predictors.images import Images
from vit_jax_mixer.pretrained import class_names, folder, hub, registry, shapes, trees

Tree = dict[str, Any]
CARD = hub.CARD  # marks a folder as an export
_GUESSED = "its 1,000 classes are taken to be ImageNet's, in their order"


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model and its weights.

    Attributes:
        about: its `Predictor`: what it reads and answers. Each kind has more than that, hence `Any`.
        module: the Flax module.
        params: the parameters, in our names.
        origin: which of the checkpoints, and of the trees of parameters in a file, they are, for people:
            'step 500, the best by test/accuracy'; '' where there was only one.
        step: of the checkpoint, where they are of a workdir.
    """

    about: Any
    module: nn.Module
    params: Tree
    origin: str = ""
    step: int | None = None

    @property
    def ops(self) -> images.Ops:
        """The operations of a model of images, on the host and on the device."""
        return self.about.ops

    def outputs(self, params: Tree, batch: jax.Array) -> dict[str, jax.Array]:
        """Compute what the model says of a batch of `Predictor.input`; pure, to be jitted.

        Args:
            params: `params`, on the device.
            batch: [B, ...], of images u8[B, h, w, c], as the host operations leave them.

        Returns:
            Arrays [B, ...] by name; of images 'logits' and 'probabilities' f32[B, K], where the model has a
            head, and 'features' f32[B, C], pooled, before it.
        """
        return self.about.outputs(self.module, params, batch)


def open_model(reference: str, *, eval_ops: str = "") -> Trained:
    """Return a model that is ready for use.

    Args:
        reference: a published name, as 'Mixer-B/16:imagenet1k'; a workdir, a checkpoint in one, or an
            export; a file of weights, or its address; with ``#TREE`` as `pretrained.read` has it.
        eval_ops: operations in the place of the model's own; '' for those.

    Raises:
        UserError: there is no such model, its weights do not fit, or the operations do not.
    """
    plain, tree = trees.split(reference)
    path = pretrained.locate(plain)
    weights = pretrained.read(f"{_weights(path)}#{tree}" if tree else _weights(path))
    run = folder.run_of(path)
    described = (run / FILE).is_file()
    about = predictors.read(run) if described else _about_file(plain, weights, path)
    if weights.step is not None:
        about = about.of_checkpoint(best.read(run / "checkpoints" / str(weights.step)))
    if eval_ops:
        about = about.with_ops(eval_ops)
    arrays = len(pretrained.flatten(weights.tree))
    if isinstance(blocks := about.model.get("num_blocks"), int) and blocks > arrays:  # to describe them all takes time
        raise UserError(f"{reference} has {arrays} arrays, and num_blocks is {blocks!r:.20}: they do not fit.")
    module = about.create(reference)
    params = pretrained.fill(about.shapes(module), weights.tree, new=(), where=reference)
    guessed = not described and not registry.lookup(plain) and bool(getattr(about, "class_names", ()))
    origin = "; ".join(filter(None, [weights.origin, _GUESSED * guessed]))
    return Trained(about, module, params, origin, weights.step)


def _weights(path: Path) -> Path:
    """Return the file of weights where ``path`` is an export, or else ``path``."""
    if not (path / CARD).is_file():
        return path
    for name in ("model.safetensors", "model.npz"):
        if (path / name).is_file():
            _check_exported(path / name)
            return path / name
    raise UserError(f"the export {path} holds no weights that can be read; export again, with --format=safetensors.")


def _check_exported(weights: Path) -> None:
    """Compare a file of an export with the hash in its card.

    Raises:
        UserError: it has another.
    """
    match files.read_json(weights.parent / CARD).get("files"):
        case {weights.name: {"sha256": str(expected)}} if os.environ.get(folder.UNCHECKED, "") in ("", "0"):
            with weights.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != expected:
                raise UserError(f"{weights} is not what was exported, by its {CARD}; restore it, or export again.")


def _about_file(reference: str, weights: pretrained.Weights, path: Path) -> Images:
    """Describe weights without a ``model.json``: by the registry, by timm's ``config.json``, or else by their shapes.

    Raises:
        UserError: what is beside the weights does not fit them.
    """
    model, shape = shapes.infer(weights.tree, weights.convention, reference)
    published = registry.lookup(reference)
    if published:
        return Images(
            {**model, **published.model},
            shape,
            published.eval_ops,
            class_names.of(published.class_set),
            f"{published.source} ({published.url})",
            published.licence,
        )
    known = class_names.of("imagenet1k" if model["num_classes"] == 1000 else "")
    if about := hub.beside(path):
        if (about.side, about.side, 3) != shape or len(about.class_names) not in (0, model["num_classes"]):
            raise UserError(
                f"{reference}: its config.json tells of {about.side}x{about.side} pixels and "
                f"{len(about.class_names) or 'unnamed'} classes, its weights are of {shape[0]}x{shape[1]} and "
                f"{model['num_classes']}; take another."
            )
        return Images(model, shape, about.eval_ops, about.class_names or known, reference, about.licence)
    # The evaluation that is usual for weights of ImageNet, whose classes are told by their number.
    crop = (
        f"resize_small({round(shape[0] / 0.875)})|center_crop({shape[0]})" if shape[0] >= 64 else f"resize({shape[0]})"
    )
    ops = f"decode({shape[2]})|{crop}|{shapes.SCALES[model['name']]}"
    return Images(model, shape, ops, known, reference)
