"""Random-access examples of one split, by name: TFDS, an image folder, IDX files.

======================  ========================================================================
``tfds:NAME[:VERSION]`` a TFDS dataset prepared as ArrayRecord, in $TFDS_DATA_DIR or
                        ~/tensorflow_datasets; ``tfds:sklearn_digits`` is prepared on first use
``tfds:/DIR``           the same, by the folder that holds its ``dataset_info.json``
``folder:DIR``          ``DIR/SPLIT/CLASS/image.jpg`` (or .jpeg, .png)
``idx:DIR``             MNIST's four files, gzipped or not; the splits are train and test
======================  ========================================================================
"""

import contextlib
import dataclasses
import gzip
import importlib
import io
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from etils import epath

from vit_jax_mixer import specs
from vit_jax_mixer.errors import UserError, suggest

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class RandomAccess(Protocol):
    """What Grain needs of a source."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Source:
    """The examples of one split.

    Attributes:
        examples: dicts; of images, with 'image' (encoded bytes, or u8[H, W, C]) and 'label'.
        class_names: the name of each label; empty where labels have none.
        where: says, for messages, where example ``i`` comes from.
    """

    examples: RandomAccess
    class_names: tuple[str, ...]
    where: Callable[[int], str]


def open_source(name: str, split: str) -> Source:
    """Open a split of the dataset ``KIND:PLACE``; see the table above.

    Raises:
        UserError: no such kind, dataset or split, or it holds no example.
    """
    kind, _, place = name.partition(":")
    source = specs.lookup(_KINDS, kind, f"data source {name!r}, before its colon")(place, split)
    if not len(source.examples):
        raise UserError(f"{name}, split {split!r}, holds no example; name another split.")
    return source


# --- TFDS ---------------------------------------------------------------------------------------


def _open_tfds(place: str, split: str) -> Source:
    # Imported here, so that folders and IDX files do not pay for it.
    tfds = importlib.import_module("tensorflow_datasets")
    digits = importlib.import_module("vit_jax_mixer.data.digits")
    try:
        if place.startswith(("/", ".", "~", "gs://")):
            folder = epath.Path(place).expanduser()
            if not (folder / "dataset_info.json").exists():
                raise UserError(f"{folder} holds no dataset_info.json; name a folder that TFDS has prepared.")
            builder = tfds.builder_from_directory(folder)
        else:
            builder = tfds.builder(place)
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        raise UserError(f"tfds:{place}: TFDS has no dataset of that name{suggest(place, known)}") from error
    except (AssertionError, ValueError) as error:  # as a version or a configuration that does not exist
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"tfds:{place} cannot be opened ({reason}); name it as NAME or NAME:VERSION.") from error
    if isinstance(builder, digits.SklearnDigits):
        _prepare(builder)
    if not builder.is_prepared():
        raise UserError(
            f"tfds:{place} is not prepared in {builder.data_path}; with TensorFlow installed, "
            f"run `tfds build {place} --file_format=array_record`, or set TFDS_DATA_DIR to where it is."
        )
    features = dict(builder.info.features.items())
    encoded = [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]
    try:
        examples = builder.as_data_source(split, decoders={name: tfds.decode.SkipDecoding() for name in encoded})
    except ValueError as error:
        raise UserError(f"tfds:{place} has no split {split!r}{suggest(split, builder.info.splits)}") from error
    except NotImplementedError as error:
        raise UserError(
            f"tfds:{place} in {builder.data_path} is not stored as ArrayRecord, so it has no random access; "
            f"prepare it again with `tfds build {place} --file_format=array_record`."
        ) from error
    label: Any = features.get("label")
    names = label.names if isinstance(label, tfds.features.ClassLabel) else ()
    return Source(examples, tuple(names), lambda i: f"tfds:{place}, split {split}, example {i}")


def _prepare(builder: Any) -> None:
    """Write the embedded dataset where TFDS keeps its own, unless it is there."""
    if builder.is_prepared():
        return
    try:
        # TFDS draws a dozen progress bars; this takes a second.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            builder.download_and_prepare(file_format="array_record")
    except OSError as error:
        if not builder.is_prepared():  # else another process was first
            raise UserError(
                f"cannot write the embedded dataset to {builder.data_path} ({error.strerror}); "
                "set TFDS_DATA_DIR to a folder that can be written."
            ) from error


# --- Image folder -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Files:
    """Image files with their labels."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return {"image": self.paths[index].read_bytes(), "label": self.labels[index]}
        except OSError as error:
            raise UserError(f"cannot read {self.paths[index]} ({error.strerror}); restore or remove it.") from error


