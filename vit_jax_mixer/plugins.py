"""A user's own code behind a name: ``module:Name``, of a file beside the config or of an installed package.

Names in a config, which is a program of the user's, and on a command line may be imported. Data, as a
``model.json`` from somebody else, may name such code too; it runs only where the user names its module
as well, by ``--module=my_module`` or `allow`.
"""

import importlib
import importlib.machinery
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vit_jax_mixer.errors import UserError, suggest

_WORD = r"[^\W\d]\w*"
NAME = re.compile(rf"({_WORD}(?:\.{_WORD})*):({_WORD})")  # module, Name

_allowed: set[str] = set()
_folders: list[str] = []  # in which users' files are looked for, after all else that Python knows


def allow(*modules: str) -> None:
    """Let these modules be imported, whoever names them."""
    _allowed.update(modules)


def allow_all_in(value: Any) -> None:
    """Let the modules be imported that a config, a part of one, or words of a command line name."""
    if isinstance(value, str):
        allow(*(match[1] for match in NAME.finditer(value)))
    elif isinstance(value, Mapping):
        for name, part in value.items():
            if str(name).rpartition(".")[2] == "name":  # of a task, which may be a module alone
                allow(str(part))
            allow_all_in(part)
    elif isinstance(value, Iterable):
        for part in value:
            allow_all_in(part)


def imported_of(value: Any) -> list[str]:
    """Return the modules that a description names, of those that are imported: what who reads it must allow."""
    if isinstance(value, str):
        return [match[1] for match in NAME.finditer(value) if match[1] in sys.modules]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return list(dict.fromkeys(name for part in parts for name in imported_of(part)))


def look_in(*folders: Path) -> None:
    """Look for modules in these folders too, and no longer in those of an earlier call; so do processes begun later."""
    for former in _folders:
        sys.path.remove(former)
    _folders[:] = dict.fromkeys(str(folder.absolute()) for folder in folders)
    sys.path.extend(_folders)


def lookup(table: Mapping[str, Any], name: str, where: str, *, alone: str = "") -> Any:
    """Return ``table[name]``, or what a name of the form ``module:Name`` means.

    Args:
        table: what is known by its name.
        name: as a user has it.
        where: the field or file that has it, for messages.
        alone: what a module's name alone means in it; '' for nothing.

    Raises:
        UserError: there is no such name or module, or the module may not be imported. An error inside of the
            module goes through.
    """
    if name in table:
        return table[name]
    own = NAME.fullmatch(f"{name}:{alone}" if alone and _is_there(name) else name)
    if not own:
        hint = suggest(name, table) if table else "; name one of yours, as my_module:Name."
        raise UserError(f"{where}: {name!r} is not known{hint}")
    found = _module(own[1], f"{where}: {name!r}", table)
    if not hasattr(found, own[2]):
        public = [one for one in vars(found) if not one.startswith("_")]
        raise UserError(f"{where}: the module {own[1]} has no {own[2]!r}{suggest(own[2], public)}")
    return getattr(found, own[2])


def _is_there(module: str) -> bool:
    """Say whether there is a module of that name, or the package that would have it."""
    top = module.partition(".")[0]
    importlib.invalidate_caches()  # it may have been written just now
    return top in sys.modules or (bool(top) and importlib.util.find_spec(top) is not None)


def _module(name: str, where: str, table: Iterable[str]) -> Any:
    missing = name
    if _is_there(name):
        if name not in _allowed:
            raise UserError(
                f"{where} is code of the module {name}, which runs only if you name it too; pass --module={name} if "
                "you trust it."
            )
        try:
            module = importlib.import_module(name)
            _check_place(name.partition(".")[0], where)
            return module
        except ModuleNotFoundError as error:
            if not error.name or not f"{name}.".startswith(f"{error.name}."):
                raise
            missing = error.name
    places = ", ".join([*_folders, "what is installed"])
    raise UserError(f"{where}: there is no module {missing!r} in {places}{suggest(name, table)}")


def _check_place(name: str, where: str) -> None:
    """Raise a `UserError` if another module has taken the place of a user's file of that name."""
    used = getattr(sys.modules[name], "__file__", None) or ""
    for folder in _folders:
        spec = importlib.machinery.PathFinder.find_spec(name, [folder])
        if spec and spec.origin and os.path.realpath(spec.origin) != os.path.realpath(used):
            raise UserError(
                f"{where}: the module {name} is {used or 'one of Python itself'}, which hides {spec.origin}; rename "
                "your file."
            )
