"""Ask a model about files: photos, or rows of a table.

  python -m vit_jax_mixer.predict --model=runs/digits photos 'more/**/*.jpg'
  python -m vit_jax_mixer.predict --model=runs/digits --csv photos > answers.csv
  python -m vit_jax_mixer.predict --model=Mixer-B/16:imagenet1k --explain=maps cat.jpg

What the files are is the affair of the model's kind. Images are files, folders, which are searched
for .jpg, .jpeg, .png, .webp, .bmp and .gif, and patterns. They are taken in that order, those of a
folder or a pattern sorted, and the answers are printed as they come, with --csv as a table. A file
that cannot be read is told on stderr and passed over; the exit code is then 1. Which checkpoint of a
workdir answers is told on stderr too.

With --explain=DIR each image also gets a picture there: its likeliest class's exact share of each patch.
"""

import csv
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from vit_jax_mixer import cli
from vit_jax_mixer.errors import UserError, printable

if TYPE_CHECKING:
    from vit_jax_mixer.predictors import Answer

_FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string(
    "model", None, "A published name, as Mixer-B/16:imagenet1k; a workdir; or a file.", flag_values=_FLAGS
)
_OPS = flags.DEFINE_string(
    "ops", "", "Image operations in the place of the model's own; see docs/data.md.", flag_values=_FLAGS
)
_TOP = flags.DEFINE_integer("top", 5, "How many classes are told of each image.", lower_bound=1, flag_values=_FLAGS)
_JSON = flags.DEFINE_bool("json", False, "Print a JSON object a line.", flag_values=_FLAGS)
_CSV = flags.DEFINE_bool("csv", False, "Print a table: CSV, with a line of names.", flag_values=_FLAGS)
_FEATURES = flags.DEFINE_string(
    "features", "", "An .npz file to write, with `features` f32[n, C] and `files`.", flag_values=_FLAGS
)
_EXPLAIN = flags.DEFINE_string(
    "explain", "", "A folder for a picture of each image: where it speaks for its class.", flag_values=_FLAGS
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
    pictures = Path(_EXPLAIN.value).expanduser()
    _check_folder(pictures)
    # Imported here, so that a typo in a flag is answered before JAX is loaded.
    from vit_jax_mixer.predictions import Pictures, predict, save_features
    from vit_jax_mixer.predictors.base import columns
    from vit_jax_mixer.trained import open_model

    trained = open_model(_MODEL.value, eval_ops=_OPS.value)
    if _FEATURES.value:
        trained.about.check_features()
    source = trained.about.open(argv[1:])
    if (lack := trained.about.lack()) and not _FEATURES.value:
        raise UserError(f"{_MODEL.value} {lack}; ask for --features=FILE.npz instead.")
    if trained.origin:
        print(printable(f"{_MODEL.value}: {trained.origin}"), file=sys.stderr, flush=True)
    for line in source.remarks():
        print(printable(line), file=sys.stderr, flush=True)
    done: list[Answer] = []
    names = [source.where(i) for i in range(len(source.examples))]
    width = min(max(columns(printable(name)) for name in names), 60)
    draw = Pictures(pictures, names) if _EXPLAIN.value else None
    bad = 0

    def complain(reason: str) -> None:
        nonlocal bad
        bad += 1
        print(printable(" ".join(reason.splitlines())), file=sys.stderr, flush=True)

    how: dict[str, Any] = dict(top=_TOP.value, batch_size=_BATCH_SIZE.value, on_bad=complain, on_picture=draw)
    show = as_json if _JSON.value else _Table() if _CSV.value else lambda answer: answer.text(width)
    for answer in predict(trained, source, **how):
        if not lack:
            print(show(answer), flush=True)
        if _FEATURES.value:
            done.append(answer)
    if done:
        save_features(target, done)
    if bad:
        raise UserError(f"{bad} of {len(names)} {trained.about.inputs} could not be read; they are named above.")


def as_json(answer: "Answer") -> str:
    """Return a line of JSON, in ASCII, which no terminal changes; Python reads names that are not UTF-8 back."""
    return json.dumps(answer.record())


class _Table:
    """Gives answers the lines of a CSV table, the first with the names of the columns before it."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._writer: Any = None

    def write(self, line: str) -> None:
        """Take a line of the writer's."""
        self._lines.append(line.rstrip("\r\n"))

    def __call__(self, answer: "Answer") -> str:
        cells = answer.cells()
        self._lines = []
        if self._writer is None:
            self._writer = csv.DictWriter(self, list(cells))
            self._writer.writeheader()
        self._writer.writerow({name: _cell(value) for name, value in cells.items()})
        return "\n".join(self._lines)


def _cell(value: Any) -> Any:
    from vit_jax_mixer.predictors.classification.confusion import cell

    return cell(value) if isinstance(value, str) else value


def _check_target(target: Path) -> None:
    """Say before the work that features cannot be written."""
    if target.suffix != ".npz" or target.is_dir() or not os.access(target.parent, os.W_OK):
        raise UserError(f"--features={target} must be a file that ends in .npz, in a folder that can be written.")


def _check_folder(target: Path) -> None:
    """Say before the work that pictures cannot be written."""
    there = next(place for place in (target, *target.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"--explain={target} must be a folder that can be written, or a place for one; name another.")


if __name__ == "__main__":
    cli.run(main, _FLAGS)