def _open_folder(place: str, split: str) -> Source:
    root = Path(place).expanduser()
    splits = _subfolders(root, "give the folder that holds one folder a split, as train/CLASS/x.jpg")
    if split not in splits:
        raise UserError(f"folder:{place} has no split {split!r}{suggest(split, splits)}")
    class_names = _subfolders(root / ("train" if "train" in splits else split), "give each class a folder")
    paths, labels = [], []
    for name in _subfolders(root / split, "give each class a folder"):
        if name not in class_names:
            raise UserError(f"{root / split / name}: the training split has no such class{suggest(name, class_names)}")
        files = _image_files(root / split / name)
        paths += files
        labels += [class_names.index(name)] * len(files)
    return Source(_Files(tuple(paths), tuple(labels)), class_names, lambda i: str(paths[i]))


def _subfolders(folder: Path, remedy: str) -> tuple[str, ...]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; {remedy}.")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise UserError(f"{folder} holds no folder; {remedy}.")
    return tuple(names)


def _image_files(folder: Path) -> list[Path]:
    """Return a class's images in the order of their names; files of another kind are no silent loss."""
    files = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    for path in files:
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise UserError(f"{path} is not an image ({', '.join(IMAGE_SUFFIXES)}); convert, move or remove it.")
    if not files:
        raise UserError(f"{folder} holds no image; remove the empty class folder or fill it.")
    return files


# --- IDX (MNIST's format) -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Arrays:
    """Images u8[M, H, W, 1] with their labels."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": int(self.labels[index])}


def _open_idx(place: str, split: str) -> Source:
    root = Path(place).expanduser()
    prefixes = {"train": "train", "test": "t10k"}
    if split not in prefixes:
        raise UserError(f"idx:{place} has no split {split!r}{suggest(split, prefixes)}")
    images = read_idx(_idx_file(root, f"{prefixes[split]}-images", 3))
    labels = read_idx(_idx_file(root, f"{prefixes[split]}-labels", 1))
    if len(images) != len(labels):
        raise UserError(f"idx:{place}, split {split}: {len(images)} images but {len(labels)} labels; fetch both anew.")
    train_labels = labels if split == "train" else read_idx(_idx_file(root, "train-labels", 1))
    class_names = tuple(str(k) for k in range(int(train_labels.max(initial=0)) + 1))
    return Source(_Arrays(images[..., None], labels), class_names, lambda i: f"idx:{place}, split {split}, example {i}")


def _idx_file(root: Path, stem: str, rank: int) -> Path:
    """Return the one of the names in use that exists, as in train-images-idx3-ubyte.gz."""
    names = [f"{stem}{mark}idx{rank}-ubyte{suffix}" for mark in "-." for suffix in ("", ".gz")]
    for name in names:
        if (root / name).is_file():
            return root / name
    raise UserError(f"{root} holds no {names[0]}, gzipped or not; give the folder with MNIST's four files.")


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of bytes: two zeros, type 8, rank, big-endian sizes, then the values.

    Raises:
        UserError: the file is not of that form, or is cut short.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise UserError(f"cannot read {path} ({error}); fetch it anew.") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise UserError(f"{path} is not an IDX file of bytes (it starts with {data[:4].hex()}); fetch it anew.")
    shape = struct.unpack_from(f">{data[3]}I", data, 4)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape))
    if values.size != np.prod(shape, dtype=np.int64):
        raise UserError(f"{path} holds {values.size} values, its header promises {shape}; fetch it anew.")
    return values.reshape(shape)


_KINDS: Mapping[str, Callable[[str, str], Source]] = {"tfds": _open_tfds, "folder": _open_folder, "idx": _open_idx}
