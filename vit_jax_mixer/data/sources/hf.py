"""Datasets of Hugging Face: of the hub, of `save_to_disk`, or Parquet files."""

import dataclasses
import functools
import glob
import importlib
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax_mixer import files
from vit_jax_mixer.classes import few
from vit_jax_mixer.data.sources import slices
from vit_jax_mixer.data.sources.base import Source, Splits, sample
from vit_jax_mixer.data.sources.fields import USUAL, choose, choose_label, lacking, split_fields
from vit_jax_mixer.data.sources.hf_pairs import TEXT, open_pairs
from vit_jax_mixer.data.sources.parquet import check_parquet
from vit_jax_mixer.errors import UserError, suggest

_HUB_NAME = re.compile(r"(?P<path>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^:]+))?")
_BINARY = ("binary", "large_binary")
_MAX_CLASSES = 1_000_000  # a larger label is an identifier
_LARGEST = 1 << 28  # bytes of an image file


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Rows of an Arrow table on disk, by way of `datasets`; its copies map the same files.

    Attributes:
        images: a dataset of the image column alone, which gives Arrow tables.
        labels: int[N]; None where there are none.
        name: for messages.
        folders: where the files lie that a row may name; rows are data, and must not name others.
    """

    images: Any
    labels: np.ndarray | None
    name: str
    folders: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        try:
            cell = self.images[index].column(0)[0].as_py()
        except (OSError, ValueError, MemoryError) as error:  # Arrow's for damaged files
            reason = textwrap.shorten(str(error), 250) or type(error).__name__
            raise UserError(f"{self.where(index)} is damaged ({reason}); fetch or save the dataset again.") from error
        if isinstance(cell, dict):
            cell = cell["bytes"] if cell["bytes"] is not None else self._read(cell["path"], index)
        if cell is None:
            raise UserError(f"{self.where(index)} has no image; remove the row.")
        return {"image": cell} if self.labels is None else {"image": cell, "label": int(self.labels[index])}

    def traits(self) -> Iterator[bytes]:
        """Yield all labels and a few examples."""
        yield b"" if self.labels is None else self.labels.tobytes()
        yield from sample(self)

    def _read(self, path: str | None, index: int) -> bytes | None:
        if not path:
            return None
        true = os.path.realpath(os.path.join(self.folders[0], path))
        if not any(Path(true).is_relative_to(folder) for folder in self.folders):
            raise UserError(
                f"{self.where(index)} names the file {path}, which is not in {self.folders[0]}; "
                "put the images inside the dataset, or use manifest:FILE."
            )
        return files.read_bytes(true, _LARGEST)

    def where(self, index: int) -> str:
        """Say where an example comes from."""
        return f"{self.name}, row {index}"


def open_hf(place: str) -> Splits:
    """Return the splits of ``NAME[:CONFIG]`` on the hub, or of ``/DIR`` or ``/FILE.parquet`` on disk.

    The columns may be named, as in ``cifar100,label=coarse_label``.
    """
    place, named = split_fields(place)
    try:
        datasets = importlib.import_module("datasets")
        hub = importlib.import_module("huggingface_hub.utils")
        constants = importlib.import_module("huggingface_hub.constants")
    except ImportError as error:
        raise UserError(f"hf:{place} needs the package datasets: pip install 'datasets>=5'.") from error
    datasets.disable_progress_bars()
    hub.disable_progress_bars()
    load, folder = _loader(datasets, place)
    try:
        found, left_out = load()
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
    caches = (folder, datasets.config.HF_DATASETS_CACHE, datasets.config.HF_CACHE_HOME, constants.HF_HUB_CACHE)
    folders = tuple(os.path.realpath(cache) for cache in caches if cache)
    notes = [f"hf:{place}: no split has {few(left_out)}; name it as train-0.parquet."] if left_out else []
    return {split: functools.partial(_open, found, f"hf:{place}", split, named, folders, notes) for split in found}


def _loader(datasets: Any, place: str) -> tuple[Callable[[], tuple[Any, list[str]]], Path | None]:
    """Return the call that loads all splits, or the one dataset, of a place, and its folder if it is one.

    The call also returns the files there that no split has.
    """
    if not place.startswith(("/", ".", "~")):
        match = _HUB_NAME.fullmatch(place)
        if not match:
            raise UserError(
                f"hf:{place} is not of the form NAME, USER/NAME or USER/NAME:CONFIG; a folder begins with /."
            )
        return lambda: (datasets.load_dataset(match["path"], match["config"]), []), None
    path = Path(place).expanduser()
    if path.is_file() and path.suffix.lower() == ".parquet":
        check_parquet([path])
        # A list: a pattern would else be looked for, where the name has brackets.
        return lambda: (datasets.load_dataset("parquet", data_files=[glob.escape(str(path))]), []), path.parent
    if (path / "dataset_dict.json").exists():
        splits = files.read_json(path / "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or not all(re.fullmatch(r"\w+", str(name)) for name in splits):
            raise UserError(f"{path / 'dataset_dict.json'} lists no splits; save the dataset again.")
        return lambda: ({name: _saved(datasets, path / name) for name in splits}, []), path
    if (path / "state.json").exists():
        return lambda: (_saved(datasets, path), []), path
    if path.is_dir() and (found := sorted(path.rglob("*.parquet"))):
        check_parquet(found)
        return lambda: _of_parquet(datasets, path, found), path
    raise UserError(f"{path} holds neither what save_to_disk writes nor .parquet files; name a folder that does.")


def _of_parquet(datasets: Any, folder: Path, found: Sequence[Path]) -> tuple[Any, list[str]]:
    """Load the splits of Parquet files by their names, and return the files that are in none.

    `datasets` knows names in small letters alone, and leaves out, or takes for training, what has others.
    """
    known = datasets.load_dataset_builder("parquet", data_dir=glob.escape(str(folder))).config.data_files
    used = {os.fspath(file) for files_ in known.values() for file in files_}
    names = [str(file.relative_to(folder)) for file in found]
    left = [name for name, file in zip(names, found, strict=True) if os.fspath(file) not in used]
    roles = {name: _role(name) for name in names}
    odd = [name for name, role in roles.items() if role not in ("", "train")] if len(known) == 1 else []
    if not left and not (odd and "train" in known):
        return datasets.load_dataset("parquet", data_dir=glob.escape(str(folder))), []
    if all(roles.values()) and not any(roles[name] in known for name in left):
        files_of: dict[str, list[str]] = {}
        for name, role in roles.items():
            files_of.setdefault(role, []).append(glob.escape(str(folder / name)))
        return datasets.load_dataset("parquet", data_files=files_of), []
    if not left:
        raise UserError(
            f"{folder}: {few(odd)} is no file for training by its name, and the split of others is not clear; name "
            "all as train-0.parquet, test-0.parquet."
        )
    return datasets.load_dataset("parquet", data_dir=glob.escape(str(folder))), left


def _role(name: str) -> str:
    """Return what a Parquet file is for, by the usual name of a split in its path; '' if that says nothing."""
    words = (re.sub(r"-\d+-of-\d+$", "", word) for word in Path(name).with_suffix("").parts)
    return next((found for word in words if (found := slices.role(word))), "")


def _saved(datasets: Any, folder: Path) -> Any:
    """Read what `save_to_disk` wrote; `load_from_disk` would also import the library that its format names."""
    state = files.read_json(folder / "state.json")
    info = datasets.DatasetInfo.from_dict(files.read_json(folder / "dataset_info.json"))
    parts = [str(part["filename"]) for part in state["_data_files"]]
    for part in parts:
        if os.path.basename(part) != part:
            raise UserError(f"{folder / 'state.json'} names the file {part!r}, which is not beside it; save it again.")
        files.open_regular(folder / part).close()  # Arrow would wait for a pipe
    split = datasets.NamedSplit(state["_split"]) if state.get("_split") else None
    return datasets.concatenate_datasets(
        [datasets.Dataset.from_file(str(folder / part), info=info, split=split) for part in parts]
    )


def _open(
    splits: Mapping[str, Any],
    dataset: str,
    split: str,
    named: Mapping[str, str],
    folders: tuple[str, ...],
    left_out: Sequence[str],
) -> Source:
    rows = splits[split]
    if pairs := open_pairs(rows, named, f"{dataset}, split {split}", left_out):
        return pairs
    image, label, notes, unlabelled = _columns(rows.features, named, f"{dataset}, split {split},")
    numbers, class_names = None, ()
    if label:
        try:
            numbers, class_names = _labels(splits, split, label, f"{dataset}, split {split}: the column {label}")
        except UserError as error:  # as -1 for all, where labels are not given out; who needs them is told
            unlabelled = str(error)
    images = rows.select_columns([image]).with_format("arrow")
    examples = _Rows(images, numbers, f"{dataset}, split {split}", folders)
    return Source(examples, class_names, examples.where, notes=(*left_out, *notes), unlabelled=unlabelled)


def _columns(
    features: Mapping[str, Any], named: Mapping[str, str], where: str
) -> tuple[str, str, tuple[str, ...], str]:
    """Return the columns with the image and, if there is one, the label, notes on others, and why there is no label."""
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    columns = [f"{name}: {_describe(feature)}" for name, feature in features.items()]
    images = [name for name, kind in kinds.items() if kind == "Image"]
    binary = [name for name, feature in features.items() if _is_binary(feature)]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    plain = [name for name, feature in features.items() if _is_label(feature)]
    fitting = {
        "image": images + binary if "image" in named else images or [n for n in USUAL["image"] if n in binary],
        "label": labels + plain if "label" in named else labels or [n for n in USUAL["label"] if n in plain],
    }
    image, note = choose("image", named, fitting["image"], columns, where)
    if not image:
        raise UserError(lacking("image", "an image (an Image feature, or bytes named image or img)", columns, where))
    hint = "a label (a ClassLabel, or numbers or strings named label or labels)"
    label, other, unlabelled = choose_label(named, fitting["label"], columns, where, hint)
    return image, label, tuple(filter(None, (note, other))), unlabelled


def _describe(feature: Any) -> str:
    kind = type(feature).__name__
    return str(feature.dtype) if kind == "Value" else kind


def _is_binary(feature: Any) -> bool:
    if isinstance(feature, Mapping):
        return {"bytes", "path"} == set(feature) and _is_binary(feature["bytes"])
    return getattr(feature, "dtype", None) in _BINARY


def _is_label(feature: Any) -> bool:
    kind = str(getattr(feature, "dtype", ""))
    return type(feature).__name__ == "Value" and (kind in TEXT or re.fullmatch(r"u?int\d+", kind) is not None)


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
