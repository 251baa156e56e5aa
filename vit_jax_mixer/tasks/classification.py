"""Supervised image classification with softmax or sigmoid cross-entropy."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax_mixer import models, plugins, probes, specs
from vit_jax_mixer.config import Config
from vit_jax_mixer.data.sources import Source
from vit_jax_mixer.errors import UserError, suggest
from vit_jax_mixer.models import stacked
from vit_jax_mixer.predictors.classification import confusion, worst
from vit_jax_mixer.predictors.classification.scores import LOSSES, confusion_counts, means, of_batch
from vit_jax_mixer.predictors.images import Images
from vit_jax_mixer.pretrained import resize
from vit_jax_mixer.tasks.base import Aux, Outputs, Task, TrainState, Tree
from vit_jax_mixer.tasks.images import ImageData, begin_with, describe, image_data, sheet

PROBE_DATA = "training examples of the probes"  # a name of `Task.eval_data`; no metric begins with it


T = TypeVar("T", bound="Classification")


def create(
    run: Config, loss: str, label_smoothing: float, probe: str, probe_examples: int, class_weights: str = ""
) -> "Classification":
    """Build the task from ``config.task``, ``model``, ``data``, ``init_from`` and ``init_resize``."""
    return build(Classification, run, loss, label_smoothing, probe, probe_examples, class_weights)


def build(
    kind: type[T],
    run: Config,
    loss: str,
    label_smoothing: float,
    probe: str,
    probe_examples: int,
    class_weights: str,
) -> T:
    """Return what `create` does, as the class itself or one made on it."""
    resize.parse(run.init_resize)  # a misspelt part is told before the data are opened
    if not 0 <= label_smoothing < 1:
        raise UserError(f"config.task.label_smoothing is {label_smoothing}; it must be from 0 to less than 1.")
    probing = probes.parse(probe, "config.task.probe")
    if probe_examples < 1:
        raise UserError(f"config.task.probe_examples is {probe_examples}; it must be 1 or more.")
    data = image_data(run)
    if probing and data.eval is None:
        raise UserError("config.task.probe is tried in evaluations, but config.data.eval is ''; set one of the two.")
    model = specs.call(models.create, run.model, "config.model", num_classes=data.num_classes)
    about = describe(run, data, num_classes=data.num_classes, probabilities=loss)
    task = kind(model, data, loss, label_smoothing, run.init_from, about, run.init_resize)
    if class_weights:
        task.weights = weights_of_classes(class_weights, data.train.source)
    if probing:
        task.probe(probing, probe_examples)
    return task


def weights_of_classes(text: str, source: Source) -> np.ndarray:
    """Return f32[K], what the loss of an example of each class is multiplied with.

    Args:
        text: 'balanced', N / (K N_k) for N_k of N examples: all K classes weigh the same, and an example 1 in the
            mean; or JSON, as '{"cat": 2, "dog": 0.5}', where a class that is not named has 1.
        source: the training data; for 'balanced', all its labels are read.

    Raises:
        UserError: it is neither, names no class of the data, or a weight is no number above 0.
    """
    names = source.class_names
    if text == "balanced":
        labels = getattr(source.examples, "labels", None)  # where they are at hand without the images
        if labels is None:
            labels = [int(source.examples[i]["label"]) for i in range(len(source.examples))]
        counts = np.bincount(np.asarray(labels), minlength=len(names))
        return (len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))).astype(np.float32)
    try:
        given = json.loads(text)
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise UserError(f"config.task.class_weights is {text!r}; give 'balanced', or JSON as '{{\"cat\": 2}}'.")
    weights = np.ones(len(names), np.float32)
    for name, weight in given.items():
        if name not in names:
            raise UserError(f"config.task.class_weights: {name!r} is no class of the data{suggest(name, names)}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < 1e6:
            raise UserError(f"config.task.class_weights: that of {name!r} is {weight!r}; it must be above 0, to 1e6.")
        weights[names.index(name)] = weight
    return weights


class Classification(Task):
    """Images to classes.

    Attributes:
        weights: f32[K] that the losses of training are multiplied with, by class; None for 1.
    """

    weights: np.ndarray | None = None
    _test: Mapping[str, np.ndarray] | None = None  # rows of the last evaluation

    def __init__(
        self,
        model: Any,
        data: ImageData,
        loss: str,
        label_smoothing: float,
        init_from: str,
        about: Images,
        init_resize: str = "",
    ) -> None:
        self.model = model
        self.data = data
        self.train_data = data.train
        self.eval_data = {} if data.eval is None else {data.eval_split: data.eval}
        self.label_smoothing = label_smoothing
        self.init_from = init_from
        self.init_resize = init_resize
        self._about = about
        self._loss = plugins.lookup(LOSSES, loss, "config.task.loss")
        self._probes: dict[str, tuple[probes.Probe, ...]] = {}  # by the dataset that they learn from

    def probe(self, probing: tuple[probes.Probe, ...], examples: int) -> None:
        """Let evaluations try these probes, which learn from so many training examples, not augmented."""
        of_training = dataclasses.replace(self.data.plain, source=probes.sample(self.data.plain.source, examples))
        rhythms = {f"{PROBE_DATA}, every {n}" if n > 1 else PROBE_DATA: n for n in sorted({p.every for p in probing})}
        self._probes = {name: tuple(p for p in probing if p.every == every) for name, every in rhythms.items()}
        self.eval_data = {**self.eval_data, **dict.fromkeys(rhythms, of_training)}
        self.every = rhythms

    def about(self) -> Images:
        return self._about

    def forward_flop(self) -> float:
        return models.forward_flop(self.model, self.data.shape)

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Return fresh parameters for images as the training data has them."""
        images, _ = self.data.eval_ops.on_device(jnp.zeros((1, *self.data.shape), jnp.uint8))
        return stacked.init(self.model, key, images), ()

    def load(self, params: Tree, extra: Tree) -> tuple[Tree, Tree]:
        """Read ``init_from``, if set, and bring it to this model's size; the head stays new."""
        if self.init_from:
            params = begin_with(self.init_from, params, self.init_resize, self.data.shape)
        return params, extra

    def loss(
        self, params: Tree, state: TrainState, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """Return the mean cross-entropy with smoothed and mixed labels, and the accuracy beside it."""
        of_ops, of_dropout = jax.random.split(key)
        targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], self.data.num_classes), self.label_smoothing)
        images, targets = self.data.train_ops.on_device(batch["image"], targets, of_ops)
        logits = self.model.apply({"params": params}, images, train=True, rngs={"dropout": of_dropout})
        accuracy = jnp.mean(jnp.argmax(logits, -1) == batch["label"])
        assert targets is not None  # since there were targets
        return self.mean_loss(logits, targets), Aux({"accuracy": accuracy})

    def mean_loss(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """Return the loss f32[] of logits and targets f32[B, K]; a mixed image has the mean weight of its classes."""
        losses = self._loss(logits, targets)
        return jnp.mean(losses if self.weights is None else losses * (targets @ self.weights))

    def eval_step(self, state: TrainState, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Return each example's row of `scores.of_batch` (labels not smoothed) and, for probes, features."""
        images, _ = self.data.eval_ops.on_device(batch["image"])
        logits, kept = self.model.apply({"params": state.params}, images, train=False, mutable=["intermediates"])
        rows = of_batch(logits, batch["label"], self._loss)
        if self._probes:
            rows |= {"features": kept["intermediates"]["pre_logits"].astype(jnp.float32)}
        return rows

    def evaluate(self, outputs: Callable[[str], Iterator[Outputs]]) -> dict[str, float]:
        """Return SPLIT/loss and SPLIT/accuracy, means over the split, and SPLIT/PROBE of each probe."""

        def rows(name: str) -> dict[str, np.ndarray]:
            batches = list(outputs(name))  # none, where probes are not due
            return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]} if batches else {}

        split = self.data.eval_split
        self._test = test = rows(split)
        num_classes = self.data.num_classes
        metrics = means(test["labels"], test["predictions"], test["losses"])
        for name, chosen in self._probes.items():
            if train := rows(name):
                metrics |= probes.evaluate(
                    chosen, train["features"], train["labels"], test["features"], test["labels"], num_classes
                )
        return {f"{split}/{name}": value for name, value in metrics.items()}

    def sheet(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return a picture of the first images."""
        return sheet(self.data, batch)

    def conclusion(self) -> dict[str, Any]:
        """Return the confusion matrix of the last evaluation, and the misclassified images with the largest loss."""
        names, data = self.data.class_names, self.data.eval
        if data is None or self._test is None or len(self._test["labels"]) != len(data):  # bad ones were left out
            return {}
        labels, told, losses = (self._test[name] for name in ("labels", "predictions", "losses"))
        shown = np.union1d(labels, told)
        found: dict[str, Any] = {}
        if len(shown) <= confusion.LARGEST:
            matrix = confusion.square(confusion_counts(labels, told, len(names)), shown)
            found["confusion"] = confusion.draw(matrix, [names[k] for k in shown])
        wrong = np.flatnonzero(labels != told)
        if chosen := wrong[np.argsort(-losses[wrong], kind="stable")][: worst.MOST].tolist():
            pixels = [data.get(i, np.random.default_rng(0))["image"] for i in chosen]
            captions = [(f"{names[labels[i]]}, taken for", names[told[i]]) for i in chosen]
            found["misclassified"] = worst.sheet(pixels, captions, [True] * len(chosen))
        return found
