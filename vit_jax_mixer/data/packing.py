"""Any dataset of images, once, as ArrayRecord files that TFDS reads too: fewer and smaller files, and no names to list.

A folder holds ``packed-SPLIT.array_record-00000-of-00010``, ... with what TFDS needs (``dataset_info.json``,
``features.json``), and ``packed.json``, which says how it was made, with a checksum of each file. An example is
{'image': encoded bytes, 'label', 'origin': where it comes from}, without 'label' where there are none.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tqdm

from vit_jax_mixer import files
from vit_jax_mixer.data import packed_image, record
from vit_jax_mixer.data.pipeline import field, placed
from vit_jax_mixer.data.sources import Source, open_source
from vit_jax_mixer.data.workers import cores, end_with_parent
from vit_jax_mixer.errors import UserError, printable

DONE, _PART, _SETTINGS = "packed.json", ".packing", "settings.json"
_SHARD = 2048  # examples of a file: what a kill may cost
_READ = 1 << 20  # bytes at a time


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the content of the files depends on.

    Attributes:
        source: as ``config.data.source``.
        splits: of it, as ``train[:10%]``.
        side: of larger images, the shorter side becomes so many pixels.
        quality: of the JPEGs that these become, 1 to 100.
        skip_bad: leave bad examples out; or else the first one is an error.
    """

    source: str
    splits: tuple[str, ...]
    side: int
    quality: int
    skip_bad: bool


@dataclasses.dataclass(frozen=True)
class _Shard:
    """Examples ``start`` to ``stop`` of a split, and the file that holds them."""

    split: str
    start: int
    stop: int
    name: str


def pack(settings: Settings, folder: Path, workers: int = 0) -> Iterator[str]:
    """Write what is not there yet of a packed dataset; yield lines that tell of it.

    Files that are whole are not made again: after a kill the same call goes on.

    Args:
        settings: what is packed, and how.
        folder: takes it.
        workers: processes; 0 for as many as there are cores.

    Raises:
        UserError: a split cannot be opened or packed, an example is bad, the folder holds something else, or a file
            is not as it was written.
        OSError: the folder cannot be written.
    """
    opened = {_name(split): open_source(settings.source, split) for split in settings.splits}
    if len(opened) < len(settings.splits):
        raise UserError(f"{', '.join(settings.splits)}: two splits have one name; pack them one by one.")
    class_names = _class_names(settings, opened)
    told = {**dataclasses.asdict(settings), "data": {split: record.of_source(one) for split, one in opened.items()}}
    told = json.loads(json.dumps(told))
    if not _begin(folder, told):
        yield f"{folder} is complete"
        return
    features = _features(class_names)  # before the work, since not all names can be written
    shards = list(_shards(settings, opened))
    found = {one.name: done for one in shards if (done := _done(folder, one))}
    yield f"{folder}: {len(found)} of {len(shards)} files are there"
    missing = [one for one in shards if one.name not in found]
    total = sum(one.stop - one.start for one in shards)
    with tqdm.tqdm(total=total, unit=" images", disable=None, leave=False) as bar:
        bar.update(total - sum(one.stop - one.start for one in missing))
        for one, done in _made(settings, folder, missing, bool(class_names), workers or cores()):
            found[one.name] = done
            bar.update(one.stop - one.start)
    for name, done in found.items():
        _verify(folder / name, done)
    yield from _finish(folder, told, features, shards, found)


def _name(split: str) -> str:
    """Return what a split is called here: 'train' of 'train[:10%]', and of 'all', which TFDS takes for all splits."""
    name = split.partition("[")[0]
    name = "train" if name == "all" else name
    if not re.fullmatch(r"\w+", name):
        raise UserError(f"the split {printable(split)} cannot be a split of TFDS, whose names are letters and digits.")
    return name


def _class_names(settings: Settings, opened: dict[str, Source]) -> tuple[str, ...]:
    (first, names), *others = ((split, source.class_names) for split, source in opened.items())
    for split, other in others:
        if other != names:
            raise UserError(
                f"{settings.source}: {first} has {len(names)} classes and {split} {len(other)}, or others; pack them "
                "one by one, with --split."
            )
    if bad := [name for name in names if not name.isprintable() or name != name.strip() or not name]:
        raise UserError(f"the class name {bad[0]!r} cannot be written to TFDS's list of names; rename it.")
    return names


def _begin(folder: Path, told: dict[str, Any]) -> bool:
    """Make the folder ready, and say whether there is work; a `UserError` if it holds something else."""
    for place in (folder / DONE, folder / _PART / _SETTINGS):
        if place.exists():
            there = files.read_json(place)
            there = there.get("settings", there)
            # What to do about bad examples may change: files that are whole had none, or left them out.
            if differ := [name for name in told if told[name] != there.get(name) and name != "skip_bad"]:
                raise UserError(
                    f"{folder} was begun with other settings: {', '.join(differ)} differ; name another folder."
                )
            return place.name != DONE
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is no packed dataset; name another folder.")
    (folder / _PART).mkdir(parents=True)
    files.write_atomically(folder / _PART / _SETTINGS, json.dumps(told))
    return True


