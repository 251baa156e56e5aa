"""A folder of images, one folder a class, or without classes."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from vit_jax_mixer import classes
from vit_jax_mixer.data.sources import layout, slices
from vit_jax_mixer.data.sources.base import Source, Splits
from vit_jax_mixer.data.sources.files import read_classes, source_of_files
from vit_jax_mixer.errors import UserError

_HOW = "give the one that holds train/CLASS/x.jpg, or CLASS/x.jpg; or train/x.jpg, or x.jpg, without labels"


def open_folder(place: str) -> Splits:
    """Return the splits of ``DIR/SPLIT/CLASS/**/image``, or `all` of ``DIR/CLASS/**/image``.

    Where images lie in no class, as ``DIR/SPLIT/image`` or ``DIR/image``, they have no labels.
    """
    root = Path(os.path.expanduser(place))
    if place and root.is_file() and layout.unpacked_name(root.name):
        raise layout.packed(str(root))
    if not place or not root.is_dir():
        raise UserError(f"{place or 'folder:'} is not a folder; {_HOW}.")
    here = layout.look(str(root))
    archives = {name: file for file in here.others if (name := layout.unpacked_name(file)) not in ("", *here.folders)}
    if not here.folders and not here.images:
        for file in archives.values():
            raise layout.packed(str(root / file))
        raise UserError(f"{root} holds no folder and no image; {_HOW}.")
    # A split holds classes, which are folders (or were packed); `train` alone may also be a class of locomotives.
    below = {name: layout.look(str(root / name)) for name in here.folders}
    roles = slices.roles(below)
    usual = list(roles)
    holding = [name for name in usual if below[name].folders or (below[name].others and not below[name].images)]
    # Splits of images alone, none of which has a class.
    bare = bool(layout.splits(here.folders)) and not here.images
    bare = bare and any(one.images for one in below.values()) and not any(one.folders for one in below.values())
    whole = bool(usual) and usual == here.folders
    of_splits = (
        bare
        or any(roles[name] == "train" for name in holding)
        or (whole and (bool(holding) or not any(one.images for one in below.values())))
    )
    if not of_splits and (found := layout.holder_of_splits(str(root), here.folders)):
        raise UserError(
            f"{root} holds the splits {', '.join(found[1][:3])} one folder further down; name folder:{found[0]}."
        )
    counts = lambda name: below[name].folders or (bare and below[name].images) or (of_splits and name in usual)
    names = [name for name in here.folders if counts(name)]
    splits: dict[str, Callable[[], Source]] = {name: functools.partial(_open, root, name) for name in names}
    packed = {name: functools.partial(_refuse, str(root / file)) for name, file in archives.items()}
    return {**splits, **packed} if of_splits else {**splits, "all": functools.partial(_open, root, "")}


def _refuse(path: str) -> NoReturn:
    raise layout.packed(path)


def _open(root: Path, split: str) -> Source:
    folder = Path(layout.unwrapped(str(root / split))) if split else root
    classes_file = root / "classes.txt"
    found = layout.read(str(folder), str(classes_file))
    if found.unlabelled:
        bare = [(f"{name}/{file}" if name else file, None) for name, names in found.classes.items() for file in names]
        return source_of_files(folder, bare, (), found.passed_over, unlabelled=found.unlabelled)
    class_names, whose = read_classes(root), f"{classes_file}'s"
    if class_names is None:
        train = _train_folder(root) if split else None
        other = found
        if train and train != split:
            other = layout.read(layout.unwrapped(str(root / train)), str(classes_file))
        named = tuple(name for name in other.classes if name)
        class_names, whose = (named, "the training split's") if named else (tuple(found.classes), "its own")
    labels = classes.match(tuple(found.classes), class_names, str(folder), whose)
    files = (
        (f"{name}/{file}", label)
        for (name, names), label in zip(found.classes.items(), labels.tolist(), strict=True)
        for file in names
    )
    return source_of_files(folder, files, class_names, found.passed_over, _notes(folder, split, class_names))


def _notes(folder: Path, split: str, class_names: Sequence[str]) -> list[str]:
    """Return a sentence on a folder that is perhaps not the one that was meant."""
    first = class_names[0].partition("/")[0] + "/"
    if all(name.startswith(first) for name in class_names):
        return [f"{folder}: all classes lie in its folder {first}, which is a part of their names."]
    if not split and (same := layout.same_below(class_names)):
        each = f"{len(class_names):,} classes, each of {len(same)} folders the same"
        return [f"{folder}: {each}; if {classes.few(same)} are splits, name one as the split, as train={same[0]}."]
    return []


def _train_folder(root: Path) -> str | None:
    """Return the split whose classes all others have."""
    return slices.find("train", layout.look(str(root)).folders)
