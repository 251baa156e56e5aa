"""Fields of a config that a command line sets: ``--config.optim.learning_rate=3e-4``."""

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from vit_jax_mixer import specs
from vit_jax_mixer.config import is_length
from vit_jax_mixer.errors import UserError, suggest

Parameters = Mapping[str, inspect.Parameter]


def override(config: Any, values: Mapping[str, str | None]) -> None:
    """Set fields of a config, as ``{'optim.learning_rate': '3e-4'}``, each read as its type wants it.

    What ``model.name`` or ``task.name`` chooses brings its own fields: they may be set as well, its sizes
    take the place of the config's, and fields that it does not have go if they are at their defaults.

    Args:
        config: a ConfigDict, whose fields have no static types; is changed.
        values: by name; None for a name without a value, which is true.

    Raises:
        UserError: an unknown field, a value that does not fit, or one that would be lost.
    """
    left: dict[str, str] = {}  # by section, what another name took the place of
    with config.unlocked(), config.ignore_type():
        for section in _FIELDS:
            name = values.get(f"{section}.name")
            if name and section in config and (old := config[section].get("name", "")) != name:
                _, sizes = _FIELDS[section](name)
                for size in sizes:
                    if size in config[section]:
                        del config[section][size]
                config[section].name, left[section] = name, old
        for name, text in values.items():
            *sections, field = name.split(".")
            fields, where = config, "config"
            for part in sections:
                if part not in fields:
                    raise UserError(f"{where} has no field {part!r}{suggest(part, fields)}")
                fields, where = fields[part], f"{where}.{part}"
                if not isinstance(fields, ConfigDict):
                    raise UserError(f"{where} is a value, so it has no field {name!r}; set {where} itself.")
            fields[field] = _value(fields, field, text, where)
        for section, old in left.items():
            _drop(config[section], section, old)
        for section in _FIELDS:
            _drop_defaults(config.get(section, {}), section)


def _value(fields: Any, field: str, text: str | None, where: str) -> Any:
    """Return what a text means for a field: by the type of its value, or by what the chosen model or task takes."""
    section = where.partition(".")[2]
    name = f"{where}.{field}"
    own = lambda: _FIELDS[section](fields.get("name", ""))[0] if section in _FIELDS else {}
    if field not in fields:
        parameters = own()
        if field not in parameters:
            raise UserError(f"{where} has no field {field!r}{suggest(field, {*fields, *parameters})}")
        annotation = parameters[field].annotation
    else:
        annotation = int if is_length(field, fields[field]) else type(fields[field])
        if annotation is ConfigDict:
            raise UserError(f"{name} is a section; set its fields, as --{name}.{next(iter(fields[field]), 'x')}=VALUE.")
    if is_length(field, text) and annotation is int:
        return text
    if text is None and annotation is not bool:
        raise UserError(f"--{name} has no value; write --{name}=VALUE.")
    value, expected = _read("true" if text is None else text, annotation)
    if expected and field in fields and field in (parameters := own()):  # as a patch_size of (8, 16)
        value, expected = _read(text or "", parameters[field].annotation)
    if expected:
        raise UserError(f"{name} is {text!r}; it must be {expected}.")
    return value


def _read(text: str, annotation: Any) -> tuple[Any, str]:
    """Return a text's value for an annotation, and what it must be where it does not fit."""
    if annotation is str:
        return text, ""
    if annotation is bool:
        return text.lower() in ("true", "t", "1"), "" if text.lower() in _SWITCH else "true or false"
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        value = text
    if isinstance(value, float) and value.is_integer() and specs.misfit(value, annotation):
        value = int(value)  # a whole number may be written as 1e3
    if annotation in (tuple, list) and not isinstance(value, (tuple, list)):
        return value, "a list of values, as (1, 2)"
    return value, "" if annotation is type(None) else specs.misfit(value, annotation)


_SWITCH = ("true", "t", "1", "false", "f", "0")


def _drop(fields: Any, section: str, old: str) -> None:
    """Take out what the section had for ``old``, and what is now named does not take.

    Raises:
        UserError: such a field is neither a size nor at its default.
    """
    from vit_jax_mixer.configs import common

    try:
        parameters, sizes = _FIELDS[section](old)
    except UserError:  # its name was never a right one
        return
    base = common.get_config()[section]
    taken, _ = _FIELDS[section](fields.name)
    for field, parameter in parameters.items():
        if field == "name" or field in taken or field not in fields:
            continue
        default = base.get(field, parameter.default)
        if fields[field] != default and default is not parameter.empty and field not in sizes:
            raise UserError(
                f"config.{section}.{field} is {fields[field]!r}, but {fields.name} has no such field; "
                f"add --config.{section}.{field}={default} if it is to do without."
            )
        del fields[field]


def _drop_defaults(fields: Any, section: str) -> None:
    """Take out what is at the base config's default, where the model or task that a file names has no such field."""
    from vit_jax_mixer.configs import common

    base = common.get_config()[section]
    if fields.get("name", base.name) != base.name:
        taken, _ = _FIELDS[section](fields.name)
        for field, default in base.items():
            if field != "name" and field not in taken and fields.get(field) == default:
                del fields[field]


def _of_model(name: str) -> tuple[Parameters, Mapping[str, Any]]:
    """Return what may be set of a model, and the sizes that its name stands for."""
    from vit_jax_mixer import models

    entry = models.named(name, "config.model.name")
    return specs.parameters_of(entry.module, ("num_classes", "parent", "name")), entry.sizes


def _of_task(name: str) -> tuple[Parameters, Mapping[str, Any]]:
    from vit_jax_mixer import tasks

    return specs.parameters_of(tasks.creator(name), ("run",)), {}


_FIELDS: Mapping[str, Callable[[str], tuple[Parameters, Mapping[str, Any]]]] = {"model": _of_model, "task": _of_task}
