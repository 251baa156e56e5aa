"""Images: classes and features of files, accuracy and calibration on labelled ones."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vit_jax_mixer.data import images
from vit_jax_mixer.data.pipeline import field
from vit_jax_mixer.data.sources import Source
from vit_jax_mixer.data.sources.files import Files
from vit_jax_mixer.errors import UserError, span
from vit_jax_mixer.predictors import class_maps, sketches
from vit_jax_mixer.predictors.base import FILE, Field, ForCard, Labelled, Predictor, Rows, Tree
from vit_jax_mixer.predictors.classification import labels, scores, worst
from vit_jax_mixer.predictors.classification.prediction import Prediction
from vit_jax_mixer.predictors.classification.report import Evaluated
from vit_jax_mixer.predictors.classification.scores import PROBABILITIES
from vit_jax_mixer.predictors.image_files import find_images
from vit_jax_mixer.predictors.image_operations import explained, of_any_image

MOST = 1 << 16  # pixels of an image's side
_DRAWN = 32  # pixels of a side, at most, of images that are drawn for a page


@dataclasses.dataclass(frozen=True)
class Images(Predictor):
    """What a user of weights for images must know.

    Attributes:
        model: the fields of `models.create`: name, num_classes, and any others.
        image_shape: (h, w, c) of an image as the model reads it.
        eval_ops: what brings an image there; operations of docs/data.md.
        class_names: one for each logit; empty if they have none.
        source: where the weights come from.
        licence: of the weights; '' if they are one's own.
        probabilities: what makes them of logits, by the loss of the training: 'softmax' or 'sigmoid'.
    """

    kind = "images"
    field = "image"
    arguments = "IMAGES"
    model: Mapping[str, Any]
    image_shape: tuple[int, int, int]
    eval_ops: str
    class_names: tuple[str, ...]
    source: str
    licence: str = ""
    probabilities: str = "softmax"

    @classmethod
    def of_json(cls, fields: Mapping[str, Any], where: str) -> Self:
        if misfit := _misfit(fields):
            raise UserError(f"{where} cannot be read as the description of a model ({misfit}); mend it.")
        return super().of_json(fields, where)

    # --- The model ---

    @functools.cached_property
    def ops(self) -> images.Ops:
        """The operations, on the host and on the device."""
        return images.parse(self.eval_ops, "eval_ops")

    def create(self, where: str) -> nn.Module:
        module = super().create(where)
        if not images.parse(self.eval_ops, f"{where}: eval_ops").scales:
            raise UserError(
                f"the operations {self.eval_ops!r} give bytes of 0 to 255; end them with value_range(-1, 1)."
            )
        return module

    def shapes(self, module: nn.Module) -> Tree:
        image = jax.ShapeDtypeStruct((1, *self.image_shape), np.float32)
        return jax.eval_shape(module.init, jax.random.key(0), image)["params"]

    def input(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.image_shape, np.uint8)

    def random_inputs(self, count: int) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 256, (count, *self.image_shape), np.uint8)

    def outputs(self, module: nn.Module, params: Tree, inputs: jax.Array) -> dict[str, jax.Array]:
        scaled, _ = self.ops.on_device(inputs)
        logits, state = module.apply({"params": params}, scaled, train=False, mutable=["intermediates"])
        found = {"features": jnp.asarray(state["intermediates"]["pre_logits"], jnp.float32)}
        if self.model["num_classes"]:
            found |= {"logits": logits, "probabilities": PROBABILITIES[self.probabilities](logits)}
        return found

    def meanings(self) -> dict[str, str]:
        return {
            "logits": "a number for each class",
            "probabilities": f"{self.probabilities} of the logits",
            "features": "pooled, before the head",
        }

    def card(self) -> ForCard:
        count, operations = self.model["num_classes"], explained(self.eval_ops)
        steps = [
            f"{i}. {span(one['operation'])}{', inside the model' * (one['by'] == 'the model')}: {one['does']}"
            for i, one in enumerate(operations, 1)
        ]
        named = f"{count:,}" + (f", named in `{FILE}`" if self.class_names else "")
        return ForCard(
            code=_CODE,
            facts={"Classes": named if count else "none: it has no head"},
            explained=f", from 0 to 255, channels last ({'grey' if self.image_shape[-1] == 1 else 'RGB'}), for any b.\n"
            "What makes them of a file:\n\n" + "\n".join(steps),
            input={"range": [0, 255]},
            fields={"probabilities": self.probabilities, "preprocessing": operations},
        )

    # --- What it reads ---

    def with_ops(self, ops: str) -> Self:
        images.parse(ops, "--ops")
        return dataclasses.replace(self, eval_ops=ops)

    def given(self) -> dict[str, str]:
        return {"ops": self.eval_ops}

    def open(self, arguments: Sequence[str]) -> Source:
        """Return the image files that are named, in folders that are, or match patterns."""
        paths = [path for argument in arguments for path in find_images(argument)]
        files = Files.of("", [(path, 0) for path in paths])
        return Source(files, (), files.where)

    def form(self) -> list[Field]:
        """Return a pad to draw on for small grey images, as digits, and else a file."""
        if self._drawn():
            return [Field("Draw with the brush", "sketch"), Field("... or give a file", "file")]
        return [Field("An image", "file")]

    def given_as_files(self, values: Sequence[Any], folder: Path) -> list[str]:
        if not self._drawn() or values[1]:
            return [str(values[-1])]
        file = folder / "drawn.png"
        sketches.fitted(values[0], self.image_shape[0]).save(file)
        return [str(file)]

    def _drawn(self) -> bool:
        height, width, channels = self.image_shape
        return channels == 1 and height == width <= _DRAWN

    def reader(self) -> "Read":
        return Read(self._fitting)

    def _fitting(self, image: Any, rng: np.random.Generator) -> np.ndarray:
        """Apply the host operations; an image that does not become one of the model's is a `UserError`."""
        pixels = self.ops(image, rng)
        if pixels.shape != self.image_shape:
            better = of_any_image(self.eval_ops, self.image_shape)
            hint = f", as --ops={better!r}" if better != self.eval_ops else ""
            raise UserError(
                f"the operations {self.eval_ops!r} give an image of shape {pixels.shape}, "
                f"the model reads {self.image_shape}; mend them with --ops{hint}."
            )
        return pixels

    # --- What it answers ---

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each logit: its number where the model has no names."""
        return self.class_names or tuple(str(number) for number in range(self.model["num_classes"]))

    def lack(self) -> str:
        return "" if self.model["num_classes"] else "has no head, so it knows no classes"

    def told(self, outputs: Mapping[str, jax.Array], most: int) -> dict[str, jax.Array]:
        if "probabilities" not in outputs:
            return {}
        best = jax.lax.top_k(outputs["probabilities"], min(most, outputs["probabilities"].shape[-1]))
        return {"probabilities": best[0], "classes": best[1]}

    def explain(self, module: nn.Module, params: Tree, inputs: jax.Array) -> dict[str, jax.Array]:
        scaled, _ = self.ops.on_device(inputs)
        logits: Any = module.apply({"params": params}, scaled, train=False)
        return {"map": class_maps.of_classes(module, params, scaled, jnp.argmax(logits, -1)), "seen": inputs}

    def picture(self, answer: Prediction, row: Rows) -> Image.Image:
        """Draw where the image speaks for its likeliest class; the title has its name, below stands the logit."""
        (_, name, share), found = answer.classes[0], row["map"]
        below = f"logit {found.mean():.2f}: mean of {found.min():.2f} to {found.max():.2f}"
        return class_maps.picture(row["seen"], found, f"{name} ({100 * share:.1f} %)", below)

    def answer(self, name: str, row: Rows) -> Prediction:
        pairs = zip(row["classes"], row["probabilities"], strict=True) if "classes" in row else ()
        names = self.names
        classes = tuple((int(number), names[number], float(share)) for number, share in pairs)
        return Prediction(name, classes, row["features"])

    # --- How good it is ---

    def labelled(self, source: Source, where: str, *, by_number: bool) -> Labelled:
        source.check_labelled(where, "an evaluation")
        classes, matched = labels.match(
            source.class_names, self.class_names, self.model["num_classes"], where, by_number
        )
        return Labelled(self.reader(), classes, matched)

    def label(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((), np.int32)

    def scores(self, outputs: Mapping[str, jax.Array], labels: jax.Array) -> dict[str, jax.Array]:
        """Return the arguments of `classification.scores.summary`."""
        rows = scores.of_batch(outputs["logits"], labels, scores.LOSSES[self.probabilities])
        return {**rows, "confidences": outputs["probabilities"].max(-1)}

    def evaluated(self, rows: Rows, labelled: Labelled, per_second: float, skipped: Sequence[str]) -> Evaluated:
        return Evaluated(
            names=self.names,
            classes=np.sort(labelled.classes),
            matched=labelled.matched,
            labels=rows["labels"],
            predictions=rows["predictions"],
            figures=scores.summary(**rows, num_classes=self.model["num_classes"]),
            images_per_second=per_second,
            skipped=skipped,
            losses=rows["losses"],
            confidences=rows["confidences"],
        )

    def explained(self, found: Evaluated, source: Source, scores: Any) -> Evaluated:
        """Return it with the names of the images, and a sheet of those with the largest loss."""
        del scores
        chosen, draw = np.argsort(-found.losses, kind="stable")[: worst.MOST], np.random.default_rng(0)
        pixels = [self.reader()(source.examples[i], draw)["image"] for i in map(int, chosen)]
        wrong = (found.labels != found.predictions)[chosen].tolist()
        captions = [
            (f"{self.names[found.labels[i]]}{', taken for' * bad}", f"{name} ({100 * found.confidences[i]:.0f} %)")
            for i, bad, name in zip(chosen, wrong, (self.names[found.predictions[i]] for i in chosen), strict=True)
        ]
        return dataclasses.replace(found, where=source.where, worst=worst.sheet(pixels, captions, wrong))


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


_CODE = """\
from pathlib import Path

import jax
import numpy
from vit_jax_mixer.trained import open_model

trained = open_model(FOLDER)
files = [Path(path).read_bytes() for path in PATHS]
images = numpy.stack([trained.ops(file, numpy.random.default_rng(0)) for file in files])
outputs = jax.jit(trained.outputs)(trained.params, images)"""


@dataclasses.dataclass(frozen=True)
class Read:
    """From a source's example to {'image': u8[h, w, c]}; worker processes get a copy."""

    ops: images.HostOp

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {"image": self.ops(field(example, "image"), rng)}
