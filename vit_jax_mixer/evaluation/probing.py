"""Probes of a trained model's features on any labelled images, those of other classes too."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from vit_jax_mixer import classes, probes
from vit_jax_mixer.data.pipeline import Dataset, Loader
from vit_jax_mixer.data.sources import Source
from vit_jax_mixer.predictors.base import Labelled
from vit_jax_mixer.run.inference import Inference
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
        test: the images that they are tried on; their classes are those of `train`, by name.
        where: the name of the data, for messages.
        batch_size: about how many images are run at a time.
        skip_bad: leave bad images out; or else the first one is an error.
        on_skipped: is told, once, what is wrong with each one that is left out.

    Raises:
        UserError: the images have no classes, or those of `test` are not those of `train`, or an image is bad.
    """
    for source in (train, test):
        source.check_labelled(where, "a probe")
    classes.check_distinct(train.class_names, where)
    own = np.arange(len(train.class_names), dtype=np.int32)
    matched = classes.match(test.class_names, train.class_names, f"{where}, --split", "--probe_split's")
    told: set[str] = set()
    predictor = trained.about
    predictor.check_features()

    def skip(dataset: Dataset, index: int) -> None:
        reason = " ".join(dataset.fault(index).splitlines())
        if reason not in told:  # padding repeats the last example
            told.add(reason)
            on_skipped(reason)

    def outputs(params, batch):
        features = trained.outputs(params, batch[predictor.field])["features"].astype(jnp.float32)
        return {"features": features, "labels": batch["label"]}

    inference = Inference(trained, outputs, batch_size, {"label": np.zeros((), np.int32)})

    def of(source: Source, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        dataset = Dataset(source, Labelled(predictor.reader(), labels), skip_bad=skip_bad)
        parts = list(inference.rows(dataset, Loader(-1, -1, 2), skip))
        return np.concatenate([part["features"] for part in parts]), np.concatenate([part["labels"] for part in parts])

    return probes.evaluate(chosen, *of(train, own), *of(test, matched), len(own))
