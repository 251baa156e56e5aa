"""What a model says of image files."""

import dataclasses
import glob
import json
import os
import textwrap
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from vit_jax_mixer.data.pipeline import SKIPPED, Dataset, Example, Loader
from vit_jax_mixer.data.sources import Source
from vit_jax_mixer.data.sources.files import Files
from vit_jax_mixer.data.sources.layout import IMAGE_SUFFIXES, is_system
from vit_jax_mixer.errors import UserError, printable
from vit_jax_mixer.run import inference
from vit_jax_mixer.tasks.images import labelled
from vit_jax_mixer.trained import Trained


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the model says of a file.

    Attributes:
        file: its path.
        classes: (number, name, probability) of the likeliest, in that order; none without a head.
        features: f32[C], pooled, before the head.
    """

    file: str
    classes: tuple[tuple[int, str, float], ...]
    features: np.ndarray


def predict(
    trained: Trained, paths: Sequence[str], *, top: int, batch_size: int, on_bad: Callable[[str], None]
) -> Iterator[Prediction]:
    """Yield what a model says of image files, in their order.

    Args:
        trained: the model.
        paths: of the files.
        top: how many classes are told; all, if there are fewer.
        batch_size: about how many images are run at a time.
        on_bad: is told, once, what is wrong with a file that cannot be read, and that is left out.
    """

    class PassingOver(Dataset):
        """Files with their place for a label; a bad one is left out, and none takes its place."""

        def get(self, index: int, rng: np.random.Generator) -> Example:
            try:
                return {**super().get(index, rng), SKIPPED: np.int64(-1)}
            except UserError:
                blank = np.zeros(trained.about.image_shape, np.uint8)
                return {"image": blank, "label": np.int32(index), SKIPPED: np.int64(index)}

    def outputs(params, batch):
        found = trained.outputs(params, batch["image"])
        rows = {"place": batch["label"], "features": found["features"]}
        if "probabilities" in found:
            best = jax.lax.top_k(found["probabilities"], min(top, found["probabilities"].shape[-1]))
            rows |= {"probabilities": best[0], "classes": best[1]}
        return rows

    files = Files.of("", [(path, place) for place, path in enumerate(paths)])
    dataset = PassingOver(Source(files, (), files.where), labelled(inference.fitting(trained), np.arange(len(paths))))
    bad: set[int] = set()

    def skip(dataset: Dataset, index: int) -> None:
        if index not in bad:  # padding repeats the last file
            bad.add(index)
            on_bad(dataset.fault(index))

    names = inference.class_names(trained.about)
    for rows in inference.Inference(trained, outputs, batch_size).rows(dataset, Loader(-1, -1, 2), skip):
        for i, place in enumerate(rows["place"]):
            pairs = zip(rows["classes"][i], rows["probabilities"][i], strict=True) if "classes" in rows else ()
            classes = tuple((int(number), names[number], float(share)) for number, share in pairs)
            yield Prediction(paths[int(place)], classes, rows["features"][i])


def find_images(argument: str) -> list[str]:
    """Return the files that an argument stands for: itself, those in a folder, or those that a pattern matches.

    Raises:
        UserError: there are none.
    """
    place = os.path.expanduser(argument)
    if os.path.exists(place):
        found = _in(place)
        if not found:
            raise UserError(f"{argument} holds no image ({', '.join(IMAGE_SUFFIXES)}); name another folder.")
        return found
    if not glob.has_magic(place):
        raise UserError(f"there is no file or folder {argument!r}; name images, folders or patterns as '**/*.jpg'.")
    found = sorted({path for match in glob.glob(place, recursive=True) for path in _in(match)})
    if not found:
        raise UserError(f"no image matches {argument!r}; mend the pattern, in which ** stands for any folders.")
    return found


def _in(path: str) -> list[str]:
    """Return the images below a folder, sorted, without what is hidden or the system's; a file is itself."""
    if not os.path.isdir(path):
        return [path]

    def stop(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename} ({error.strerror}); permit it or name another.") from error

    found = []
    for folder, folders, names in os.walk(path, onerror=stop):
        folders[:] = [name for name in folders if not is_system(name)]
        found += [
            os.path.join(folder, name)
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES) and not is_system(name)
        ]
    return sorted(found)


def as_text(prediction: Prediction, width: int) -> str:
    """Return one line for one class, with the path padded to ``width`` columns, and else a block of lines."""
    file = printable(prediction.file)
    answers = [f"{100 * share:6.2f} %  {printable(name)}" for _, name, share in prediction.classes]
    if len(answers) == 1:
        return f"{file}{' ' * (width - columns(file))}  {answers[0]}"
    wrapped = (textwrap.fill(answer, 78, subsequent_indent=" " * 12, break_long_words=False) for answer in answers)
    return textwrap.indent("\n".join(wrapped), "  ").join([f"{file}\n", ""])


def columns(text: str) -> int:
    """Return how many columns of a terminal a printable text takes: Chinese characters take two, accents none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in ("W", "F") else 1 for c in text
    )


def as_json(prediction: Prediction) -> str:
    """Return a line of JSON, in ASCII, which no terminal changes; Python reads names that are not UTF-8 back."""
    classes = [{"class": k, "name": name, "probability": float(f"{p:.7g}")} for k, name, p in prediction.classes]
    return json.dumps({"file": prediction.file, "predictions": classes})


def save_features(target: Path, predictions: Sequence[Prediction]) -> None:
    """Write ``features`` f32[n, C] and ``files``, at once or not at all; `numpy.load` reads them.

    Raises:
        UserError: it cannot be written.
    """
    new = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with new.open("wb") as file:
            np.savez(
                file,
                features=np.stack([prediction.features for prediction in predictions]).astype(np.float32),
                files=np.array([prediction.file for prediction in predictions]),
            )
        new.replace(target)
    except OSError as error:
        raise UserError(f"cannot write {target} ({error.strerror}); choose another --features.") from error
    finally:
        new.unlink(missing_ok=True)
