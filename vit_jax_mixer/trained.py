"""A model that is ready for use, by a published name, a workdir, an export or a file of weights.

What a model reads and answers stands in ``model.json`` (`About`), which training writes to the
workdir and `export` beside its files. A bare file of weights tells it by the shapes in it.
"""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax_mixer import files, models, pretrained, specs
from vit_jax_mixer.checkpoints import checksums
from vit_jax_mixer.data import images
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained import class_names, folder, registry, shapes, trees

Tree = dict[str, Any]
FILE = "model.json"
MOST = 1 << 16  # pixels of an image's side
CARD = "card.json"  # marks a folder as an export
PROBABILITIES = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}


@dataclasses.dataclass(frozen=True)
class About:
    """What a user of the weights must know.

    Attributes:
        model: the fields of `models.create`: name, num_classes, and any others.
        image_shape: (h, w, c) of an image as the model reads it.
        eval_ops: what brings an image there; operations of docs/data.md.
        class_names: one for each logit; empty if they have none.
        source: where the weights come from.
        licence: of the weights; '' if they are one's own.
        probabilities: what makes them of logits, by the loss of the training: 'softmax' or 'sigmoid'.
    """

    model: Mapping[str, Any]
    image_shape: tuple[int, int, int]
    eval_ops: str
    class_names: tuple[str, ...]
    source: str
    licence: str = ""
    probabilities: str = "softmax"

    def write(self, folder: Path) -> None:
        """Write ``model.json``, at once or not at all, with a checksum; who changes it by hand takes that out."""
        checksums.write_json(folder / FILE, dataclasses.asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "About":
        """Read a folder's ``model.json``.

        Raises:
            UserError: there is none, or it does not say what it must.
        """
        path = folder / FILE
        if not path.is_file():
            raise UserError(f"there is no {path}, which training and export write; give a folder that has one.")
        fields = checksums.read_json(path, may_lack_it=True)
        if misfit := _misfit(fields):
            raise UserError(f"{path} cannot be read as the description of a model ({misfit}); mend it.")
        lists = {name: tuple(fields[name]) for name in ("image_shape", "class_names")}
        return specs.call(cls, {**fields, **lists}, str(path))


def _misfit(fields: Mapping[str, Any]) -> str:
    """Return what is wrong with a description, but for the types of its texts; '' if nothing is."""
    shape, names, model = (fields.get(name) for name in ("image_shape", "class_names", "model"))
    if not (isinstance(shape, list) and len(shape) == 3 and all(type(n) is int and 0 < n <= MOST for n in shape)):
        return f"its image_shape is not three sizes from 1 to {MOST:,}"
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        return "its class_names are no list of names"
    if not (isinstance(model, dict) and isinstance(model.get("num_classes"), int)):
        return "its model has no num_classes"
    if len(names) not in (0, model["num_classes"]):
        return f"{len(names)} class_names are not one for each class"
    if fields.get("probabilities", "softmax") not in tuple(PROBABILITIES):
        return f"its probabilities are none of {', '.join(PROBABILITIES)}"
    return ""


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model and its weights.

    Attributes:
        about: what it reads and answers.
        module: the Flax module.
        ops: its operations of evaluation, on the host and on the device.
        params: the parameters, in our names.
        origin: which of the checkpoints, and of the trees of parameters in a file, they are, for people:
            'step 500, the best by test/accuracy'; '' where there was only one.
        step: of the checkpoint, where they are of a workdir.
    """

    about: About
    module: nn.Module
    ops: images.Ops
    params: Tree
    origin: str = ""
    step: int | None = None

    def outputs(self, params: Tree, batch: jax.Array) -> dict[str, jax.Array]:
        """Compute what the model says of images; pure, to be jitted.

        Args:
            params: `params`, on the device.
            batch: u8[B, h, w, c], as the host operations leave images.

        Returns:
            'logits' and 'probabilities' f32[B, K], where the model has a head, and 'features' f32[B, C],
            pooled, before it.
        """
        scaled, _ = self.ops.on_device(batch)
        logits, state = self.module.apply({"params": params}, scaled, train=False, mutable=["intermediates"])
        found = {"features": jnp.asarray(state["intermediates"]["pre_logits"], jnp.float32)}
        if self.about.model["num_classes"]:
            found |= {"logits": logits, "probabilities": PROBABILITIES[self.about.probabilities](logits)}
        return found


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
    about = About.read(run) if (run / FILE).is_file() else _about_file(plain, weights)
    if eval_ops:
        about = dataclasses.replace(about, eval_ops=eval_ops)
    # How a training saves time and memory changes nothing here but the layout of the parameters.
    fields = {name: value for name, value in about.model.items() if name not in ("scan", "remat")}
    arrays = len(pretrained.flatten(weights.tree))
    if isinstance(blocks := fields.get("num_blocks"), int) and blocks > arrays:  # to describe them all takes time
        raise UserError(f"{reference} has {arrays} arrays, and num_blocks is {blocks!r:.20}: they do not fit.")
    module = specs.call(models.create, fields, f"{reference}: model")
    ops = images.parse(about.eval_ops, "--ops" if eval_ops else f"{reference}: eval_ops")
    if not ops.scales:
        raise UserError(f"the operations {about.eval_ops!r} give bytes of 0 to 255; end them with value_range(-1, 1).")
    image = jax.ShapeDtypeStruct((1, *about.image_shape), np.float32)
    like = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    params = pretrained.fill(like, weights.tree, new=(), where=reference)
    return Trained(about, module, ops, params, weights.origin, weights.step)


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


def _about_file(reference: str, weights: pretrained.Weights) -> About:
    """Describe weights without a ``model.json``: by the registry, or else by their shapes."""
    model, shape = shapes.infer(weights.tree, weights.convention, reference)
    published = registry.lookup(reference)
    if published:
        return About(
            {**model, **published.model},
            shape,
            published.eval_ops,
            class_names.of(published.class_set),
            f"{published.source} ({published.url})",
            published.licence,
        )
    # The evaluation that is usual for weights of ImageNet, whose classes are told by their number.
    crop = (
        f"resize_small({round(shape[0] / 0.875)})|center_crop({shape[0]})" if shape[0] >= 64 else f"resize({shape[0]})"
    )
    ops = f"decode({shape[2]})|{crop}|{shapes.SCALES[model['name']]}"
    return About(model, shape, ops, class_names.of("imagenet1k" if model["num_classes"] == 1000 else ""), reference)
