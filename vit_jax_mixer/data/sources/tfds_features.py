"""The descriptions in a folder that TFDS has prepared, looked at before TFDS reads them.

``features.json`` names a Python class for each feature, and TFDS imports the module of one that it
does not know: so a data folder could run what lies beside it, or any module of the machine.
"""

import contextlib
import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from vit_jax_mixer import files
from vit_jax_mixer.errors import UserError

_KEYS = ("pythonclassname", "type")  # the second is of TFDS before 4.5


def check(folder: epath.Path) -> None:
    """Look at a folder's descriptions before TFDS reads them, as it would for ever from a pipe.

    Raises:
        UserError: ``features.json`` names a feature class that is not of TFDS itself; or one is no regular file,
            or larger than any.
    """
    if "://" not in os.fspath(folder):
        for other in (*Path(folder).glob("*.json"), *Path(folder).glob("*.txt")):
            files.read_bytes(other, files.MOST_TEXT)
    path = folder / "features.json"
    if not path.exists():
        return  # TFDS says what is missing
    known = importlib.import_module("tensorflow_datasets").features.FeatureConnector
    registered = known._registered_features  # by full name; what is not in it would be imported
    local = "://" not in os.fspath(path)
    for name in _class_names(files.read_json(path) if local else json.loads(path.read_text())):
        if name not in registered or not name.startswith("tensorflow_datasets."):
            raise UserError(
                f"{path} names the feature class {name!r}, which is none of TFDS's own and would run code; "
                "prepare the dataset with TFDS's features."
            )


def check_named(place: str) -> None:
    """Check what lies in TFDS's own folders under a dataset's name, ``NAME[/CONFIG][:VERSION]``."""
    name = place.partition(":")[0].partition("/")[0]
    file_utils = importlib.import_module("tensorflow_datasets.core.utils.file_utils")
    for folder in file_utils.list_data_dirs():
        for path in _folders(Path(folder).expanduser() / name):
            check(epath.Path(path))


def _folders(root: Path) -> Iterator[Path]:
    """Yield the folders that may be of a configuration or version: NAME/VERSION and NAME/CONFIG/VERSION."""
    for path in (root, *_inner(root)):
        yield path
        if path != root:
            yield from _inner(path)


def _inner(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []


def _class_names(description: Any) -> Iterator[str]:
    """Yield the classes that a description names; TFDS reads both spellings of a key, and texts that are JSON again."""
    waiting = [description]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            waiting += node.values()
            for key, name in node.items():
                plain = key.replace("_", "").casefold()
                if isinstance(name, str) and plain in _KEYS and (plain != "type" or "content" in node):
                    yield name
        elif isinstance(node, list):
            waiting += node
        elif isinstance(node, str) and node.lstrip().startswith("{"):
            with contextlib.suppress(ValueError, RecursionError):  # TFDS does not read it either
                waiting.append(json.loads(node))
