"""TFDS datasets that are prepared, as ArrayRecord or TFRecord; TensorFlow is never loaded here."""

import contextlib
import dataclasses
import functools
import importlib
import io
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from etils import epath

from vit_jax_mixer import files
from vit_jax_mixer.data.sources import sides, tfds_features
from vit_jax_mixer.data.sources.base import Source, Splits
from vit_jax_mixer.data.sources.fields import choose, choose_label, lacking, split_fields
from vit_jax_mixer.data.sources.tfrecord import open_tfrecords
from vit_jax_mixer.errors import UserError, suggest

_NAME = re.compile(r"\w+(/[\w.+-]+)?(:[\w.*]+)?")


class _Records(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> bytes: ...


@dataclasses.dataclass(frozen=True)
class _Examples:
    """Records, and how to read the fields of them that are used; images stay encoded.

    Attributes:
        records: serialized examples.
        features: those of the fields that are used; others are not unpacked.
        decoders: of those fields.
        roles: the name here of each field, as 'label' of fine_label.
        name: of the split, for messages.
    """

    records: _Records
    features: Any
    decoders: Mapping[str, Any]
    roles: Mapping[str, str]
    name: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        try:
            found = self.features.deserialize_example_np(self.records[index], decoders=self.decoders)
            return {self.roles[name]: value for name, value in found.items()}
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
    """Return the splits of ``NAME[/CONFIG][:VERSION]``, or of a folder that TFDS has prepared.

    The fields may be named, as in ``cifar100,label=coarse_label``.
    """
    place, named = split_fields(place)
    builder = find_builder(place)
    digits = importlib.import_module("vit_jax_mixer.data.sources.digits")
    if isinstance(builder, digits.SklearnDigits):
        _prepare(builder)
    if not _is_prepared(builder):
        raise UserError(
            f"tfds:{place} is not prepared in {builder.data_path}; "
            f"run `python -m vit_jax_mixer.data tfds:{place} --build`, or set TFDS_DATA_DIR to where it is."
        )
    return {split: functools.partial(_open, builder, place, split, named) for split in builder.info.splits}


def find_builder(place: str) -> Any:
    """Return TFDS's builder of that name or folder; `digits` is known by its name as well.

    Raises:
        UserError: TFDS knows no such dataset, configuration or version.
    """
    # Imported here, so that folders and IDX files do not pay for it.
    tfds = importlib.import_module("tensorflow_datasets")
    importlib.import_module("vit_jax_mixer.data.sources.digits")
    if _is_path(place):
        folder = epath.Path(place).expanduser()
        if not (folder / "dataset_info.json").exists():
            raise UserError(f"{folder} holds no dataset_info.json; name a folder that TFDS has prepared.")
        tfds_features.check(folder)
        find = functools.partial(tfds.builder_from_directory, folder)
    else:
        if not _NAME.fullmatch(place):  # a community's name, as kubric:movi_a, would fetch and run its code
            raise UserError(f"tfds:{place} is not of the form NAME[/CONFIG][:VERSION]; a folder begins with /.")
        tfds_features.check_named(place)
        find = functools.partial(tfds.builder, place)
    try:
        return find()
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        raise UserError(f"tfds:{place}: TFDS has no dataset of that name{suggest(place, known)}") from error
    except Exception as error:  # a builder's own code, or the parser of a damaged dataset_info.json, raises anything
        reason = textwrap.shorten(str(error), 250)
        raise UserError(f"tfds:{place} cannot be opened ({reason}); name it as NAME[/CONFIG][:VERSION].") from error


def _is_path(place: str) -> bool:
    return place.startswith(("/", ".", "~", "gs://"))


def _open(builder: Any, place: str, split: str, named: Mapping[str, str]) -> Source:
    tfds = importlib.import_module("tensorflow_datasets")
    where = f"tfds:{place}, split {split}"
    if pair := _sides(tfds.features, builder.info, named, f"tfds:{place}"):
        *texts, note = pair
        same = {name: name for name in texts}
        records = _Examples(_records(builder, place, split), _of(tfds, builder, same), {}, same, where)
        notes = tuple(filter(None, (note,)))
        return Source(sides.Sides(records, (texts[0], texts[1]), records.where), (), records.where, notes=notes)
    roles, notes, unlabelled = _roles(tfds.features, builder.info, named, f"tfds:{place}")
    used = dict(_of(tfds, builder, roles).items())
    decoders = {name: tfds.decode.SkipDecoding() for name, role in roles.items() if role == "image"}
    label: Any = next((used[name] for name, role in roles.items() if role == "label"), None)
    names = label.names if isinstance(label, tfds.features.ClassLabel) else ()
    if label is not None and not names:
        unlabelled = (
            f"the labels of tfds:{place} have no names (its field is a {type(label).__name__}); name a ClassLabel."
        )
    examples = _Examples(_records(builder, place, split), _of(tfds, builder, roles), decoders, roles, where)
    return Source(examples, tuple(names), examples.where, notes=notes, unlabelled=unlabelled)


def _of(tfds: Any, builder: Any, roles: Mapping[str, str]) -> Any:
    """Return the features that are used."""
    return tfds.features.FeaturesDict({name: builder.info.features[name] for name in roles})


def _records(builder: Any, place: str, split: str) -> Any:
    """Open the records of a split; a `UserError` if they have no random access."""
    formats = {form.value for form in builder.info.available_file_formats()}
    if "array_record" in formats:
        return _array_records(builder, split)
    if "tfrecord" in formats:
        info = builder.info.splits[split]
        shards = [os.fspath(path) for path in info.filepaths]
        return open_tfrecords(shards, info.shard_lengths, split)
    raise UserError(
        f"tfds:{place} in {builder.data_path} is stored as {', '.join(sorted(formats)) or 'nothing known'}, which "
        f"has no random access; prepare it again with `python -m vit_jax_mixer.data tfds:{place} --build`."
    )


def _sides(features: Any, info: Any, named: Mapping[str, str], where: str) -> tuple[str, str, str] | None:
    """Return the fields of a pair of sentences and a note, as `sides.choose`; None of a dataset of other things."""
    fields = dict(info.features.items()) if hasattr(info.features, "items") else {}
    texts = [name for name, feature in fields.items() if isinstance(feature, features.Text)]
    if not (sides.are_asked_for(named) or isinstance(info.features, features.Translation)):
        return None
    keys = info.supervised_keys or ()
    return sides.choose(named, texts, where, keys if {*keys} <= {*texts} else ())


def _roles(
    features: Any, info: Any, named: Mapping[str, str], where: str
) -> tuple[dict[str, str], tuple[str, ...], str]:
    """Return the role of each field that is used, by its name: the image and, where there is one, the label.

    Notes follow on others that might be, and why there is no label. A field that nobody named is that of the
    dataset's ``supervised_keys``, or else the one whose type suits.

    Raises:
        UserError: there is no image, or it is not clear which field it is.
    """
    fields = dict(info.features.items()) if hasattr(info.features, "items") else {}
    columns = [f"{name}: {type(feature).__name__}" for name, feature in fields.items()]
    suits = {
        "image": [name for name, feature in fields.items() if isinstance(feature, features.Image)],
        "label": [name for name, feature in fields.items() if isinstance(feature, features.ClassLabel)],
    }
    plain = fields.get("label")  # numbers without names, which only a task of its own can read
    if not suits["label"] and plain is not None and plain.shape == ():
        suits["label"] = ["label"]
    keys = dict(zip(suits, info.supervised_keys or (), strict=False))
    supervised = {role: [key] for role, key in keys.items() if key in suits[role] and role not in named}
    image, note = choose("image", named, supervised.get("image", suits["image"]), columns, where)
    if not image:
        raise UserError(lacking("image", "an image", columns, where))
    fitting, hint = supervised.get("label", suits["label"]), "a label (a ClassLabel, or a number named label)"
    label, other, unlabelled = choose_label(named, fitting, columns, where, hint)
    roles = {image: "image"} | ({label: "label"} if label else {})
    return roles, tuple(filter(None, (note, other))), unlabelled


def _array_records(builder: Any, split: str) -> Any:
    for path in map(os.fspath, builder.info.splits[split].filepaths):
        if os.path.lexists(path):  # what is missing, or not local, is told when it is read
            files.open_regular(path).close()  # a pipe would be waited for
    try:
        # Only the reader of records: the rest holds the builder, which workers need not get.
        return builder.as_data_source(split, file_format="array_record").data_source
    except (OSError, ValueError, RuntimeError) as error:
        reason = textwrap.shorten(str(error), 250)
        raise UserError(f"{builder.data_path} cannot be read ({reason}); copy or prepare it again.") from error


def _is_prepared(builder: Any) -> bool:
    """Say whether a dataset is there; TFDS looks for it by a pattern, and so not in a folder named a[1]."""
    return (builder.data_path / "dataset_info.json").exists()


def _prepare(builder: Any) -> None:
    """Write the embedded dataset where TFDS keeps its own, unless it is there."""
    if _is_prepared(builder):
        return
    try:
        # TFDS draws a dozen progress bars; this takes a second.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            builder.download_and_prepare(file_format="array_record")
    except OSError as error:
        if not _is_prepared(builder):  # else another process was first
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
