"""Images to classes, learnt from the labels and from a teacher: docs/distillation.md.

Hinton et al. 2015 (arXiv 1503.02531), Touvron et al. 2020 (DeiT, arXiv 2012.12877, section 4; here one head
serves both, as in ResMLP, arXiv 2105.03404). The formulas are those of DeiT's published code.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax_mixer import classes, predictors, pretrained, specs
from vit_jax_mixer.config import Config
from vit_jax_mixer.data import logits as logits_lib
from vit_jax_mixer.data import record
from vit_jax_mixer.data.images import Ops
from vit_jax_mixer.data.logits import Logits
from vit_jax_mixer.data.onnx_teacher import OnnxTeacher
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.predictors.classification import labels
from vit_jax_mixer.predictors.images import Images
from vit_jax_mixer.pretrained import progress
from vit_jax_mixer.specs import Rate, Within
from vit_jax_mixer.tasks import classification
from vit_jax_mixer.tasks.base import Aux, TrainState, Tree
from vit_jax_mixer.tasks.images import ImageData
from vit_jax_mixer.trained import open_model


@dataclasses.dataclass(frozen=True)
class Term:
    """The part of the loss that is learnt from the teacher.

    Attributes:
        weight: its share of the loss; the label's part has the rest.
        answer: from the teacher's logits f32[B, K] to what is learnt of them, a distribution over the classes.
        loss: of the student's logits f32[B, K] and such an answer, f32[B].
    """

    weight: float
    answer: Callable[[jax.Array], jax.Array]
    loss: Callable[[jax.Array, jax.Array], jax.Array]


def hard(weight: Rate = 0.5) -> Term:
    """Return the cross-entropy with the teacher's likeliest class."""
    answer = lambda logits: jax.nn.one_hot(logits.argmax(-1), logits.shape[-1])
    return Term(weight, answer, optax.softmax_cross_entropy)


def soft(temperature: Annotated[float, Within(0.01, 1000)] = 1.0, weight: Rate = 0.5) -> Term:
    """Return KL(teacher || student) of both at a temperature, times its square, divided by the number of classes."""

    def loss(logits: jax.Array, answer: jax.Array) -> jax.Array:
        divergence = optax.kl_divergence(jax.nn.log_softmax(logits / temperature), answer)
        return temperature**2 * divergence / logits.shape[-1]

    return Term(weight, lambda logits: jax.nn.softmax(logits / temperature), loss)


KINDS: Mapping[str, Callable[..., Term]] = {"hard": hard, "soft": soft}


OnHost = Logits | OnnxTeacher  # what adds its logits to a batch on the host


class Teacher:
    """A trained model, which sees the student's images in its own normalisation and size."""

    def __init__(self, reference: str, data: ImageData, *, by_number: bool) -> None:
        """Take its weights, as ``config.init_from`` names such.

        Args:
            reference: a workdir, published weights, an export or a file.
            data: what the student learns from.
            by_number: whether classes have no names, as those of blank images in the place of the data.

        Raises:
            UserError: it is no such model, does not have the classes of the data, or reads grey images and
                those are coloured.
        """
        where = f"config.task.teacher: {reference}"
        trained = open_model(reference)
        about = trained.about
        if not isinstance(about, Images):
            raise UserError(f"{where} is a model of {about.kind}, not of images; name one that classifies images.")
        if lack := about.lack():
            raise UserError(f"{where} {lack}; name a model that classifies images.")
        self._places, told = _places(about.class_names, about.model["num_classes"], data, where, by_number)
        self._about = about
        self._channels = about.image_shape[-1]
        if self._channels < data.shape[-1]:
            raise UserError(f"{where} reads grey images, and those of the data are coloured; name another.")
        for line in filter(None, [trained.origin, told]):
            progress.say(f"{reference}: {line}")
        self._module = trained.module
        self.params = trained.params
        self.digest = _digest(trained.params, about.eval_ops)

    def shapes(self) -> Tree:
        """Return the shapes and types of its parameters."""
        return self._about.shapes(self._module)

    def logits(
        self, params: Tree, images: jax.Array, ops: Ops | None = None, targets: Any = None, key: Any = None
    ) -> jax.Array:
        """Return its logits f32[B, K] for the classes of the data, in their order; traced.

        Args:
            params: its parameters.
            images: u8[B, h, w, c], as the student's host operations leave them.
            ops: of the student, whose mixing and erasing it is to see too; None for images as they are.
            targets: for ``ops``.
            key: for ``ops``, the student's own.
        """
        if images.shape[-1] < self._channels:
            images = jnp.repeat(images, self._channels, -1)
        own = self._about.ops
        seen, _ = ops.scaled_by(own).on_device(images, targets, key) if ops else own.on_device(images)
        seen = jax.image.resize(seen, (len(seen), *self._about.image_shape), "linear")  # where it has another size
        found = self._module.apply({"params": params}, seen, train=False)
        return jnp.asarray(found, jnp.float32)[:, self._places]


