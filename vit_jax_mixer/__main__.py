"""All commands as one: `vit-mixer COMMAND ...`, or `python -m vit_jax_mixer COMMAND ...`.

Each is a door of its own, `python -m vit_jax_mixer.COMMAND`; nothing of it is loaded before it is asked for.
"""

import ast
import runpy
import sys
from importlib import metadata
from pathlib import Path

import vit_jax_mixer
from vit_jax_mixer import cli, completion
from vit_jax_mixer.errors import printable, suggest

# What a new user needs first comes first. `train` is the door main.py.
COMMANDS = (
    *("train", "predict", "evaluate", "demo", "export", "convert", "data", "models", "pretrained"),
    *("plan", "sweep", "landscape", "teacher"),
)
_WITH_CONFIG = ("train", "plan", "teacher")  # they take --config and its fields


def main(program: str = "vit-mixer") -> None:
    """Run the command that is named first; the others are told of."""
    cli.program = program
    name, *rest = sys.argv[1:] or ["help"]
    if name == "help" and rest:
        name, rest = rest[0], ["--help"]
    if name in ("help", "-h", "-help", "--help", "-?"):
        print(_help(program))
    elif name in ("--version", "version"):
        print(_version())
    elif name == "completion":
        _complete(rest)
    elif name in COMMANDS:
        sys.argv[1:] = rest
        runpy.run_module(f"vit_jax_mixer.{_door(name)}", run_name="__main__", alter_sys=True)
    else:
        sys.exit(printable(f"error: {name!r} is no command{suggest(name, COMMANDS)}"))


def _door(name: str) -> str:
    return "main" if name == "train" else name


def _about(name: str) -> str:
    """Return what the text of a command says first; the command is not loaded."""
    place = Path(__file__).parent / _door(name)
    file = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_bytes())) or ""
    return text.partition("\n")[0].removesuffix(".")


def _help(program: str) -> str:
    rows = [(name, _about(name)) for name in COMMANDS]
    own = [
        ("help COMMAND", "What a command does, with examples; as COMMAND --help"),
        ("completion SHELL", "Print what completes commands and flags in bash, zsh or fish"),
        ("--version", "Print the version, and those of what it runs on"),
    ]
    examples = [
        f"  {program} train --config=digits",
        f"  {program} predict --model=runs/digits photos",
        f"  {program} train --list",
    ]
    about = (vit_jax_mixer.__doc__ or "").partition(": ")[2]
    about = about[:1].upper() + about[1:]
    return "\n".join([about, "", *examples, "", *cli.in_columns(rows), "", *cli.in_columns(own)])


def _version() -> str:
    parts = [f"{name} {metadata.version(name)}" for name in ("jax", "jaxlib", "flax", "numpy")]
    return f"vit_jax_mixer {vit_jax_mixer.__version__} ({', '.join(parts)}, Python {sys.version.split()[0]})"


def _complete(rest: list[str]) -> None:
    if len(rest) != 1 or rest[0] not in completion.SHELLS:
        sys.exit(f"error: name a shell: {', '.join(completion.SHELLS)}; as in: vit-mixer completion bash")
    commands = {
        name: completion.Command(
            _about(name), completion.flags_of(f"vit_jax_mixer.{_door(name)}", name in _WITH_CONFIG)
        )
        for name in COMMANDS
    }
    print(completion.SHELLS[rest[0]](commands), end="")


if __name__ == "__main__":
    main("python -m vit_jax_mixer")
