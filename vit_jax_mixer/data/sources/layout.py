"""What lies in a folder of images: classes, what is no image, and splits where classes were looked for."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from vit_jax_mixer.data.sources.slices import roles
from vit_jax_mixer.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
# What systems and their servers put into folders: Windows, macOS, Linux, Android, Synology, QNAP, NetApp, Thecus,
# Samba, and programs that copy to them. Hidden ones too.
_SYSTEM = re.compile(
    r"""\$recycle\.bin|recycle[rd]|system\ volume\ information|found\.\d{3}|\$extend|\$winreagent|config\.msi|msocache
    |windowsimagebackup|onedrivetemp|wpsettings\.dat|indexervolumeguid|(eh)?thumbs(_vista)?\.db|desktop\.ini
    |iconcache\.db|picasa\.ini|zbthumbnail\.info|.+:zone\.identifier|~\$.+
    |__macosx|icon\r|network\ trash\ folder|temporary\ items|cleanup\ at\ startup|thevolumesettingsfolder
    |thefindbycontentfolder|desktop\ d[bf]|backups\.backupdb
    |lost\+found|lost\.dir|aquota\.(user|group)|__pycache__
    |@eadir|@tmp|@sharebin|@database|@docker|@appstore|(.+)?@syno.+|@recycle|@recently-snapshot|@transcode|@__thumb
    |_nas_recycle_.+|@snapshots?|[\#]snapshot|~snapshot|[\#]recycle|@gmt-.+|_gsdata_""",
    re.VERBOSE,
)
_ARCHIVE = re.compile(r"(.+?)(\.tar)?\.(zip|7z|rar|tar|tgz|tbz2?|txz|tzst|gz|bz2|xz|zst)", re.IGNORECASE)
T = TypeVar("T")


@dataclass
class Layout:
    """What lies below a folder.

    Attributes:
        classes: the names of the images in each class, in the order of the classes; a class is a folder that
            holds images itself, and has its path for a name. Those in no folder have ''.
        passed_over: the other files, and folders that hold nothing else; those of the system only beside others.
    """

    classes: dict[str, list[str]] = field(default_factory=dict)
    passed_over: tuple[str, ...] = ()
    unlabelled: str = ""  # why there are no classes after all, and what to do about it


def read(root: str, classes_file: str) -> Layout:
    """Look for class folders below ``root``.

    Args:
        root: the folder.
        classes_file: the one file that need not be an image.

    Raises:
        UserError: there are no images, or splits in the place of classes; a folder cannot be read.
    """
    classes: dict[str, list[str]] = {}
    strays: list[str] = []
    of_system: list[str] = []
    for name, here in _walk(root, "", (), classes_file):
        path = os.path.join(root, name) if name else root
        _check_no_splits(path, here.folders)
        if here.images:
            classes[name] = here.images
        elif not here.folders:
            _check_unpacked(path, here.others)
            if name:
                strays.append(f"{path} (no image in it)")
        strays += [os.path.join(path, other) for other in here.others]
        of_system += [os.path.join(path, other) for other in here.of_system]
    if not classes:
        lie = f"; it holds {', '.join(strays[:3])}" if strays else ""
        raise UserError(
            f"{root} holds no class folder with images ({', '.join(IMAGE_SUFFIXES)}){lie}. Give each class a folder."
        )
    outside = ""
    if "" in classes:
        outside = (
            f"{root} holds {classes[''][0]} outside the class folders; move it into one, name `all`, or list the "
            "images with their labels in a manifest."
        )
    return Layout(dict(sorted(classes.items())), tuple(strays + of_system) if strays else (), outside)


@dataclass
class Here:
    """The names in one folder, hidden ones left out."""

    folders: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    of_system: list[str] = field(default_factory=list)


def look(path: str) -> Here:
    """Sort the names in a folder by what they are."""

    def listed() -> list[os.DirEntry[str]]:
        with os.scandir(path) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)

    here = Here()
    for entry in _or_user_error(path, listed):
        folder = _is_folder(entry)
        if is_system(entry.name):
            here.of_system += [] if folder else [entry.name]
        elif folder:
            here.folders.append(entry.name)
        elif entry.name.lower().endswith(IMAGE_SUFFIXES):
            here.images.append(entry.name)  # a broken link is found when it is read, as other bad files are
        else:
            here.others.append(entry.name)
    return here