def create(
    run: Config,
    teacher: str,
    loss: str,
    label_smoothing: float,
    probe: str,
    probe_examples: int,
    kind: str = "hard",
    class_weights: str = "",
) -> "Distillation":
    """Build the task; ``configs/distil.py`` says what ``teacher`` and ``kind`` are, the rest is of classification.

    Raises:
        UserError: the teacher is no model or logits, or not of these data.
    """
    term = specs.build(KINDS, kind, "config.task.kind")
    if not teacher:
        raise UserError("config.task.teacher is ''; name a workdir, published weights, an ONNX file or logits.")
    folder = Path(teacher).expanduser()
    if folder.suffix == ".onnx" or ((folder / logits_lib.FILE).exists() and Logits(folder).of_host()):
        if (cache := run.data.get("cache")) in ("host", "device"):
            raise UserError(
                f"config.data.cache is {cache!r}, but {teacher} reads what the host draws; set it to 'auto'."
            )
        run = dataclasses.replace(run, data={**run.data, "cache": "none"})
    task = classification.build(Distillation, run, loss, label_smoothing, probe, probe_examples, class_weights)
    blank = str(run.data["source"]).startswith("blank:")  # to plan it, without its data
    if folder.suffix == ".onnx":
        on_host = OnnxTeacher(folder, task.data.shape)
        described = (folder.parent / predictors.FILE).is_file()  # of an export
        names = getattr(predictors.read(folder.parent), "class_names", ()) if described else ()
        where = f"config.task.teacher: {teacher}"
        places, told = _places(names, on_host.classes, task.data, where, blank or not names)
        on_host.reorder(places)
        if line := told if names else "its classes are taken to be the data's, in their order":
            progress.say(f"{teacher}: {line}")
        task.learn(term, teacher, on_host)
    elif (folder / logits_lib.FILE).exists():
        task.learn(term, teacher, Logits(folder))
        if not blank:
            Logits(folder).check(*of_run(run, task.data), run.steps * run.batch_size)
    else:
        task.learn(term, teacher, Teacher(teacher, task.data, by_number=blank))
    return task


def of_run(run: Config, data: ImageData) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what logits for this run are of: its data and their order."""
    order = logits_lib.order_of(data.train, run.seed, run.data["train_ops"], len(data.train_ops.host))
    return record.of_source(data.train.source), order


class Distillation(classification.Classification):
    """Images to classes, with a teacher. Only the student is evaluated, saved and published."""

    term: Term
    teacher: Teacher | OnHost

    def learn(self, term: Term, name: str, teacher: Teacher | OnHost) -> None:
        """Take the teacher, and what is learnt from it."""
        self.term, self.teacher = term, teacher
        self._about = dataclasses.replace(self._about, source=f"{self._about.source}, taught by {name}")
        if not isinstance(teacher, Teacher):
            self.train_data = dataclasses.replace(self.train_data, beside=teacher)
        self.digests = {"the teacher": teacher.digest}

    def frozen(self) -> Tree:
        return self.teacher.params if isinstance(self.teacher, Teacher) else ()

    def frozen_shapes(self) -> Tree:
        return self.teacher.shapes() if isinstance(self.teacher, Teacher) else ()

    def loss(
        self, params: Tree, state: TrainState, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """Return the weighted mean of the label's loss, as of a classification, and the teacher's."""
        of_ops, of_dropout = jax.random.split(key)
        ops, images = self.data.train_ops, batch["image"]
        targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], self.data.num_classes), self.label_smoothing)
        if isinstance(self.teacher, Teacher):
            answer = self.term.answer(self.teacher.logits(state.frozen, images, ops, targets, of_ops))
        else:  # what it said of the images that were mixed is mixed by the same draws
            _, answer = ops.on_device(images, self.term.answer(batch[logits_lib.FIELD]), of_ops)
        assert answer is not None  # since there were targets
        images, targets = ops.on_device(images, targets, of_ops)
        assert targets is not None
        logits = self.model.apply({"params": params}, images, train=True, rngs={"dropout": of_dropout})
        by_label, by_teacher = self.mean_loss(logits, targets), jnp.mean(self.term.loss(logits, answer))
        metrics = {
            "accuracy": jnp.mean(logits.argmax(-1) == batch["label"]),
            "agreement": jnp.mean(logits.argmax(-1) == answer.argmax(-1)),
            "label_loss": by_label,
            "teacher_loss": by_teacher,
        }
        weight = self.term.weight
        return (1 - weight) * by_label + weight * by_teacher, Aux(metrics)


def _places(names: Sequence[str], count: int, data: ImageData, where: str, by_number: bool) -> tuple[np.ndarray, str]:
    """Return the teacher's place of each class of the data, i32[K], and how they were found; '' where that is plain.

    Args:
        names: of the teacher's classes; empty if they have none.
        count: how many it has.
        data: what the student learns from.
        where: the teacher, for messages.
        by_number: whether the data's names mean nothing.

    Raises:
        UserError: they are not the same classes.
    """
    if count != data.num_classes:
        raise UserError(
            f"{where} has {count} classes, the data {data.num_classes}; name a teacher of the same classes."
        )
    theirs = f"{where}: the data"
    if names and not by_number and all(classes.number(name) is not None for name in data.class_names):
        return classes.match(data.class_names, names, theirs, "the teacher's"), ""  # numbers are no guess at names
    return labels.match(data.class_names, names, count, theirs, by_number)


def _digest(params: Tree, *more: str) -> str:
    """Return a digest of weights and how they are used."""
    digest = hashlib.blake2b("\n".join(more).encode(), digest_size=16)
    for name, value in sorted(pretrained.flatten(params).items()):
        host = np.asarray(value)
        digest.update(f"\n{name} {host.dtype} {host.shape}\n".encode())
        digest.update(host.tobytes())
    return digest.hexdigest()
