"""Which fields of a record are the image and its label."""

import re
from collections.abc import Iterable, Mapping, Sequence

from vit_jax_mixer.errors import UserError, suggest

USUAL = {
    "image": ("image", "img", "pixel_values", "images", "picture", "photo", "jpg", "png"),
    "label": ("label", "labels", "fine_label", "class", "target", "category", "y"),
}  # names that people give them, the likeliest first
_NAMED = re.compile(r"(?P<place>.*?)(?P<fields>(?:,(?:image|label|source|target)=[^,]+)+)", re.DOTALL)


def split_fields(place: str) -> tuple[str, dict[str, str]]:
    """Split ``cifar100,label=coarse_label`` into the place and the fields that it names, {'label': 'coarse_label'}.

    Raises:
        UserError: one is named twice.
    """
    match = _NAMED.fullmatch(place)
    if not match:
        return place, {}
    named = [part.split("=", 1) for part in match["fields"][1:].split(",")]
    if len(dict(named)) < len(named):
        raise UserError(f"{match['fields'][1:]} names a field twice; name each once.")
    return match["place"], dict(named)


def choose_label(
    named: Mapping[str, str], fitting: Sequence[str], columns: Iterable[str], where: str, hint: str
) -> tuple[str, str, str]:
    """Return what `choose` does of the label, and why there is none, for `Source.unlabelled`.

    A label that a person named must be there; else only who needs one is told that none is, or several are.

    Args:
        named: what a person named, by role.
        fitting: the fields whose type suits.
        columns: all fields, each perhaps with its type after a colon, for messages.
        where: the dataset, for messages.
        hint: what a label is.
    """
    columns = list(columns)
    try:
        name, note = choose("label", named, fitting, columns, where)
    except UserError as error:
        if "label" in named:
            raise
        return "", "", str(error)
    return name, note, "" if name else lacking("label", hint, columns, where)


def lacking(role: str, hint: str, columns: Iterable[str], where: str) -> str:
    """Return the sentence for a role that no field has."""
    found = ", ".join(columns) or "no fields"
    return f"{where} has no field for {hint}; end the source's name with ,{role}=NAME. It has {found}."


def choose(
    role: str, named: Mapping[str, str], fitting: Sequence[str], columns: Iterable[str], where: str
) -> tuple[str, str]:
    """Return the field of a role, and a note if there are others that it might be.

    Args:
        role: 'image' or 'label'.
        named: what a person named, by role.
        fitting: the fields whose type suits the role.
        columns: all fields, each perhaps with its type after a colon, for messages.
        where: the dataset, for messages.

    Returns:
        ('', '') if none fits.

    Raises:
        UserError: the named one is not there or does not fit, or several do and none has a usual name.
    """
    if role in named:
        name = named[role]
        if name not in fitting:
            kinds = ", ".join(columns)
            raise UserError(f"{where} has no {role} field {name!r}{suggest(name, fitting)} It has {kinds}.")
        return name, ""
    if len(fitting) < 2:
        return (fitting[0] if fitting else ""), ""
    usual = [name for name in USUAL[role] if name in fitting]
    if not usual:
        raise UserError(
            f"{where} has several fields for the {role}, {', '.join(fitting)}; name one after a comma, "
            f"as ...,{role}={fitting[0]}."
        )
    others = ", ".join(name for name in fitting if name != usual[0])
    return usual[0], f"{where}: the {role} is {usual[0]}; for {others}, end the source's name with ,{role}=NAME"
