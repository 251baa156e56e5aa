"""Train and evaluate: `python -m vit_jax_mixer.main --config=configs/digits.py`.

Any field of the config can be set, as in `--config.batch_size=64`.
"""

import dataclasses
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from vit_jax_mixer import cli, config_file
from vit_jax_mixer.errors import UserError, printable

FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run writes, and resumes from; runs/CONFIG_NAME if not given.", flag_values=FLAGS
)
_CHANGE = flags.DEFINE_bool(
    "change_config", False, "Resume though the config differs from the workdir's.", flag_values=FLAGS
)
_CHANGE_DATA = flags.DEFINE_bool(
    "change_data", False, "Resume though the data differ from those of the workdir's run.", flag_values=FLAGS
)
_START_ANEW = flags.DEFINE_bool(
    "start_anew",
    False,
    "Begin from the start where the workdir's run has lost its checkpoints, and write over it.",
    flag_values=FLAGS,
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    None,
    "Whether this is one of several processes; seen from the environment if not given.",
    flag_values=FLAGS,
)


@dataclasses.dataclass(frozen=True)
class Given:
    """A command line that was taken in: the name of the config, as configs/digits.py, and what it became."""

    name: str
    config: ConfigDict


def main(given: Given) -> None:
    """Train what the flags say."""
    # Imported here, so that a typo in a flag is answered before JAX is loaded.
    import jax
    import numpy as np

    from vit_jax_mixer.run import processes
    from vit_jax_mixer.train import train_and_evaluate

    workdir = _WORKDIR.value or Path("runs") / _config_name(given.name)
    with processes.processes(_DISTRIBUTED.value):
        state = train_and_evaluate(
            given.config,
            workdir,
            change_config=_CHANGE.value,
            change_data=_CHANGE_DATA.value,
            start_anew=_START_ANEW.value,
        )
    if np.max(state.step) < given.config.steps and jax.process_index() == 0:
        print(f"go on with: python -m vit_jax_mixer.main {printable(shlex.join(sys.argv[1:]))}")


def parse_flags(argv: Sequence[str], values: flags.FlagValues = FLAGS) -> Given:
    """Parse the flags; a missing config file or an unknown field is a `UserError`."""
    argv, name, config = config_file.take(argv)
    if len(argv := cli.parse_flags(argv, values)) > 1:
        raise UserError(f"{argv[1]!r} is no flag; flags begin with -- as in --config=FILE or --config.steps=100.")
    return Given(name, config)


def _config_name(path: str) -> str:
    """Return a name for the workdir: 'configs/mixer_b16.py:cifar100' gives 'mixer_b16_cifar100'."""
    file, _, argument = path.partition(":")
    return "_".join([Path(file).stem, *re.findall(r"\w+", argument)])


if __name__ == "__main__":
    cli.run(
        main,
        FLAGS,
        parse_flags,
        "interrupted; the same command goes on from the newest checkpoint.",
        config_file.explain,
    )
