r"""Write a teacher's logits for a run of distillation.

  python -m vit_jax_mixer.teacher --config=distil --out=runs/logits \
      --config.task.teacher=runs/digits

It takes the config of the run that is to learn from them, with the teacher in config.task.teacher, reads the
run's images in its order, augmented as the student will see them, and writes the logits of config.steps
batches to the folder; the run then gets that folder, as --config.task.teacher=runs/logits. Killed and
started again, it goes on where it was; with more steps, it adds the rest. docs/distillation.md says more.
"""

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from vit_jax_mixer import cli, command_line, config_file
from vit_jax_mixer.errors import UserError, printable

if TYPE_CHECKING:
    from vit_jax_mixer.config import Config

_FLAGS = flags.FlagValues()
_OUT = flags.DEFINE_string("out", None, "The folder that takes the logits.", flag_values=_FLAGS)


def main(given: command_line.Given) -> None:
    """Write what the flags say."""
    if not _OUT.value:
        raise UserError("no --out given; name a folder for the logits, as --out=runs/logits.")
    from vit_jax_mixer.config import Config  # here, so that a typo in a flag is answered before JAX is loaded

    folder = Path(_OUT.value).expanduser()
    try:
        for line in write(Config.of(given.config), folder):
            print(printable(line), flush=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}); choose another --out.") from error


def write(run: "Config", folder: Path) -> Iterator[str]:
    """Write to a folder what is not there of the logits for a run; yield lines that tell of it.

    Raises:
        UserError: the run is no distillation from a model, the folder holds other logits, or they are not finite.
        OSError: the folder cannot be written.
    """
    import jax
    import numpy as np

    from vit_jax_mixer import specs, tasks
    from vit_jax_mixer.data import logits
    from vit_jax_mixer.data.pipeline import POSITION, Loader
    from vit_jax_mixer.run import parallel
    from vit_jax_mixer.run.evaluation import ahead
    from vit_jax_mixer.run.step import augmented
    from vit_jax_mixer.tasks import distillation

    task = tasks.create(run)
    run = run.in_steps(len(task.train_data))
    teacher = getattr(task, "teacher", None)
    if not isinstance(task, distillation.Distillation) or isinstance(teacher, logits.Logits) or teacher is None:
        raise UserError("config.task is no distillation from a model; set config.task.name and config.task.teacher.")
    rows = logits.rows_of_a_file(task.data.num_classes)
    of = logits.Of(*distillation.of_run(run, task.data), str(run.task["teacher"]), teacher.digest, rows)
    out = logits.Logits.begin(folder, of)
    there, wanted = out.whole(), -(-run.steps * run.batch_size // rows)
    yield f"{folder}: {there} of {wanted} files are there, of {rows:,} examples each"

    devices = jax.local_devices()
    how = parallel.Jit(devices=devices[: 1 << (len(devices).bit_length() - 1)])  # so many divide a batch
    size = min(rows, 256)
    batches = specs.call(Loader, run.loader, "config.loader").train_batches(
        task.train_data, seed=run.seed, batch_size=size, start=there * rows // size
    )
    if isinstance(teacher, distillation.Teacher):
        params = how.put_state(teacher.params)
        seen = lambda batch: augmented(task.train_data, run.seed, batch)["image"]
        step = how.eval_step(lambda across, params, batch: teacher.logits(params, seen(batch)))
        images = ({name: batch[name] for name in ("image", POSITION) if name in batch} for batch in batches)
        found = ahead((step(params, batch) for batch in ahead(images, how.put_batch)), lambda logits: logits)
    else:  # the loader has run it
        found = (batch[logits.FIELD] for batch in batches)
    for number in range(there, wanted):
        whole = np.concatenate([np.asarray(part) for part in itertools.islice(found, rows // size)])
        if not np.isfinite(whole).all():
            raise UserError("the teacher's logits are not all finite; its weights are bad, or its dtype is too small.")
        out.write(number, whole)
        yield f"{folder}: {number + 1} of {wanted}"


if __name__ == "__main__":
    cli.run(main, _FLAGS, partial(command_line.parse_flags, values=_FLAGS), more_help=config_file.explain)
