"""What the data look like, where the data themselves are not on this machine."""

import dataclasses

from vit_jax_mixer.config import Config
from vit_jax_mixer.data.sources.tfds import find_builder
from vit_jax_mixer.errors import UserError


def without_data(run: Config, num_classes: int | None, image_shape: str) -> Config:
    """Return the run with blank images in the place of its data, if their classes and size are known.

    TFDS knows those of its datasets before they are downloaded, and IDX files are MNIST's. A run on
    anything else is returned as it is, so that its data are opened.

    Args:
        run: with ``config.data.source``.
        num_classes: what a person said; None for nothing.
        image_shape: of an image before the operations, as '28x28x1'; '' where that is not known.

    Raises:
        UserError: TFDS has no such dataset, or it has no labels.
    """
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
