"""Show what the loss looks like around a trained model.

  python -m vit_jax_mixer.landscape runs/digits

It looks at the task's own loss of the first training examples of a run, with what the loss draws (augmentation,
dropout) fixed, and writes to --out, which is `landscape` in the run's folder unless it is named:

landscape.html     all of it on one page
landscape.json     the numbers
spectrum.png       the density of the Hessian's eigenvalues
slice.png          the loss along two random directions, filter-normalised
frequencies.png    how much of each frequency the features have, by depth; of models with tokens on a square

docs/landscape.md says how each is computed. Pictures need the extra `landscape`.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

from absl import flags

from vit_jax_mixer import cli, files
from vit_jax_mixer.errors import UserError, printable

_FLAGS = flags.FlagValues()
_STEP = flags.DEFINE_integer("step", None, "Of the checkpoint; the newest if not given.", flag_values=_FLAGS)
_OUT = flags.DEFINE_string("out", None, "The folder that takes the files; older ones are replaced.", flag_values=_FLAGS)
_EXAMPLES = flags.DEFINE_integer(
    "examples", 1024, "Training examples, rounded to whole batches.", lower_bound=1, flag_values=_FLAGS
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 0, "Examples at a time; 0 for what a training step has at a time.", lower_bound=0, flag_values=_FLAGS
)
_PRODUCTS = flags.DEFINE_integer(
    "products", 40, "Products with the Hessian for each start.", lower_bound=2, upper_bound=1000, flag_values=_FLAGS
)
_STARTS = flags.DEFINE_integer(
    "starts", 2, "Random vectors that density and share are means over.", lower_bound=1, flag_values=_FLAGS
)
_POINTS = flags.DEFINE_integer(
    "points", 21, "Of a side of the slice; odd.", lower_bound=3, upper_bound=1001, flag_values=_FLAGS
)
_REACH = flags.DEFINE_float(
    "reach",
    1.0,
    "How far the slice goes, in norms of the weights.",
    lower_bound=1e-6,
    upper_bound=1e6,
    flag_values=_FLAGS,
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Of the random vectors and directions.", lower_bound=0, upper_bound=2**31, flag_values=_FLAGS
)


def main(argv: list[str]) -> None:
    """Look at what the flags say."""
    if len(argv) != 2:
        raise UserError("name one workdir, as in: python -m vit_jax_mixer.landscape runs/digits")
    if _POINTS.value % 2 == 0:
        raise UserError(f"--points is {_POINTS.value}; it must be odd, so that the parameters are in the middle.")
    if find_spec("matplotlib") is None:  # told before an hour of products, not after
        raise UserError("pictures need matplotlib; pip install 'vit_jax_mixer[landscape]'.")
    workdir = Path(argv[1]).expanduser()
    # Imported here, so that a typo in a flag is answered before JAX is loaded.
    from vit_jax_mixer.landscape import report
    from vit_jax_mixer.landscape.look import look
    from vit_jax_mixer.run.assemble import open_run
    from vit_jax_mixer.trained import open_model

    opened = open_run(workdir, _STEP.value)
    out = Path(_OUT.value).expanduser() if _OUT.value else workdir / "landscape"
    step = int(opened.state.step)
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = look(
            opened,
            open_model(str(workdir / "checkpoints" / str(step))) if opened.task.about() else None,
            _tell,
            examples=_EXAMPLES.value,
            batch_size=_BATCH_SIZE.value,
            products=_PRODUCTS.value,
            starts=_STARTS.value,
            points=_POINTS.value,
            reach=_REACH.value,
            seed=_SEED.value,
        )
        given = {"run": str(workdir), "step": f"{step:,}"}
        pictures = report.pictures(found)
        for name, data in pictures.items():
            files.write_atomically(out / name, data)
        told = {"run": str(workdir), "step": step, **found.as_json()}
        files.write_atomically(out / "landscape.json", json.dumps(told, allow_nan=False) + "\n")
        files.write_atomically(out / "landscape.html", report.page(given, found, pictures))
        if not found.frequencies:
            (out / "frequencies.png").unlink(missing_ok=True)  # of another look
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error.strerror}); choose another --out.") from error
    value, accuracy = found.top()[0]
    print(f"loss {found.loss:.4f}  largest Hessian eigenvalue {value:.5g} (off by {accuracy:.1g} at most)")
    print(printable(f"{out / 'landscape.html'} shows it all"))


def _tell(what: str, done: int, of: int) -> None:
    """Draw a bar on a terminal; elsewhere a line when a part is done."""
    if sys.stderr.isatty():
        bar = "#" * (30 * done // of)
        print(f"\r  {what:9}  {bar:<30} {done}/{of}\033[K", end="\n" if done == of else "", file=sys.stderr, flush=True)
    elif done == of:
        print(f"{what}: {done} of {of}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main, _FLAGS)
