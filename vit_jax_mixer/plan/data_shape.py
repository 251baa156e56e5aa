"""What the data look like, where the data themselves are not on this machine."""

import dataclasses
import re

from vit_jax_mixer.config import Config
from vit_jax_mixer.data.sources import open_source
from vit_jax_mixer.data.sources.tfds import find_builder
from vit_jax_mixer.errors import UserError


def without_data(run: Config, num_classes: int | None, image_shape: str) -> Config:
    """Return the run with blank images or sentences in the place of its data, if what they look like is known.

    Sentences are of the model's length, and of a vocabulary of the size that is asked for. TFDS knows classes and sizes
    of its datasets before they are downloaded, and IDX files are MNIST's. A run on anything else is returned as it is,
    so that its data are opened.

    Args:
        run: with ``config.data.source``.
        num_classes: what a person said; None for nothing.
        image_shape: of an image before the operations, as '28x28x1'; '' where that is not known.

    Raises:
        UserError: TFDS has no such dataset, or it has no labels.
    """
    if run.task.get("name") == "translation":
        return _without_text(run)
    kind, _, place = str(run.data.get("source", "")).partition(":")
    if num_classes is None and kind == "tfds":
        features = find_builder(place).info.features
        if features is None or "label" not in features or "image" not in features:
            raise UserError(
                f"tfds:{place} has no images with labels; say what to plan for with --num_classes=1000, "
                "or 0 for a task without labels."
            )
        num_classes = features["label"].num_classes
        if not image_shape and None not in features["image"].shape:
            image_shape = "x".join(map(str, features["image"].shape))
    elif num_classes is None and kind == "idx":
        num_classes, image_shape = 10, image_shape or "28x28x1"
    if num_classes is None:
        return run
    source = f"blank:{num_classes}" + (f",{image_shape}" if image_shape else "")
    return dataclasses.replace(
        run, data={**run.data, "source": source, "train": "train", "eval": run.data["eval"] and "test"}
    )


def _without_text(run: Config) -> Config:
    """Return the run with pairs of the longest sentences, if its own or their vocabulary cannot be read."""
    spec = str(run.data.get("vocabulary", ""))
    if re.fullmatch(r"[a-z]+\((size=)?[0-9]+.*\)", spec) and not _are_here(run):
        size, length = re.findall(r"[0-9]+", spec)[0], run.model.get("max_length")
        blank = {"source": f"blank_pairs:{size},{length}", "train": "train", "vocabulary": f"word({size})"}
        return dataclasses.replace(run, data={**run.data, **blank, "eval": ""})
    return run


def _are_here(run: Config) -> bool:
    try:
        open_source(str(run.data.get("source", "")), str(run.data.get("train", "")))
    except UserError:
        return False
    return True
