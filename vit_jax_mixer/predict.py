"""Classify images: `python -m vit_jax_mixer.predict --model=runs/digits photos 'more/**/*.jpg'`.

Images are files, folders, which are searched for .jpg, .jpeg, .png, .webp, .bmp and .gif, and
patterns. They are taken in that order, those of a folder or a pattern sorted, and the answers are
printed as they come. A file that cannot be read is told on stderr and passed over; the exit code is
then 1. Which checkpoint of a workdir answers is told on stderr too.
"""

import dataclasses
import itertools
import os
import sys
from pathlib import Path

from absl import flags

from vit_jax_mixer import cli
from vit_jax_mixer.errors import UserError, printable

_FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string(
    "model", None, "A published name, as Mixer-B/16:imagenet1k; a workdir; or a file.", flag_values=_FLAGS
)
_OPS = flags.DEFINE_string(
    "ops", "", "Image operations in the place of the model's own; see docs/data.md.", flag_values=_FLAGS
)
_TOP = flags.DEFINE_integer("top", 5, "How many classes are told of each image.", lower_bound=1, flag_values=_FLAGS)
_JSON = flags.DEFINE_bool("json", False, "Print a JSON object a line.", flag_values=_FLAGS)
_FEATURES = flags.DEFINE_string(
    "features", "", "An .npz file to write, with `features` f32[n, C] and `files`.", flag_values=_FLAGS
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 32, "About how many images are run at a time.", lower_bound=1, flag_values=_FLAGS
)


def main(argv: list[str]) -> None:
    """Print the classes of the images that are named."""
    if not _MODEL.value:
        raise UserError("no --model given; name one, as --model=runs/digits or --model=Mixer-B/16:imagenet1k.")
    if len(argv) < 2:
        raise UserError("name images, as in `python -m vit_jax_mixer.predict --model=runs/digits photos`.")
    target = Path(_FEATURES.value).expanduser()
    if _FEATURES.value:
        _check_target(target)
    # Imported here, so that a typo in a flag is answered before JAX is loaded.
    from vit_jax_mixer.predictions import Prediction, as_json, as_text, columns, find_images, predict, save_features
    from vit_jax_mixer.trained import open_model

    paths = list(itertools.chain.from_iterable(map(find_images, argv[1:])))
    trained = open_model(_MODEL.value, eval_ops=_OPS.value)
    if not trained.about.model["num_classes"] and not _FEATURES.value:
        raise UserError(f"{_MODEL.value} has no head, so it knows no classes; ask for --features=FILE.npz instead.")
    if trained.origin:
        print(printable(f"{_MODEL.value}: {trained.origin}"), file=sys.stderr, flush=True)
    done: list[Prediction] = []
    count, width = 0, min(max(columns(printable(path)) for path in paths), 60)
    for prediction in predict(trained, paths, top=_TOP.value, batch_size=_BATCH_SIZE.value, on_bad=_complain):
        count += 1
        if prediction.classes:
            print(as_json(prediction) if _JSON.value else as_text(prediction, width), flush=True)
        if _FEATURES.value:
            done.append(dataclasses.replace(prediction, classes=()))
    if done:
        save_features(target, done)
    if count < len(paths):
        raise UserError(f"{len(paths) - count} of {len(paths)} files could not be read; they are named above.")


def _check_target(target: Path) -> None:
    """Say before the work that features cannot be written."""
    if target.suffix != ".npz" or target.is_dir() or not os.access(target.parent, os.W_OK):
        raise UserError(f"--features={target} must be a file that ends in .npz, in a folder that can be written.")


def _complain(reason: str) -> None:
    print(printable(" ".join(reason.splitlines())), file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main, _FLAGS)
