"""What a model says of files."""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax_mixer import files
from vit_jax_mixer.data.pipeline import SKIPPED, Dataset, Example, Loader
from vit_jax_mixer.data.sources import Source
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.predictors import Answer
from vit_jax_mixer.run.inference import Inference
from vit_jax_mixer.trained import Trained


def predict(
    trained: Trained,
    source: Source,
    *,
    top: int,
    batch_size: int,
    on_bad: Callable[[str], None],
    on_picture: Callable[[Any, Any], None] | None = None,
) -> Iterator[Any]:
    """Yield what a model says of examples: `Asking` once; its arguments, and those of its call."""
    asking = Asking(trained, top=top, batch_size=batch_size, explain=on_picture is not None)
    return asking(source, on_bad, on_picture)


class Asking:
    """Asks a model any number of times; it is placed on the devices, and compiled for each shape, once."""

    def __init__(self, trained: Trained, *, top: int, batch_size: int, explain: bool = False) -> None:
        """Take the model.

        Args:
            trained: the model.
            top: how many classes are told, of a model that knows some; all, if there are fewer.
            batch_size: about how many examples are run at a time.
            explain: whether each answer gets a picture.
        """
        self._predictor = predictor = trained.about

        def outputs(params, batch):
            found = trained.outputs(params, batch[predictor.field])
            features = {"features": found["features"]} if "features" in found else {}
            told = {**predictor.told(found, top), **features, "place": batch["place"]}
            if not explain:
                return told
            return {**told, **predictor.explain(trained.module, params, batch[predictor.field])}

        self._inference = Inference(trained, outputs, batch_size, {"place": np.zeros((), np.int32)})

    def __call__(
        self,
        source: Source,
        on_bad: Callable[[str], None],
        on_picture: Callable[[Any, Any], None] | None = None,
    ) -> Iterator[Any]:
        """Yield what the model says of examples, an `Answer` of the model's kind each, in their order.

        Args:
            source: of `Predictor.open`.
            on_bad: is told, once, what is wrong with an example that cannot be read, and that is left out.
            on_picture: is given each answer, before it is yielded, and the picture that explains it.

        Raises:
            UserError: the model has no explanations, or other answers than finite numbers.
        """
        predictor, like = self._predictor, self._predictor.input()

        class PassingOver(Dataset):
            """Examples with their place; a bad one is left out, and none takes its place."""

            def get(self, index: int, rng: np.random.Generator) -> Example:
                try:
                    return {**super().get(index, rng), "place": np.int32(index), SKIPPED: np.int64(-1)}
                except UserError:
                    blank = np.zeros(like.shape, like.dtype)
                    return {predictor.field: blank, "place": np.int32(index), SKIPPED: np.int64(index)}

        bad: set[int] = set()

        def leave_out(place: int, reason: str) -> None:
            if place not in bad:  # padding repeats the last example
                bad.add(place)
                on_bad(reason)

        def answer_of(place: int, row: dict[str, np.ndarray]) -> Any:
            answer = predictor.answer(source.where(place), row)
            if on_picture is not None:
                on_picture(answer, predictor.picture(answer, row))
            return answer

        dataset = PassingOver(source, predictor.reader(), batches=predictor.batches(source, leave_out))
        rows_of = self._inference.rows
        found = rows_of(dataset, Loader(-1, -1, 2), lambda dataset, place: leave_out(place, dataset.fault(place)))
        waiting: dict[int, Any] = {}  # answers that came before those of earlier examples, as they do by length
        due = 0

        def next_answer() -> Iterator[Any]:
            nonlocal due
            answer = waiting.pop(due) if due in waiting else predictor.of_bad(source.where(due))
            due += 1
            if answer is not None:
                yield answer

        for rows in found:
            for i, place in enumerate(rows["place"].tolist()):
                waiting[place] = answer_of(place, {name: values[i] for name, values in rows.items()})
            while due in waiting or due in bad:
                yield from next_answer()
        while due in bad:  # the last ones
            yield from next_answer()


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


class Pictures:
    """Writes a picture an answer: that of ``photos/a/b.jpg`` is ``a/b.jpg.png``, where all are below ``photos``."""

    def __init__(self, target: Path, names: Sequence[str]) -> None:
        """Take the folder, which need not be there, and the names of all examples."""
        self._target = target
        self._below = os.path.commonpath([os.path.dirname(os.path.abspath(name)) for name in names])

    def __call__(self, answer: Answer, picture: Any) -> None:
        """Write one, at once or not at all; a `UserError` says that it cannot be."""
        place = self._target / f"{os.path.relpath(os.path.abspath(answer.name), self._below)}.png"
        data = io.BytesIO()
        picture.save(data, "PNG")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomically(place, data.getvalue())
        except OSError as error:
            raise UserError(f"cannot write {place} ({error.strerror}); choose another --explain.") from error
