"""Train and evaluate: `python -m vit_jax_mixer.main --config=configs/digits.py`.

Any field of the config can be set, as in `--config.batch_size=64`.
"""

import re
import shlex
import sys
from pathlib import Path

from vit_jax_mixer import cli, command_line, config_file
from vit_jax_mixer.errors import printable


def main(given: command_line.Given) -> None:
    """Train what the flags say."""
    # Imported here, so that a typo in a flag is answered before JAX is loaded.
    import jax
    import numpy as np

    from vit_jax_mixer.run import processes
    from vit_jax_mixer.train import train_and_evaluate

    workdir = command_line.WORKDIR.value or Path("runs") / _config_name(given.name)
    with processes.processes(command_line.DISTRIBUTED.value):
        state = train_and_evaluate(
            given.config,
            workdir,
            change_config=command_line.CHANGE_CONFIG.value,
            change_data=command_line.CHANGE_DATA.value,
            start_anew=command_line.START_ANEW.value,
        )
    if np.max(state.step) < given.config.steps and jax.process_index() == 0:
        print(f"go on with: python -m vit_jax_mixer.main {printable(shlex.join(sys.argv[1:]))}")


def _config_name(path: str) -> str:
    """Return a name for the workdir: 'configs/mixer_b16.py:cifar100' gives 'mixer_b16_cifar100'."""
    file, _, argument = path.partition(":")
    return "_".join([Path(file).stem, *re.findall(r"\w+", argument)])


if __name__ == "__main__":
    cli.run(
        main,
        command_line.FLAGS,
        command_line.parse_flags,
        "interrupted; the same command goes on from the newest checkpoint.",
        config_file.explain,
    )
