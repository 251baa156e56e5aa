"""What completes commands and flags in a shell: scripts for `bash`, `zsh` and `fish`, of what the commands take."""

import importlib
import shlex
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from absl import flags

from vit_jax_mixer import config_file


class Command(NamedTuple):
    """A command as its help has it: what it is for, and what each of its flags means, as ``--top=`` or ``--json``."""

    about: str
    flags: Mapping[str, str]


def flags_of(module: str, with_config: bool) -> dict[str, str]:
    """Return what a command's flags mean.

    Args:
        module: the command's.
        with_config: whether it takes ``--config`` and the fields of a config.
    """
    door = importlib.import_module(module)
    if hasattr(door, "__path__"):
        door = importlib.import_module(f"{module}.__main__")
    tables = [value for value in vars(door).values() if isinstance(value, flags.FlagValues)]
    found = {
        f"--{name}{'' if table[name].boolean else '='}": table[name].help or "" for table in tables for name in table
    }
    for name in ("--flagfile=", "--undefok="):  # absl's own
        found.pop(name, None)
    if with_config:
        found |= {f"--config={name}": about for name, about in config_file.ours().items()}
        found |= {f"--config.{name}=": about for name, about in config_file.fields().items()}
    return found


def bash(commands: Mapping[str, Command]) -> str:
    """Return a script; bash splits what is typed at = and :, and is told only what comes after."""
    cases = "".join(
        f"        {name}) words={shlex.quote(' '.join(each.flags))} ;;\n" for name, each in commands.items()
    )
    return f"""# bash completion of vit-mixer
_vit_mixer() {{
    local typed="${{COMP_LINE:0:COMP_POINT}}" words=
    typed="${{typed##* }}"
    case "${{COMP_WORDS[1]}}" in
{cases}    esac
    [ "$COMP_CWORD" -eq 1 ] && words={shlex.quote(" ".join(commands))}
    COMPREPLY=($(compgen -W "$words" -- "$typed"))
    COMPREPLY=("${{COMPREPLY[@]#"${{typed%"${{typed##*[=:]}}"}}"}}")
    [[ "${{COMPREPLY[0]}}" == *= ]] && compopt -o nospace
}}
complete -o default -F _vit_mixer vit-mixer
"""


def zsh(commands: Mapping[str, Command]) -> str:
    """Return a script that is sourced, or stands in a folder of ``fpath`` as ``_vit-mixer``."""
    cases = "".join(
        f"    {name}) compadd -S '' -- {' '.join(map(shlex.quote, each.flags))} ;;\n" for name, each in commands.items()
    )
    return f"""#compdef vit-mixer
_vit_mixer() {{
  if (( CURRENT == 2 )); then
    compadd -- {" ".join(commands)}
    return
  fi
  case $words[2] in
{cases}  esac
  [[ $PREFIX == -* ]] || _files
}}
if [[ $funcstack[1] == _vit-mixer ]]; then _vit_mixer "$@"; else compdef _vit_mixer vit-mixer; fi
"""


def fish(commands: Mapping[str, Command]) -> str:
    """Return a script."""
    lines = ["# fish completion of vit-mixer"]
    for name, each in commands.items():
        lines.append(f"complete -c vit-mixer -n __fish_use_subcommand -f -a {name} -d {_fish(each.about)}")
        for flag, about in each.flags.items():
            only = f"complete -c vit-mixer -n '__fish_seen_subcommand_from {name}'"
            lines.append(f"{only} -a {_fish(flag)} -d {_fish(about)}")
    return "\n".join(lines) + "\n"


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS: Mapping[str, Callable[[Mapping[str, Command]], str]] = MappingProxyType(
    {"bash": bash, "zsh": zsh, "fish": fish}
)
