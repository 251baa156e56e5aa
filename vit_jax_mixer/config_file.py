"""From ``--config=FILE:ARGUMENT --config.x.y=VALUE`` to a ConfigDict.

A config file is a program of the user's: it runs once, with the folder that it lies in and ours of configs
within reach. Then the overrides are set, each as the field's type wants it. A model or task that is
chosen by its name brings its own fields with it (`overrides`).
"""

import ast
import collections
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import os
import re
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vit_jax_mixer import cli, plugins
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.overrides import override

_PACKAGE = "config_files"  # that a config and its neighbours are in, while it runs
FOLDER = Path(__file__).parent / "configs"  # of ours, which a clone also has as configs/


def take(argv: Sequence[str]) -> tuple[list[str], str, ConfigDict]:
    """Take what concerns the config from a command line.

    Args:
        argv: with ``--config=FILE`` and ``--config.x.y=VALUE``, or a blank for the equals sign; a field that
            is true or false may also be ``--config.x`` and ``--noconfig.x``.

    Returns:
        what is left, FILE and the config.

    Raises:
        UserError: no file is named, it cannot be used, or a value does not fit.
    """
    left, given, words = [], {}, collections.deque(argv)
    while words:
        word = words.popleft()
        match = re.fullmatch(r"--?(no)?config(?:\.([\w.]+))?(?:=(.*))?", word, re.DOTALL)
        if word == "--":
            left += [word, *words]
            break
        if not match:
            left.append(word)
            continue
        no, name, value = match.groups()
        if no:
            value = "false"
        elif value is None and words and not re.match(r"-[^\d.]", words[0]):
            value = words.popleft()
        given.pop(name, None)  # the last of its name counts, where it stands
        given[name] = value
    reference = given.pop(None, None)
    if not reference:
        raise UserError(f"no --config given; choose one, as --config=digits, of {', '.join(ours())}.")
    config = load(reference)
    plugins.allow_all_in(given)
    override(config, given)
    return left, reference, config


def load(reference: str) -> ConfigDict:
    """Run a config file, once, and return what its ``get_config`` makes.

    Args:
        reference: as ``configs/mixer_b16.py:cifar100``; a file of ours is also found from elsewhere, and by its
            bare name, as ``mixer_b16:cifar100``.

    Raises:
        UserError: there is no such file or module, the file says so by a ValueError, or it sets or
            reads a field that its config does not have. What else goes wrong is a defect of the file.
    """
    name, argument = split(reference)
    path = _find(name)
    plugins.look_in(Path.cwd(), path.parent)  # for the whole run, and for the processes that it starts
    with _importable(path.parent), _told(path):
        spec = importlib.util.spec_from_file_location(f"{_PACKAGE}.{path.stem.replace('.', '_')}", path)
        assert spec is not None  # since it ends in .py
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where dataclasses look for their types
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            raise UserError(f"{path} defines no function get_config; write one that returns the config.")
        arguments = [] if argument is None else [argument]
        try:
            inspect.signature(get_config).bind(*arguments)
        except TypeError as error:
            what = "takes no argument after a colon" if arguments else "needs an argument, as in FILE:ARGUMENT"
            raise UserError(f"{path} {what}; its get_config{inspect.signature(get_config)} says which.") from error
        config = get_config(*arguments)
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config returned a {type(config).__name__}, not a ConfigDict; return it.")
    plugins.allow_all_in(config.to_dict())
    return config.lock()


def split(reference: str) -> tuple[str, str | None]:
    """Return the file of ``FILE:ARGUMENT`` and the argument, None if there is none; a drive, as in C:/x.py, is none."""
    found = re.fullmatch(r"((?:[A-Za-z]:[\\/])?[^:]*)(?::(.*))?", reference, re.DOTALL)
    assert found is not None  # for any text
    return found[1], found[2]


def _find(name: str) -> Path:
    path = Path(name).expanduser()
    named = [path] if path.suffix == ".py" else [path.with_name(f"{path.name}.py")] if path.name else []
    named += [FOLDER / one.name for one in named if one.parent in (Path("configs"), Path("."))]
    for one in named:
        if one.is_file():
            return one
    if path.is_file():
        raise UserError(f"{name} is no config file, since it does not end in .py; name one, as configs/digits.py.")
    raise UserError(f"there is no config file {name}; configs/ holds {', '.join(ours())}.")


