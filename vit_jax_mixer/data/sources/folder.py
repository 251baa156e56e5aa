"""A folder of images, one folder a class."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from vit_jax_mixer.data.sources.base import Source, Splits
from vit_jax_mixer.data.sources.files import read_classes, source_of_files
from vit_jax_mixer.errors import UserError, suggest

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
T = TypeVar("T")


def open_folder(place: str) -> Splits:
    """Return the splits of ``DIR/SPLIT/CLASS/**/image``, or `all` of ``DIR/CLASS/**/image``."""
    root = Path(place).expanduser()
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give the one that holds train/CLASS/x.jpg, or CLASS/x.jpg.")
    folders = [entry for entry in _entries(str(root)) if _is_folder(entry)]
    if not folders:
        raise UserError(f"{root} holds no folder; give the one that holds train/CLASS/x.jpg, or CLASS/x.jpg.")
    # A split holds classes, which are folders; `train` alone may also be a class of locomotives.
    names = [entry.name for entry in folders if any(map(_is_folder, _entries(entry.path)))]
    splits = {name: functools.partial(_open, root, name) for name in names}
    return splits if "train" in splits else {**splits, "all": functools.partial(_open, root, "")}


def _open(root: Path, split: str) -> Source:
    folder = root / split
    classes_file = root / "classes.txt"
    found = _scan(folder, classes_file)
    class_names, origin = read_classes(root), f"{classes_file} lists"
    if class_names is None:
        has_train = split and (root / "train").is_dir()
        class_names = tuple(found if split == "train" or not has_train else _scan(root / "train", classes_file))
        origin = "the training split has"
    labels = {name: label for label, name in enumerate(class_names)}
    for name in found:
        if name not in labels:
            raise UserError(f"{folder / name}: {origin} no such class{suggest(name, class_names)}")
    files = ((f"{name}/{file}", labels[name]) for name, names in found.items() for file in names)
    return source_of_files(folder, files, class_names)


def _scan(folder: Path, classes_file: Path) -> dict[str, list[str]]:
    """Return the names of the images in each class below a folder, in the order of the classes.

    A class is a folder that holds images itself, and has its path for a name.
    """
    found = {name: files for name, files in _walk(str(folder), "", (), str(classes_file)) if files}
    if "" in found:
        raise UserError(f"{folder} holds {found[''][0]} outside the class folders; move it into one, or name `all`.")
    if not found:
        raise UserError(f"{folder} holds no class folder with images; give each class a folder.")
    return dict(sorted(found.items()))


def _walk(root: str, name: str, above: Sequence[tuple[int, int]], classes_file: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the folder ``root/name`` and those below it, each with the names of its images.

    Args:
        root: where the walk began.
        name: path from there; empty at the beginning.
        above: the folders on the way, by device and inode, to notice a link that leads back.
        classes_file: the one file that need not be an image.
    """
    path = os.path.join(root, name) if name else root
    status = _or_user_error(path, lambda: os.stat(path))
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise UserError(f"{path} is a link to a folder that it lies in; remove the link.")
    files, folders = [], []
    for entry in _entries(path):
        if _is_folder(entry):
            folders.append(f"{name}/{entry.name}" if name else entry.name)
        elif entry.path != classes_file:
            files.append(_image_name(entry))
    if name and not files and not folders:
        raise UserError(f"{path} holds no image; remove the empty class folder or fill it.")
    yield name, files
    for folder in folders:
        yield from _walk(root, folder, (*above, here), classes_file)


def _image_name(entry: os.DirEntry[str]) -> str:
    """Return the name of an image file; files of another kind are no silent loss."""
    if not entry.name.lower().endswith(IMAGE_SUFFIXES):
        raise UserError(f"{entry.path} is not an image ({', '.join(IMAGE_SUFFIXES)}); convert, move or remove it.")
    return entry.name  # a broken link is found when it is read, as other bad files are


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # as a link to itself
        return False


def _entries(path: str) -> list[os.DirEntry[str]]:
    """Return what a folder holds, but for hidden files, in the order of names."""

    def read() -> list[os.DirEntry[str]]:
        with os.scandir(path) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)

    return _or_user_error(path, read)


def _or_user_error(path: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); restore, remove or permit it.") from error
