"""From what a person typed in a config to a call, with one sentence where it does not fit.

A *section* is a dict of fields, as in ``config.model``. A *spec* is a name with optional literal
arguments, as in ``adamw(weight_decay=0.1)`` or ``random_shift(2)``. Nothing in it is executed.
"""

import ast
import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any

from vit_jax_mixer import plugins
from vit_jax_mixer.errors import UserError, suggest


@dataclasses.dataclass(frozen=True)
class Within:
    """The numbers that a parameter may be, both ends included, as in ``rate: Annotated[float, Within(0, 1)]``."""

    least: float
    most: float = math.inf

    def __str__(self) -> str:
        return f"{self.least:,} or more" if self.most == math.inf else f"from {self.least:,} to {self.most:,}"


Count = Annotated[int, Within(1, 2**31 - 1)]  # of what there is at least one of
Size = Annotated[int, Within(1, 1 << 20)]  # of one axis of an array
Rate = Annotated[float, Within(0, 1)]
Share = Annotated[float, Within(0, 0.999999)]  # of a decay or a dropout, less than 1 in float32 too


def lookup(table: Mapping[str, Any], name: str, where: str) -> Any:
    """Return ``table[name]``; a name that is not there is a `UserError` with the nearest one."""
    if name not in table:
        raise UserError(f"{where}: {name!r} is not known{suggest(name, table)}")
    return table[name]


def call(function: Callable[..., Any], section: Mapping[str, Any], where: str, **given: Any) -> Any:
    """Call ``function(**given, **section)``, where the section's names come from a person.

    Thus every field of the section reaches someone who reads it, or is an error. What the function
    raises goes through.

    Raises:
        UserError: a field that the function does not take, that it needs and is missing, that
            is not of the type that it is annotated with, or a number that is not `Within` its range;
            or the function, which a person may have named, is none.
    """
    _check_callable(function, where)
    parameters = parameters_of(function, given)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in _signature(function).parameters.values())
    for name in section:
        if name not in parameters and not takes_any:
            raise UserError(f"{where} has no field {name!r}{suggest(name, parameters)}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in section:
            raise UserError(f"{where} lacks the field {name!r}; add it.")
        if name in section and (expected := misfit(section[name], parameter.annotation)):
            raise UserError(f"{where}: {name} is {_short(section[name])}; it must be {expected}.")
    takes = {name: _kinds(parameter.annotation) for name, parameter in parameters.items()}
    # A whole number may be written for a float; who takes floats need not know of it.
    whole = {
        n: float(v) for n, v in section.items() if type(v) is int and {float, int} & set(takes.get(n, ())) == {float}
    }
    return function(**given, **{**section, **whole})


def build(table: Mapping[str, Callable[..., Any]], spec: str, where: str, **given: Any) -> Any:
    """Call the entry of ``table`` that ``spec`` names, with the spec's arguments and ``given``.

    The name may be of a user's own, as ``my_module:blur(2)``.

    Raises:
        UserError: no such entry, or arguments that it does not take.
    """
    name, args, kwargs = parse(spec, where)
    function = plugins.lookup(table, name, where)
    _check_callable(function, f"{where}: {name}")
    names = list(parameters_of(function, given))
    if len(args) > len(names) or set(names[: len(args)]) & set(kwargs):
        raise UserError(f"{where}: {spec!r} has too many arguments; {name} takes {', '.join(names) or 'none'}.")
    return call(function, {**dict(zip(names, args, strict=False)), **kwargs}, f"{where}: {name}", **given)


def parse(spec: str, where: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Split ``"name(1, key=2)"`` into ``("name", [1], {"key": 2})``; the name may be ``module:name``.

    Parentheses may be missing.

    Raises:
        UserError: the text is not of that form, or an argument is not a literal.
    """
    text = spec.strip()
    module = f"{own[1]}:" if (own := plugins.NAME.match(text)) else ""
    try:
        node = ast.parse(text[len(module) :], mode="eval").body
        if isinstance(node, ast.Name):
            return module + node.id, [], {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            keywords = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg}
            if len(keywords) == len(node.keywords):  # neither **mapping nor a name given twice
                return module + node.func.id, [ast.literal_eval(a) for a in node.args], keywords
    except (SyntaxError, ValueError):
        pass
    raise UserError(f"{where}: {spec!r} is not of the form name or name(1, key=2) with literal arguments.")


def _check_callable(function: object, where: str) -> None:
    if not callable(function):
        raise UserError(f"{where} is of type {type(function).__name__}; name a function or a class.")


def misfit(value: Any, annotation: Any) -> str:
    """Return what a value must be, by the annotation of its parameter; '' if it is, or if that says nothing plain."""
    within = [part for part in getattr(annotation, "__metadata__", ()) if isinstance(part, Within)]
    kinds = _kinds(annotation)
    if not all(kind in (int, float, str, bool, types.NoneType) for kind in kinds):
        return ""  # checked where it is used
    truth = isinstance(value, bool)  # which Python counts among the integers
    if not (bool in kinds if truth else isinstance(value, tuple(kinds)) or (float in kinds and isinstance(value, int))):
        return f"of type {' or '.join('None' if kind is types.NoneType else kind.__name__ for kind in kinds)}"
    if isinstance(value, (int, float)) and not truth:
        if not -(2**63) <= value < 2**63:  # a number that is not finite, too
            return "a finite number of 64 bits"
        for one in within:
            if not one.least <= value <= one.most:
                return str(one)
    return ""


def _kinds(annotation: Any) -> list[Any]:
    """Return the types that an annotation is one of."""
    if typing.get_origin(annotation) is Annotated:
        annotation = annotation.__origin__
    return list(typing.get_args(annotation)) if isinstance(annotation, types.UnionType) else [annotation]


def _short(value: Any) -> str:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to write thousands of digits
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature; under ``from __future__ import annotations`` its types are evaluated."""
    try:
        return inspect.signature(function, eval_str=True)
    except (NameError, SyntaxError, TypeError):  # as a name that only type checkers import
        return inspect.signature(function)


def parameters_of(function: Callable[..., Any], given: Collection[str]) -> dict[str, inspect.Parameter]:
    """Return the parameters that a person may name: neither ``given`` nor ``**kwargs``."""
    parameters = _signature(function).parameters
    return {n: p for n, p in parameters.items() if n not in given and p.kind is not p.VAR_KEYWORD}