def _shards(settings: Settings, opened: dict[str, Source]) -> Iterator[_Shard]:
    for split in settings.splits:
        source = opened[_name(split)]
        count = -(-len(source.examples) // _SHARD)
        for number in range(count):
            start, stop = (len(source.examples) * n // count for n in (number, number + 1))
            yield _Shard(split, start, stop, f"packed-{_name(split)}.array_record-{number:05}-of-{count:05}")


def _done(folder: Path, shard: _Shard) -> dict[str, Any] | None:
    """Return what is known of a file that is whole."""
    note, path = folder / _PART / f"{shard.name}.json", folder / shard.name
    if not note.exists() or not path.exists():
        return None
    done = files.read_json(note)
    return done if done.get("bytes") == path.stat().st_size else None


def _made(
    settings: Settings, folder: Path, shards: Sequence[_Shard], labelled: bool, workers: int
) -> Iterator[tuple[_Shard, dict[str, Any]]]:
    """Yield the files as they are made."""
    make = functools.partial(_make, settings, folder, labelled)
    if min(workers, len(shards)) < 2:
        yield from ((one, make(one)) for one in shards)
        return
    context = multiprocessing.get_context("spawn")
    how: dict[str, Any] = dict(mp_context=context, initializer=end_with_parent)
    with concurrent.futures.ProcessPoolExecutor(min(workers, len(shards)), **how) as pool:
        running = {pool.submit(make, one): one for one in shards}
        try:
            for future in concurrent.futures.as_completed(running):
                yield running[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


_open = functools.lru_cache(maxsize=8)(open_source)  # of a worker: to list a folder takes time


def _make(settings: Settings, folder: Path, labelled: bool, shard: _Shard) -> dict[str, Any]:
    """Write a file, and then a note that it is whole."""
    writer_of = importlib.import_module("array_record.python.array_record_module").ArrayRecordWriter
    source, serialize = _open(settings.source, shard.split), _serializer(labelled)
    path = folder / _PART / f"{shard.name}.{os.getpid()}.tmp"
    # Each record alone, as TFDS has them, and as it is: images are compressed already.
    writer = writer_of(str(path), "group_size:1,uncompressed")
    skipped: list[str] = []
    kept = reduced = 0
    for index in range(shard.start, shard.stop):
        try:
            example = source.examples[index]
            image, smaller = packed_image.packed(field(example, "image"), settings.side, settings.quality)
        except UserError as error:
            if not settings.skip_bad:
                raise UserError(
                    f"{placed(error, source, index)} To leave such examples out, pass --skip_bad."
                ) from error
            skipped.append(str(placed(error, source, index)))
            continue
        origin = source.where(index).encode(errors="backslashreplace")
        label = {"label": int(field(example, "label"))} if labelled else {}
        writer.write(serialize({"image": image, "origin": origin, **label}))
        kept, reduced = kept + 1, reduced + smaller
    writer.close()
    done = {"examples": kept, "reduced": reduced, "skipped": skipped}
    done |= {"bytes": path.stat().st_size, "sha256": _digest(path)}
    path.replace(folder / shard.name)
    files.write_atomically(folder / _PART / f"{shard.name}.json", json.dumps(done))
    return done


def _features(class_names: Sequence[str] | None) -> Any:
    features = importlib.import_module("tensorflow_datasets").features
    label = {"label": features.ClassLabel(names=list(class_names))} if class_names else {}
    return features.FeaturesDict({"image": features.Image(), "origin": features.Text(), **label})


@functools.cache
def _serializer(labelled: bool) -> Any:
    serializers = importlib.import_module("tensorflow_datasets.core.example_serializer")
    info = _features(["any"] if labelled else None).get_serialized_info()
    return serializers.ExampleSerializer(info).serialize_example


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, done: dict[str, Any]) -> None:
    """Raise a `UserError` if a file is not as it was written."""
    reader = importlib.import_module("array_record.python.array_record_module").ArrayRecordReader(str(path))
    count = reader.num_records()
    reader.close()
    if count != done["examples"] or _digest(path) != done["sha256"]:
        raise UserError(f"{path} is not what was written; remove it and run the command again.")


def _finish(
    folder: Path, told: dict[str, Any], features: Any, shards: Sequence[_Shard], found: dict[str, Any]
) -> Iterator[str]:
    """Write what makes a dataset of the files, the last thing last; yield what is in it."""
    tfds = importlib.import_module("tensorflow_datasets")
    infos = []
    for split in told["splits"]:
        of_split = [found[one.name] for one in shards if one.split == split]
        template = tfds.core.ShardedFileTemplate(
            dataset_name="packed", data_dir=folder, split=_name(split), filetype_suffix="array_record"
        )
        lengths, size = [one["examples"] for one in of_split], sum(one["bytes"] for one in of_split)
        how = dict(shard_lengths=lengths, num_bytes=size, filename_template=template)
        infos.append(tfds.core.SplitInfo(name=_name(split), **how))
        skipped = [line for one in of_split for line in one["skipped"]]
        yield (
            f"{_name(split)}: {sum(lengths):,} examples in {len(of_split):,} files, {size:,} bytes; "
            f"{sum(one['reduced'] for one in of_split):,} were reduced, {len(skipped):,} bad ones left out"
        )
        yield from (f"  left out: {printable(line)}" for line in skipped[:5])
    about = f"{told['source']}: shorter sides of at most {told['side']} pixels, JPEG quality {told['quality']}."
    # Its own check would load TensorFlow; the files have been verified.
    how = dict(features=features, split_infos=infos, version="1.0.0", description=about, check_data=False)
    tfds.folder_dataset.write_metadata(data_dir=folder, **how)
    files.write_atomically(folder / DONE, json.dumps({"settings": told, "files": found}, indent=1) + "\n")
    shutil.rmtree(folder / _PART)
    yield f"use it: --config.data.source=tfds:{folder.absolute()}"
