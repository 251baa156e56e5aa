"""The command line of training, which planning takes too."""

import dataclasses
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from vit_jax_mixer import cli, config_file
from vit_jax_mixer.errors import UserError

FLAGS = flags.FlagValues()
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run writes, and resumes from; runs/CONFIG_NAME if not given.", flag_values=FLAGS
)
CHANGE_CONFIG = flags.DEFINE_bool(
    "change_config", False, "Resume though the config differs from the workdir's.", flag_values=FLAGS
)
CHANGE_DATA = flags.DEFINE_bool(
    "change_data", False, "Resume though the data differ from those of the workdir's run.", flag_values=FLAGS
)
START_ANEW = flags.DEFINE_bool(
    "start_anew",
    False,
    "Begin from the start where the workdir's run has lost its checkpoints, and write over it.",
    flag_values=FLAGS,
)
DISTRIBUTED = flags.DEFINE_bool(
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


def parse_flags(argv: Sequence[str], values: flags.FlagValues = FLAGS) -> Given:
    """Parse the flags; a missing config file or an unknown field is a `UserError`."""
    argv, name, config = config_file.take(argv)
    if len(argv := cli.parse_flags(argv, values)) > 1:
        raise UserError(f"{argv[1]!r} is no flag; flags begin with -- as in --config=FILE or --config.steps=100.")
    return Given(name, config)
