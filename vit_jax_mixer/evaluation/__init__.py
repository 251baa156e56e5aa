"""How good a model is on labelled images."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from vit_jax_mixer.data.pipeline import Dataset, Loader
from vit_jax_mixer.data.sources import Source
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.evaluation import labels, scores
from vit_jax_mixer.run.inference import Inference, Outputs, class_names, fitting
from vit_jax_mixer.tasks.classification import LOSSES
from vit_jax_mixer.tasks.images import labelled
from vit_jax_mixer.trained import Trained


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What `evaluate` found.

    Attributes:
        names: of the model's classes.
        classes: i32[J], those of them that the data have, sorted.
        matched: how the data's classes were matched with the model's; '' if they are the same.
        labels: i32[N], the true classes.
        predictions: i32[N], the likeliest classes.
        figures: those of `scores.summary`.
        images_per_second: reading and all, but for the compilation.
        skipped: a sentence for each bad example.
    """

    names: tuple[str, ...]
    classes: np.ndarray
    matched: str
    labels: np.ndarray
    predictions: np.ndarray
    figures: dict[str, float]
    images_per_second: float
    skipped: Sequence[str]


def evaluate(
    trained: Trained,
    source: Source,
    where: str,
    *,
    batch_size: int,
    by_number: bool = False,
    skip_bad: bool = False,
    on_skipped: Callable[[str], None] = lambda reason: None,
) -> Evaluated:
    """Evaluate a model on labelled images.

    Args:
        trained: the model.
        source: the images.
        where: the name of the data, for messages.
        batch_size: about how many images are run at a time.
        by_number: the data's classes are the model's by number, whatever their names.
        skip_bad: leave bad images out; or else the first one is an error.
        on_skipped: is told what is wrong with each one that is left out.

    Raises:
        UserError: the model has no head, the classes do not match, or an image is bad.
    """
    num_classes = trained.about.model["num_classes"]
    if not num_classes:
        raise UserError(
            "the model has no head, so it knows no classes; evaluate its features, with --probe, or another."
        )
    if not source.class_names:
        raise UserError(f"{where} has no class labels, which an evaluation needs; choose another dataset.")
    classes, matched = labels.match(source.class_names, trained.about.class_names, num_classes, where, by_number)
    dataset = Dataset(source, labelled(fitting(trained), classes), skip_bad=skip_bad)
    skipped: dict[int, str] = {}

    def skip(dataset: Dataset, index: int) -> None:
        if index not in skipped:  # padding repeats the last example
            skipped[index] = " ".join(dataset.fault(index).splitlines())
            on_skipped(skipped[index])

    batches = Inference(trained, example_scores(trained), batch_size).rows(dataset, Loader(-1, -1, 2), skip)
    begun = time.perf_counter()
    parts = list(batches)
    seconds = time.perf_counter() - begun
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Evaluated(
        names=class_names(trained.about),
        classes=np.sort(classes),
        matched=matched,
        labels=rows["labels"],
        predictions=rows["predictions"],
        figures=scores.summary(**rows, num_classes=num_classes),
        images_per_second=len(dataset) / seconds,
        skipped=tuple(skipped.values()),
    )


def example_scores(trained: Trained) -> Outputs:
    """Return what gives the arguments of `scores.summary` for a batch, on the device."""

    def outputs(params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        found = trained.outputs(params, batch["image"])
        logits, labels = found["logits"], batch["label"]
        targets = jax.nn.one_hot(labels, logits.shape[-1])
        best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1]  # i32[B, 5]
        return {
            "labels": labels,
            "predictions": best[:, 0],
            "in_top": (best == labels[:, None]).any(-1),
            "losses": LOSSES[trained.about.probabilities](logits, targets),
            "confidences": found["probabilities"].max(-1),
        }

    return outputs
