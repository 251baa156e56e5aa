"""TFDS datasets that are prepared, as ArrayRecord or TFRecord; TensorFlow is never loaded here."""

import contextlib
import dataclasses
import functools
import importlib
import io
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from etils import epath

from vit_jax_mixer.data.sources.base import Source, Splits
from vit_jax_mixer.data.sources.tfrecord import open_tfrecords
from vit_jax_mixer.errors import UserError, suggest


class _Records(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> bytes: ...


@dataclasses.dataclass(frozen=True)
class _Examples:
    """Records, and how to read their fields; images stay encoded."""

    records: _Records
    features: Any
    decoders: Mapping[str, Any]
    name: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        try:
            return self.features.deserialize_example_np(self.records[index], decoders=self.decoders)
        except UserError:
            raise
        except Exception as error:  # readers and parsers raise whatever a damaged record makes them trip over
            reason = textwrap.shorten(str(error), 250) or type(error).__name__
            raise UserError(f"{self.where(index)} is damaged ({reason}); copy or prepare the dataset again.") from error

    def where(self, index: int) -> str:
        """Say where an example comes from."""
        place = getattr(self.records, "where", None)  # TFRecords know the file and the byte
        return f"{self.name}, example {index}" + (f" ({place(index)})" if place else "")


def open_tfds(place: str) -> Splits:
    """Return the splits of ``NAME[/CONFIG][:VERSION]``, or of a folder that TFDS has prepared."""
    builder = find_builder(place)
    digits = importlib.import_module("vit_jax_mixer.data.digits")
    if isinstance(builder, digits.SklearnDigits):
        _prepare(builder)
    if not builder.is_prepared():
        raise UserError(
            f"tfds:{place} is not prepared in {builder.data_path}; "
            f"run `python -m vit_jax_mixer.data tfds:{place} --build`, or set TFDS_DATA_DIR to where it is."
        )
    return {split: functools.partial(_open, builder, place, split) for split in builder.info.splits}


def find_builder(place: str) -> Any:
    """Return TFDS's builder of that name or folder; `digits` is known by its name as well.

    Raises:
        UserError: TFDS knows no such dataset, configuration or version.
    """
    # Imported here, so that folders and IDX files do not pay for it.
    tfds = importlib.import_module("tensorflow_datasets")
    importlib.import_module("vit_jax_mixer.data.digits")
    try:
        if not _is_path(place):
            return tfds.builder(place)
        folder = epath.Path(place).expanduser()
        if not (folder / "dataset_info.json").exists():
            raise UserError(f"{folder} holds no dataset_info.json; name a folder that TFDS has prepared.")
        return tfds.builder_from_directory(folder)
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        raise UserError(f"tfds:{place}: TFDS has no dataset of that name{suggest(place, known)}") from error
    except UserError:
        raise
    except Exception as error:  # a builder's own code, or the parser of a damaged dataset_info.json, raises anything
        reason = textwrap.shorten(str(error), 250)
        raise UserError(f"tfds:{place} cannot be opened ({reason}); name it as NAME[/CONFIG][:VERSION].") from error


def _is_path(place: str) -> bool:
    return place.startswith(("/", ".", "~", "gs://"))


def _open(builder: Any, place: str, split: str) -> Source:
    tfds = importlib.import_module("tensorflow_datasets")
    features = builder.info.features
    fields = dict(features.items())
    encoded = [name for name, feature in fields.items() if isinstance(feature, tfds.features.Image)]
    formats = {form.value for form in builder.info.available_file_formats()}
    if "array_record" in formats:
        records = _array_records(builder, split)
    elif "tfrecord" in formats:
        info = builder.info.splits[split]
        shards = [os.fspath(path) for path in info.filepaths]
        records = open_tfrecords(shards, info.shard_lengths, split)
    else:
        raise UserError(
            f"tfds:{place} in {builder.data_path} is stored as {', '.join(sorted(formats)) or 'nothing known'}, which "
            f"has no random access; prepare it again with `python -m vit_jax_mixer.data tfds:{place} --build`."
        )
    decoders = {name: tfds.decode.SkipDecoding() for name in encoded}
    label: Any = fields.get("label")
    names = label.names if isinstance(label, tfds.features.ClassLabel) else ()
    examples = _Examples(records, features, decoders, f"tfds:{place}, split {split}")
    return Source(examples, tuple(names), examples.where)


def _array_records(builder: Any, split: str) -> Any:
    try:
        # Only the reader of records: the rest holds the builder, which workers need not get.
        return builder.as_data_source(split, file_format="array_record").data_source
    except (OSError, ValueError, RuntimeError) as error:
        reason = textwrap.shorten(str(error), 250)
        raise UserError(f"{builder.data_path} cannot be read ({reason}); copy or prepare it again.") from error


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


def build(place: str) -> None:
    """Download and prepare a dataset as ArrayRecord, in a process of its own, which may load TensorFlow.

    What TFDS prints goes to stderr.

    Args:
        place: ``NAME[/CONFIG][:VERSION]``, what follows ``tfds:`` in a dataset's name.

    Raises:
        UserError: it could not be prepared.
    """
    if _is_path(place):
        raise UserError(f"tfds:{place} is a folder; to build a dataset, name it as NAME[/CONFIG][:VERSION].")
    root = str(Path(__file__).parents[3])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    child = subprocess.run(
        [sys.executable, "-m", "vit_jax_mixer.data.sources.tfds_build", place],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        check=False,
    )
    try:
        failure = json.loads(child.stdout)["failure"]
    except (ValueError, KeyError, TypeError):
        failure = (
            f"tfds:{place}: the process that prepares it ended early, with code {child.returncode}; "
            "see what it printed above, and whether memory or disk ran out."
        )
    if failure:
        raise UserError(failure)
