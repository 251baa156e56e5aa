"""What a model says of files."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax_mixer.data.pipeline import SKIPPED, Dataset, Example, Loader
from vit_jax_mixer.data.sources import Source
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.predictors import Answer
from vit_jax_mixer.run.inference import Inference
from vit_jax_mixer.trained import Trained


def predict(
    trained: Trained, source: Source, *, top: int, batch_size: int, on_bad: Callable[[str], None]
) -> Iterator[Any]:
    """Yield what a model says of examples, an `Answer` of the model's kind each, in their order.

    Args:
        trained: the model.
        source: of `Predictor.open`.
        top: how many classes are told, of a model that knows some; all, if there are fewer.
        batch_size: about how many examples are run at a time.
        on_bad: is told, once, what is wrong with an example that cannot be read, and that is left out.
    """
    predictor, like = trained.about, trained.about.input()

    class PassingOver(Dataset):
        """Examples with their place; a bad one is left out, and none takes its place."""

        def get(self, index: int, rng: np.random.Generator) -> Example:
            try:
                return {**super().get(index, rng), "place": np.int32(index), SKIPPED: np.int64(-1)}
            except UserError:
                blank = np.zeros(like.shape, like.dtype)
                return {predictor.field: blank, "place": np.int32(index), SKIPPED: np.int64(index)}

    def outputs(params, batch):
        found = trained.outputs(params, batch[predictor.field])
        features = {"features": found["features"]} if "features" in found else {}
        return {**predictor.told(found, top), **features, "place": batch["place"]}

    dataset = PassingOver(source, predictor.reader())
    bad: set[int] = set()

    def skip(dataset: Dataset, index: int) -> None:
        if index not in bad:  # padding repeats the last example
            bad.add(index)
            on_bad(dataset.fault(index))

    inference = Inference(trained, outputs, batch_size, {"place": np.zeros((), np.int32)})
    for rows in inference.rows(dataset, Loader(-1, -1, 2), skip):
        for i, place in enumerate(rows["place"]):
            yield predictor.answer(source.where(int(place)), {name: values[i] for name, values in rows.items()})


def save_features(target: Path, answers: Sequence[Answer]) -> None:
    """Write ``features`` f32[n, C] and ``files``, at once or not at all; `numpy.load` reads them.

    Raises:
        UserError: it cannot be written.
    """
    new = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with new.open("wb") as file:
            np.savez(
                file,
                features=np.stack([np.asarray(answer.features, np.float32) for answer in answers]),
                files=np.array([answer.name for answer in answers]),
            )
        new.replace(target)
    except OSError as error:
        raise UserError(f"cannot write {target} ({error.strerror}); choose another --features.") from error
    finally:
        new.unlink(missing_ok=True)
