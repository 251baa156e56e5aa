"""Datasets of Hugging Face: of the hub, of `save_to_disk`, or Parquet files."""

import dataclasses
import functools
import importlib
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax_mixer.data.sources.base import Source, Splits, sample
from vit_jax_mixer.errors import UserError, suggest

_HUB_NAME = re.compile(r"(?P<path>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^:]+))?")
_IMAGE_NAMES, _LABEL_NAMES = ("image", "img"), ("label", "labels")
_BINARY = ("binary", "large_binary")
_TEXT = ("string", "large_string")
_MAX_CLASSES = 1_000_000  # a larger label is an identifier


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Rows of an Arrow table on disk, by way of `datasets`; its copies map the same files."""

    images: Any  # a dataset of the image column alone, which gives Arrow tables
    labels: np.ndarray
    name: str

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        cell = self.images[index].column(0)[0].as_py()
        if isinstance(cell, dict):
            cell = cell["bytes"] if cell["bytes"] is not None else _read(cell["path"], self.where(index))
        if cell is None:
            raise UserError(f"{self.where(index)} has no image; remove the row.")
        return {"image": cell, "label": int(self.labels[index])}

    def traits(self) -> Iterator[bytes]:
        """Yield all labels and a few examples."""
        yield self.labels.tobytes()
        yield from sample(self)

    def where(self, index: int) -> str:
        """Say where an example comes from."""
        return f"{self.name}, row {index}"


def _read(path: str | None, where: str) -> bytes | None:
    try:
        return Path(path).read_bytes() if path else None
    except OSError as error:
        raise UserError(f"cannot read {path} of {where} ({error.strerror}); restore the file.") from error


def open_hf(place: str) -> Splits:
    """Return the splits of ``NAME[:CONFIG]`` on the hub, or of ``/DIR`` or ``/FILE.parquet`` on disk."""
    try:
        datasets = importlib.import_module("datasets")
        hub = importlib.import_module("huggingface_hub.utils")
    except ImportError as error:
        raise UserError(f"hf:{place} needs the package datasets: pip install -e '.[hf]'.") from error
    datasets.disable_progress_bars()
    hub.disable_progress_bars()
    load = _loader(datasets, place)
    try:
        found = load()
    except UserError:
        raise
    except Exception as error:  # of datasets, its hub, their transport, Arrow and the disk
        reason = textwrap.shorten(str(error), 250) or type(error).__name__
        raise UserError(
            f"hf:{place} cannot be opened ({reason}); check the name, the files and the network."
        ) from error
    if isinstance(found, datasets.Dataset):
        name = str(found.split or "")
        found = {name if re.fullmatch(r"\w+", name) else "train": found}
    return {split: functools.partial(_open, found, f"hf:{place}", split) for split in found}


def _loader(datasets: Any, place: str) -> Callable[[], Any]:
    """Return the call that loads all splits, or the one dataset, of a place."""
    if not place.startswith(("/", ".", "~")):
        match = _HUB_NAME.fullmatch(place)
        if not match:
            raise UserError(
                f"hf:{place} is not of the form NAME, USER/NAME or USER/NAME:CONFIG; a folder begins with /."
            )
        return lambda: datasets.load_dataset(match["path"], match["config"])
    path = Path(place).expanduser()
    if path.is_file() and path.suffix == ".parquet":
        return lambda: datasets.load_dataset("parquet", data_files=str(path))
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return lambda: datasets.load_from_disk(str(path))
    if path.is_dir() and next(path.rglob("*.parquet"), None):
        return lambda: datasets.load_dataset("parquet", data_dir=str(path))
    raise UserError(f"{path} holds neither what save_to_disk writes nor .parquet files; name a folder that does.")


def _open(splits: Mapping[str, Any], dataset: str, split: str) -> Source:
    rows = splits[split]
    image, label = _columns(rows.features, f"{dataset}, split {split},")
    numbers, class_names = _labels(splits, split, label, f"{dataset}, split {split}: the column {label}")
    images = rows.select_columns([image]).with_format("arrow")
    examples = _Rows(images, numbers, f"{dataset}, split {split}")
    return Source(examples, class_names, examples.where)


def _columns(features: Mapping[str, Any], where: str) -> tuple[str, str]:
    """Return the columns with the image and the label."""
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    images = images or [name for name in _IMAGE_NAMES if _is_binary(features.get(name))]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    labels = labels or [name for name in _LABEL_NAMES if _is_label(features.get(name))]
    for found, what in (
        (images, "an image (one Image feature, or bytes named image or img)"),
        (labels, "a label (one ClassLabel, or numbers or strings named label or labels)"),
    ):
        if len(found) != 1:
            columns = ", ".join(f"{name}: {_describe(feature)}" for name, feature in features.items())
            number = "several columns" if found else "no column"
            raise UserError(f"{where} has {number} for {what}; rename or remove columns. It has {columns}.")
    return images[0], labels[0]


def _describe(feature: Any) -> str:
    kind = type(feature).__name__
    return str(feature.dtype) if kind == "Value" else kind


def _is_binary(feature: Any) -> bool:
    if isinstance(feature, Mapping):
        return {"bytes", "path"} == set(feature) and _is_binary(feature["bytes"])
    return getattr(feature, "dtype", None) in _BINARY


def _is_label(feature: Any) -> bool:
    kind = str(getattr(feature, "dtype", ""))
    return type(feature).__name__ == "Value" and (kind in _TEXT or re.fullmatch(r"u?int\d+", kind) is not None)


def _labels(splits: Mapping[str, Any], split: str, column: str, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return int[N], the label of each row, and the name of each label."""
    values = _values(splits[split], column, where)
    class_names = getattr(splits[split].features[column], "names", None)
    if not class_names:
        has_train = "train" in splits and column in splits["train"].features
        class_names = _class_names(_values(splits["train"], column, where) if has_train else values, where)
    if values.dtype.kind in "iu":
        numbers = values
    else:
        places = {name: i for i, name in enumerate(class_names)}
        numbers = np.array([places.get(value, -1) for value in values.tolist()], np.int64)
    wrong = (numbers < 0) | (numbers >= len(class_names))
    if wrong.any():
        first = values.tolist()[int(wrong.argmax())]
        known = suggest(str(first), class_names)
        raise UserError(f"{where} has the label {first!r}, which is none of the {len(class_names)} classes{known}")
    return numbers.astype(np.int32), tuple(class_names)


def _class_names(values: np.ndarray, where: str) -> list[str]:
    """Return the classes of labels without names: all numbers up to the largest, or the strings."""
    if values.dtype.kind not in "iu":
        return sorted(set(values.tolist()))
    largest = int(values.max(initial=0))
    if largest >= _MAX_CLASSES:
        raise UserError(f"{where} has the label {largest}; number the classes from 0.")
    return [str(k) for k in range(largest + 1)]


def _values(rows: Any, column: str, where: str) -> np.ndarray:
    values = rows.select_columns([column]).with_format("arrow")[:].column(0)
    if values.null_count:
        raise UserError(f"{where} is empty in {values.null_count} rows; fill them or remove the rows.")
    return values.to_numpy()
