"""Names of parameters, from those of a file to ours and back, by the tables of `name_tables`."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from vit_jax_mixer import specs
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained.name_tables import CONVENTIONS, Convention

Flat = dict[str, np.ndarray]
Tree = dict[str, Any]


def detect(flat: Mapping[str, Any], where: str) -> str:
    """Return the convention that most of the names follow; the values do not matter.

    A few strange names do not hide the convention, so that `to_ours` can name them.

    Raises:
        UserError: no convention fits at least half of the names, or two fit equally well.
    """
    fits = {key: sum(convention.read(name) is not None for name in flat) for key, convention in CONVENTIONS.items()}
    most = max(fits.values())
    best = [key for key, count in fits.items() if count == most]
    if 2 * most < len(flat) or not most:
        raise UserError(
            f"{where} has parameters of no family known here ({_some(flat)}); "
            f"the names that can be read are those of {', '.join(CONVENTIONS)}."
        )
    if len(best) > 1:
        raise UserError(
            f"{where} has too few parameters ({_some(flat)}) to tell {' from '.join(best)}; give the whole file."
        )
    return best[0]


def to_ours(flat: Mapping[str, np.ndarray], convention: str, where: str) -> Tree:
    """Return the parameters in our names and layout: views of the arrays given, not copies.

    Args:
        flat: arrays in the names of the convention; the head may be missing.
        convention: a key of `CONVENTIONS`, as `detect` returns.
        where: what the arrays come from, for messages.

    Raises:
        UserError: a name is not of the convention, an array has not its number of axes, or two
            names mean the same parameter.
    """
    table = specs.lookup(CONVENTIONS, convention, "naming convention")
    ours: dict[str, np.ndarray] = {}
    for name, value in flat.items():
        found = table.read(name)
        if found is None:
            raise UserError(f"{where}: {name} is no parameter in the names of {convention}; is it another model's?")
        our_name, row = found
        if our_name in ours:
            raise UserError(f"{where} names one parameter twice: {name} is another {our_name}; remove one.")
        try:
            if row.layout.rank not in (None, value.ndim):
                raise ValueError
            ours[our_name] = row.layout.read(value)
        except ValueError as error:
            raise UserError(
                f"{where}: {name} has shape {value.shape}, which {convention} does not give it; is the file whole?"
            ) from error
    return traverse_util.unflatten_dict(ours, sep="/")


def from_ours(tree: Mapping[str, Any], convention: str) -> Flat:
    """Return our parameters in the names and layout of a convention: views where NumPy can.

    Raises:
        UserError: the convention has no name for a parameter, or can only be read.
    """
    table = specs.lookup(CONVENTIONS, convention, "naming convention")
    if not table.writable:
        raise UserError(f"parameters can be read in the names of {convention}, not written; write {table.family}.")
    theirs = {}
    for name, value in _flatten(tree).items():
        found = table.write(name)
        if found is None:
            fitting = ", ".join(conventions_of(tree)) or "none"
            raise UserError(
                f"{convention} has no name for the parameter {name}; conventions for this model: {fitting}."
            )
        their_name, row = found
        theirs[their_name] = row.layout.write(np.asarray(value))
    return theirs


def conventions_of(tree: Mapping[str, Any]) -> list[str]:
    """Return the conventions that have a name for each parameter of a tree of ours, and a place for its axes."""
    ranks = {name: np.ndim(value) for name, value in _flatten(tree).items()}
    return [
        key
        for key, convention in CONVENTIONS.items()
        if ranks and convention.writable and all(_has(convention, name, rank) for name, rank in ranks.items())
    ]


def _has(convention: Convention, name: str, rank: int) -> bool:
    """Say whether a convention has a parameter of ours of that name and number of axes."""
    if (found := convention.write(name)) is None:
        return False
    layout = found[1].layout
    try:
        return layout.rank is None or (bool(layout.write) and layout.write(np.empty((1,) * rank)).ndim == layout.rank)
    except ValueError:
        return False


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    return traverse_util.flatten_dict(dict(tree), sep="/")


def _some(names: Iterable[str]) -> str:
    """Return the first three names, as 'a, b, c, ...'."""
    names = list(names)
    return ", ".join(names[:3] + ["..."] * (len(names) > 3)) or "none at all"
