"""Train a model, or go on with a run.

  python -m vit_jax_mixer.main --list
  python -m vit_jax_mixer.main --config=digits
  python -m vit_jax_mixer.main --config=photos --config.data.source=folder:photos
  python -m vit_jax_mixer.main --config=my_config.py --config.batch_size=64

A config is one of ours, by its name, or a file of yours. Any field of it can be set; with --help too, they are
listed. Stopped and called again, a run goes on where it was.
"""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from vit_jax_mixer import cli, command_line, config_file, startup

_FLAGS = flags.FlagValues()
_FLAGS.append_flag_values(command_line.FLAGS)
flags.DEFINE_bool("list", False, "Print what configs there are, and what came of them.", flag_values=_FLAGS)


def main(given: command_line.Given | None) -> None:
    """Train what the flags say."""
    if given is None:
        print(config_file.listed())
        return
    # Imported here, so that a typo in a flag is answered before JAX is loaded.
    from vit_jax_mixer.run import processes
    from vit_jax_mixer.train import train_and_evaluate

    workdir = command_line.WORKDIR.value or Path("runs") / _config_name(given.name)
    with processes.processes(command_line.DISTRIBUTED.value):
        train_and_evaluate(
            given.config,
            workdir,
            change_config=command_line.CHANGE_CONFIG.value,
            change_data=command_line.CHANGE_DATA.value,
            start_anew=command_line.START_ANEW.value,
            command=f"{cli.typed('python -m vit_jax_mixer.main')} {shlex.join(sys.argv[1:])}",
        )


def _parse(argv: Sequence[str]) -> command_line.Given | None:
    """Parse the flags; None where the configs are to be listed."""
    if "--list" in argv:
        return None
    if cli.keeps_memory(argv):
        startup.ask_for_large_pages()  # before the config is read, since all that is done by then is done again
    return command_line.parse_flags(argv)


def _config_name(path: str) -> str:
    """Return a name for the workdir: 'configs/mixer_b16.py:cifar100' gives 'mixer_b16_cifar100'."""
    file, argument = config_file.split(path)
    return "_".join([Path(file).stem, *re.findall(r"\w+", argument or "")])


if __name__ == "__main__":
    cli.run(
        main,
        _FLAGS,
        _parse,
        "interrupted; the same command goes on from the newest checkpoint.",
        config_file.explain,
    )
