"""Train and evaluate: `python -m vit_jax_mixer.main --config=configs/digits.py`.

Any field of the config can be set, as in `--config.batch_size=64`.
"""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from vit_jax_mixer import cli
from vit_jax_mixer.errors import UserError, suggest

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, as configs/mixer_b16.py:cifar100.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run writes, and resumes from; runs/CONFIG_NAME if not given."
)
_CHANGE = flags.DEFINE_bool("change_config", False, "Resume though the config differs from the workdir's.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", None, "Whether this is one of several processes; seen from the environment if not given."
)


def main(argv: list[str]) -> None:
    """Train what the flags say."""
    if len(argv) > 1:
        raise UserError(f"{argv[1]!r} is no flag; flags begin with -- as in --workdir=runs/x.")
    # Imported here, so that a typo in a flag is answered before JAX is loaded.
    import jax
    import numpy as np

    from vit_jax_mixer import distributed
    from vit_jax_mixer.train import train_and_evaluate

    name = _config_name(flags.FLAGS["config"].config_filename)  # pyright: ignore[reportAttributeAccessIssue] # a config flag
    workdir = _WORKDIR.value or Path("runs") / name
    with distributed.processes(_DISTRIBUTED.value):
        state = train_and_evaluate(_CONFIG.value, workdir, change_config=_CHANGE.value)
    if np.max(state.step) < _CONFIG.value.steps and jax.process_index() == 0:
        print(f"go on with: python -m vit_jax_mixer.main {shlex.join(sys.argv[1:])}")


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse the flags; a missing config file or an unknown field is a `UserError`."""
    if any(re.match("--?help", arg) for arg in argv):
        return flags.FLAGS(argv)
    given = [arg for arg in argv if re.match("--?config=", arg)]
    if "--config" in argv:
        raise UserError("--config needs an equals sign; write --config=FILE.")
    if not given:
        raise UserError("no --config given; choose one, as --config=configs/digits.py.")
    path = given[-1].split("=", 1)[1].split(":")[0]
    if not Path(path).is_file():
        raise UserError(f"there is no config file {path}; configs/ holds {_configs()}.")
    _check_fields(_without_overrides([argv[0], given[-1]], path), argv)
    return flags.FLAGS(argv)


def _without_overrides(argv: list[str], path: str) -> ConfigDict:
    """Return the config as its file makes it; what goes wrong in there is a `UserError`."""
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except Exception as error:  # the file is the user's own program, so anything may be wrong in it
        reason = str(error).strip().splitlines()[-1]  # the rest is a traceback in words
        raise UserError(f"{path}: {reason}") from error
    if not isinstance(config.value, ConfigDict):
        raise UserError(f"{path}: get_config returned a {type(config.value).__name__}, not a ConfigDict; return it.")
    return config.value


def _check_fields(config: ConfigDict, argv: Sequence[str]) -> None:
    """Raise a `UserError` for the first ``--config.x.y=`` that the config does not have."""
    for arg in argv:
        match = re.match(r"--?(?:no)?config\.([\w.]+)", arg)
        section, where = config, "config"
        for name in match[1].split(".") if match else ():
            if not isinstance(section, ConfigDict):
                raise UserError(f"{where} is a value, so it has no field {name!r}; set {where} itself.")
            if name not in section:
                raise UserError(f"{where} has no field {name!r}{suggest(name, section.keys())}")
            section, where = section[name], f"{where}.{name}"


def _config_name(path: str) -> str:
    """Return a name for the workdir: 'configs/mixer_b16.py:cifar100' gives 'mixer_b16_cifar100'."""
    file, _, argument = path.partition(":")
    return "_".join([Path(file).stem, *re.findall(r"\w+", argument)])


def _configs() -> str:
    return ", ".join(sorted(p.name for p in Path("configs").glob("*.py") if p.name != "common.py")) or "none here"


if __name__ == "__main__":
    cli.run(main, parse_flags, "interrupted; the same command goes on from the newest checkpoint.")
