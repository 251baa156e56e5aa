"""Evaluate a model on labelled examples.

  python -m vit_jax_mixer.evaluate --model=runs/digits --data=tfds:sklearn_digits
  python -m vit_jax_mixer.evaluate --model=runs/photos --data=folder:photos --split=val

It prints how many images are classified right, the loss and the calibration error, and writes to --out,
which is `evaluation` in the model's folder unless it is named:

metrics.json    the same figures, and which images were skipped
per_class.csv   of each class how many images there are, how many are right, precision, recall (accuracy) and F1
confusion.csv   the confusion matrix; above 2,000 classes a row for each pair that occurs
confusion.png   its picture, hits blue and errors red; none above 2,000 classes
predictions.csv each image with its true and its predicted class, the probability and the loss
worst.png       the images with the largest loss

A model of tables has metrics.json, its curves, and the importance of its columns (docs/tables.md) in their place.

Every image counts once. Predictions are among all classes of the model, also where the data have
only some of them; the matrix then has those of the data and those predicted. Classes are matched by
name, whole numbers by value; where no name says which is which, it stops, or takes --by_number.

With --probe='ridge(5)|knn(20)|logistic', simple classifiers of the frozen features take the place of
the model's head: they learn from --probe_split and are tried on --split, whose classes may be any.
It prints their accuracies and writes them to probes.json.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from absl import flags

from vit_jax_mixer import cli, files
from vit_jax_mixer.errors import UserError, printable

if TYPE_CHECKING:
    from vit_jax_mixer.trained import Trained

T = TypeVar("T")

_FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string(
    "model", None, "A published name, as Mixer-B/16:imagenet1k; a workdir; or a file.", flag_values=_FLAGS
)
_DATA = flags.DEFINE_string(
    "data", None, "A dataset, as tfds:sklearn_digits or folder:photos; see docs/data.md.", flag_values=_FLAGS
)
_SPLIT = flags.DEFINE_string("split", "test", "What of it, as test, or train[-500:].", flag_values=_FLAGS)
_OUT = flags.DEFINE_string(
    "out",
    None,
    "The folder that takes the files; older ones there are replaced. Else evaluation/, in the model's folder if it "
    "has one.",
    flag_values=_FLAGS,
)
_OPS = flags.DEFINE_string(
    "ops", "", "Image operations in the place of the model's own; see docs/data.md.", flag_values=_FLAGS
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 128, "About how many images are run at a time.", lower_bound=1, flag_values=_FLAGS
)
_BY_NUMBER = flags.DEFINE_bool(
    "by_number", False, "Match classes with the model's by number, whatever their names.", flag_values=_FLAGS
)
_BAD = flags.DEFINE_enum(
    "on_bad_example", "stop", ["stop", "skip"], "What to do about an image that cannot be read.", flag_values=_FLAGS
)
_PROBE = flags.DEFINE_string(
    "probe", "", "Probes of the features: ridge(shots), knn(k), logistic; joined by |.", flag_values=_FLAGS
)
_PROBE_SPLIT = flags.DEFINE_string(
    "probe_split", "train", "What of the dataset the probes learn from.", flag_values=_FLAGS
)


def main(argv: list[str]) -> None:
    """Evaluate what the flags say."""
    if len(argv) > 1:
        raise UserError(f"{argv[1]!r} is no flag; flags begin with -- as in --data=folder:photos.")
    if not _MODEL.value:
        raise UserError("no --model given; name one, as --model=runs/digits or --model=Mixer-B/16:imagenet1k.")
    if not _DATA.value:
        raise UserError("no --data given; name a dataset, as --data=tfds:sklearn_digits or --data=folder:photos.")
    out = Path(_OUT.value).expanduser() if _OUT.value else _folder_of(_MODEL.value) / "evaluation"
    _or_user_error(out, lambda: out.mkdir(parents=True, exist_ok=True))
    if _PROBE.value:
        return _evaluate_by_probes(_MODEL.value, _DATA.value, out)
    # Imported here, so that a typo in a flag is answered before JAX is loaded.
    from vit_jax_mixer.evaluation import evaluate
    from vit_jax_mixer.trained import open_model

    trained = open_model(_MODEL.value, eval_ops=_OPS.value)
    source = trained.about.open_labelled(_DATA.value, _SPLIT.value, skip_bad=_BAD.value == "skip")
    found = evaluate(
        trained,
        source,
        _DATA.value,
        batch_size=_BATCH_SIZE.value,
        by_number=_BY_NUMBER.value,
        skip_bad=_BAD.value == "skip",
        on_skipped=_complain,
    )
    given = _given(trained)
    written = _or_user_error(out, lambda: found.write(out, given))
    print(printable(f"{_of(trained)} on {_DATA.value}, {_SPLIT.value}"))
    for line in [*map(printable, source.remarks()), *found.lines()]:
        print(line)
    print(printable(f"{out} has {', '.join(written)}"))


def _given(trained: "Trained") -> dict[str, str]:
    """Return what is evaluated, for ``metrics.json``."""
    about = {"model": _MODEL.value, "weights": trained.origin, "data": _DATA.value, "split": _SPLIT.value}
    return {**about, **trained.about.given()}


def _of(trained: "Trained") -> str:
    return f"{_MODEL.value}" + (f" ({trained.origin})" if trained.origin else "")


def _folder_of(model: str) -> Path:
    """Return the folder of a workdir, also of a checkpoint in it, or an export; the one where we are for others."""
    from vit_jax_mixer.pretrained import folder, trees

    given = Path(trees.split(model)[0]).expanduser()
    place = folder.run_of(given)
    place = given if place == given.absolute() else place
    return place if (place / "model.json").is_file() else Path()


def _evaluate_by_probes(model: str, data: str, out: Path) -> None:
    """Try probes of the features in the place of the model's head."""
    from vit_jax_mixer import probes
    from vit_jax_mixer.evaluation import probing
    from vit_jax_mixer.trained import open_model

    chosen = probes.parse(_PROBE.value, "--probe")
    skip_bad = _BAD.value == "skip"
    trained = open_model(model, eval_ops=_OPS.value)
    opened = lambda split: trained.about.open_labelled(data, split, skip_bad=skip_bad)
    train, test = opened(_PROBE_SPLIT.value), opened(_SPLIT.value)
    how: Any = dict(batch_size=_BATCH_SIZE.value, skip_bad=skip_bad, on_skipped=_complain)
    figures = probing.probe(trained, chosen, train, test, data, **how)
    told = {**_given(trained), "probe": _PROBE.value, "probe_split": _PROBE_SPLIT.value, **figures}
    _or_user_error(out, lambda: files.write_atomically(out / "probes.json", json.dumps(told, indent=2) + "\n"))
    print(printable(f"{_of(trained)} on {data}, {_SPLIT.value}, by probes of {_PROBE_SPLIT.value}"))
    for name, value in figures.items():
        print(f"  {name:18}  {100 * value:.2f} %")


def _or_user_error(out: Path, act: Callable[[], T]) -> T:
    try:
        return act()
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error.strerror}); choose another --out.") from error


def _complain(reason: str) -> None:
    print(printable(f"skipped: {reason}"), file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main, _FLAGS)