def is_system(name: str) -> bool:
    """Say whether a file or folder of that name is the system's, and none of the user's."""
    return name.startswith(".") or bool(_SYSTEM.fullmatch(name.casefold()))


def unwrapped(path: str) -> str:
    """Return a folder, or the one of the same name that is all it holds, as where an archive was unpacked into it."""
    here, inner = look(path), os.path.join(path, os.path.basename(path))
    alone = here.folders == [os.path.basename(path)] and not (here.images or here.others)
    return unwrapped(inner) if alone and look(inner).folders else path


def same_below(names: Sequence[str]) -> list[str]:
    """Return the folders at the top of the paths of classes, if all hold the same, as splits do."""
    below: dict[str, set[str]] = {}
    for name in names:
        top, _, rest = name.partition("/")
        below.setdefault(top, set()).add(rest)
    first = next(iter(below.values()), set())
    return list(below) if len(below) > 1 and "" not in first and all(one == first for one in below.values()) else []


def unpacked_name(name: str) -> str:
    """Return what an archive is called once it is unpacked; '' for the name of another file."""
    match = _ARCHIVE.fullmatch(name)
    return match[1] if match else ""


def holder_of_splits(root: str, folders: Sequence[str], depth: int = 2) -> tuple[str, list[str]] | None:
    """Return a folder below ``root`` that holds splits with class folders, and their names; among many, none."""
    if len(folders) > 20:
        return None
    below = {os.path.join(root, name): look(os.path.join(root, name)).folders for name in folders}
    for path, names in below.items():
        found = splits(names)
        if found and any(look(os.path.join(path, name)).folders for name in found):
            return path, found
    deeper = (holder_of_splits(path, names, depth - 1) for path, names in below.items()) if depth > 1 else ()
    return next(filter(None, deeper), None)


def packed(path: str) -> UserError:
    """Return the sentence for an archive in the place of a folder."""
    return UserError(f"{path} is packed; unpack it, and name the folder that comes out of it.")


def _walk(root: str, name: str, above: Sequence[tuple[int, int]], classes_file: str) -> Iterator[tuple[str, Here]]:
    """Yield the folder ``root/name`` and those below it, each with what lies in it.

    Args:
        root: where the walk began.
        name: path from there; empty at the beginning.
        above: the folders on the way, by device and inode, to notice a link that leads back.
        classes_file: is left out.
    """
    path = os.path.join(root, name) if name else root
    status = _or_user_error(path, lambda: os.stat(path))
    place = (status.st_dev, status.st_ino)
    if place in above:
        raise UserError(f"{path} is a link to a folder that it lies in; remove the link.")
    here = look(path)
    here.others = [other for other in here.others if os.path.join(path, other) != classes_file]
    yield name, here
    for folder in here.folders:
        yield from _walk(root, f"{name}/{folder}" if name else folder, (*above, place), classes_file)


def splits(folders: Sequence[str]) -> list[str]:
    """Return those of some folders that are splits by their names; a class of that name has other classes beside it."""
    found = roles(folders)
    return list(found) if len(found) == len(folders) or len(set(found.values())) > 1 else []


def _check_no_splits(path: str, folders: Sequence[str]) -> None:
    if not (found := splits(folders)):
        return
    held = f"{path} holds {' and '.join(found[:3])}, which are splits by their names, and no classes"
    if any(look(os.path.join(path, name)).folders for name in found):
        raise UserError(f"{held}; name that folder, as folder:{path}, and a split of it.")
    raise UserError(f"{held}; put class folders into the splits, as train/cat/x.jpg, or rename these.")


def _check_unpacked(path: str, files: Sequence[str]) -> None:
    for name in files:
        if unpacked_name(name):
            raise packed(os.path.join(path, name))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # as a link to itself
        return False


def _or_user_error(path: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); restore, remove or permit it.") from error