def ours() -> dict[str, str]:
    """Return our configs, by their bare names, each with the first line of what it says of itself."""
    return {name: text.partition("\n")[0] for name, text in _texts().items()}


def _texts() -> dict[str, str]:
    return {path.stem: _text(path) for path in sorted(FOLDER.glob("*.py")) if path.name != "common.py"}


def _text(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_bytes())) or ""


class _Ours(importlib.abc.MetaPathFinder):
    """Finds ``configs``, and what is in it, in our package where nothing else finds it."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != FOLDER.name:
            return None
        return importlib.machinery.PathFinder.find_spec(fullname, [str(FOLDER if name else FOLDER.parent)])


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let a config import its neighbours, also as ``from . import x``, and, wherever it lies, ``configs``.

    They are forgotten after it, since other folders have neighbours of the same names.
    """
    finder, place, before = _Ours(), str(folder.absolute()), set(sys.modules)
    package = types.ModuleType(_PACKAGE)
    package.__path__ = [place]
    sys.modules[_PACKAGE] = package
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in sys.modules.keys() - before:
            file = getattr(sys.modules[name], "__file__", None)
            if name.partition(".")[0] == _PACKAGE or (file and os.path.dirname(file) == place):
                del sys.modules[name]


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Tell what a user can mend in a config file by one sentence, with the line; a defect keeps its traceback."""
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""
        raise UserError(f"{error.filename or path}{line}: {error.msg}; mend it.") from error
    except (ImportError, ValueError, KeyError, AttributeError, TypeError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        in_config = "ml_collections" in frames[-1].filename
        if not in_config and not isinstance(error, (ImportError, ValueError)):
            raise
        own = [frame for frame in frames if not re.search(r"ml_collections|importlib|<frozen", frame.filename)][-1]
        raise UserError(f"{own.filename}, line {own.lineno}: {_reason(error) if in_config else error}") from error


def _reason(error: BaseException) -> str:
    """Return what a ConfigDict says, the nearest name first and all the others left out."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    text = str(error.args[0])
    near = re.search(r'Did you mean "(.*?)"', text)
    key = re.match(r"Key \"(.*?)\" does not exist|'(.*?)'(?:$|\n)|(\w+)$", text)
    if key is None:
        return text.splitlines()[0]
    name = next(filter(None, key.groups()))
    return (
        f"{f'did you mean {near[1]!r}? ' if near else ''}The config has no field {name!r}; configs/common.py lists all."
    )


# --- Help ---


def explain(argv: Sequence[str]) -> str:
    """Return the fields of the config that a command line names, each with its value and what it means."""
    words = [re.sub("^--?config=", "", word) for i, word in enumerate(argv) if _names_file(argv, i)]
    if not words:
        return cli.filled(
            f"--config=NAME --help lists the fields of a config. NAME is one of {', '.join(ours())}, or a file."
        )
    comments = fields()
    rows = [(f"--config.{name}={value}", comments.get(name, "")) for name, value in _flat(load(words[-1]))]
    about = cli.typed(cli.filled(_text(_find(split(words[-1])[0]))))
    return "\n".join(["", about, "", f"Fields of {words[-1]}:", *cli.in_columns(rows)])


def listed() -> str:
    """Return our configs, a line or two each: what it is, and what came of it, where its text has a Result."""
    rows = []
    for name, text in _texts().items():
        result = re.search(r"^Result: (.*?)(?=\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
        rows += [(name, text.partition("\n")[0]), *([("", " ".join(result[1].split()))] if result else [])]
    more = "More of one, with its arguments and fields: --config=NAME --help. A file of your own will do as well."
    return "\n".join([*cli.in_columns(rows), "", cli.filled(more)])


def _names_file(argv: Sequence[str], i: int) -> bool:
    return bool(re.match("--?config=", argv[i]) or (i and re.fullmatch("--?config", argv[i - 1])))


def _flat(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def fields() -> dict[str, str]:
    """Return what configs/common.py says of each field: after it, or in the lines above."""
    comments, above = {}, []
    for line in (FOLDER / "common.py").read_text(encoding="utf-8").splitlines():
        code, _, comment = line.strip().partition("# ")
        if not code:
            above.append(comment)
        elif field := re.match(r"config\.([\w.]+) = ", code):
            comments[field[1]] = comment or " ".join(above)
        if code:
            above = []
    return comments
