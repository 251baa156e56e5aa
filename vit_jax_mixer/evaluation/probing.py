"""Probes of a trained model's features on any labelled images, those of other classes too."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from vit_jax_mixer import probes
from vit_jax_mixer.data.pipeline import Dataset, Loader
from vit_jax_mixer.data.sources import Source
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.inference import Inference, fitting
from vit_jax_mixer.tasks.classification import Labelled
from vit_jax_mixer.trained import Trained


def probe(
    trained: Trained,
    chosen: Sequence[probes.Probe],
    train: Source,
    test: Source,
    where: str,
    *,
    batch_size: int,
    skip_bad: bool = False,
    on_skipped: Callable[[str], None] = lambda reason: None,
) -> dict[str, float]:
    """Return the metrics of `probes.evaluate`.

    Args:
        trained: the model; it needs no head.
        chosen: the probes.
        train: the images that they learn from; all their features are held in memory.
        test: the images that they are tried on, of the same classes.
        where: the name of the data, for messages.
        batch_size: about how many images are run at a time.
        skip_bad: leave bad images out; or else the first one is an error.
        on_skipped: is told, once, what is wrong with each one that is left out.

    Raises:
        UserError: the images have no classes, or different ones, or one is bad.
    """
    if not train.class_names or train.class_names != test.class_names:
        raise UserError(f"{where}: --probe_split and --split have no classes, or different ones; name other splits.")
    count = len(train.class_names)
    told: set[str] = set()

    def skip(dataset: Dataset, index: int) -> None:
        reason = " ".join(dataset.fault(index).splitlines())
        if reason not in told:  # padding repeats the last example
            told.add(reason)
            on_skipped(reason)

    def outputs(params, batch):
        features = trained.outputs(params, batch["image"])["features"].astype(jnp.float32)
        return {"features": features, "labels": batch["label"]}

    inference = Inference(trained, outputs, batch_size)

    def of(source: Source) -> tuple[np.ndarray, np.ndarray]:
        dataset = Dataset(source, Labelled(fitting(trained), count), skip_bad=skip_bad)
        parts = list(inference.rows(dataset, Loader(-1, -1, 2), skip))
        return np.concatenate([part["features"] for part in parts]), np.concatenate([part["labels"] for part in parts])

    return probes.evaluate(chosen, *of(train), *of(test), count)
