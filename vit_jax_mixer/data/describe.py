"""What is in a dataset: sizes and formats of its images, a picture of them, and which are bad."""

import collections
import concurrent.futures
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vit_jax_mixer import classes, drawing
from vit_jax_mixer.data import images
from vit_jax_mixer.data.images.decoding import format_of
from vit_jax_mixer.data.pipeline import Dataset, Example, field, placed
from vit_jax_mixer.data.sources import Source
from vit_jax_mixer.errors import UserError, printable

_DECODE = images.parse("decode(3)", "decode")


def names(words: Sequence[str], shown: int = 8) -> str:
    """Return the first few of many names, long ones cut, with nothing in them that a terminal would obey."""
    more = f", ... ({len(words):,} in all)" if len(words) > shown else ""
    return ", ".join(drawing.short(printable(word), 24) for word in words[:shown]) + more


def remarks(source: Source) -> list[str]:
    """Return the lines on what is no image, and on classes that are lacking or look the same."""
    lines = source.remarks() + ([f"no labels: {source.unlabelled}"] if source.unlabelled else [])
    try:
        classes.check_distinct(source.class_names, "labels")
    except UserError as error:
        lines.append(str(error))
    return [printable(line) for line in lines]


def sample(source: Source, count: int) -> np.ndarray:
    """Return the indices of at most ``count`` examples, spread over the source."""
    return np.unique(np.linspace(0, len(source.examples) - 1, count).astype(int))


def sizes(source: Source, count: int) -> Iterator[str]:
    """Yield lines on the formats, sizes and decoding speed of a sample; bad examples are named."""
    kinds, shapes, encoded, bad = collections.Counter(), [], [], []
    reading = decoding = 0.0
    for index in sample(source, count):
        try:
            begun = time.perf_counter()
            image = field(source.examples[int(index)], "image")
            read = time.perf_counter()
            pixels = _DECODE(image, np.random.default_rng(0))
            decoding += time.perf_counter() - read
        except UserError as error:
            bad.append(str(placed(error, source, int(index))))
            continue
        reading += read - begun
        shapes.append(pixels.shape[:2])
        kinds[format_of(image)] += 1
        encoded.append(len(image) if isinstance(image, bytes) else image.nbytes)
    if shapes:
        areas = sorted(shapes, key=lambda shape: shape[0] * shape[1])
        least, median, most = ("{1} x {0}".format(*areas[i]) for i in (0, len(areas) // 2, -1))
        yield f"images, {len(shapes)} looked at: " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        yield f"  width x height: {least} the smallest, {median} the median, {most} the largest"
        yield f"  {np.mean(encoded) / 1024:,.1f} KiB each as stored, {reading / len(shapes) * 1e6:,.0f} µs to read"
        yield f"  {decoding / len(shapes) * 1e6:,.0f} µs to decode: {len(shapes) / decoding:,.0f} images/s on one core"
    for line in bad:
        yield f"  bad: {line}"


def contact_sheet(source: Source, ops: images.Ops, path: Path, rows: int = 6, views: int = 5, side: int = 128) -> None:
    """Draw a row for each of a few examples: as it is, then augmented ``views`` times; save as PNG.

    Raises:
        UserError: all examples are bad, or the operations fail, or the file cannot be written.
    """

    def transform(example: Example, rng: np.random.Generator) -> Example:
        image = field(example, "image")
        return {"plain": _DECODE(image, rng), "image": ops(image, rng)}

    dataset = Dataset(source, transform)
    found: dict[int, list[np.ndarray]] = {}
    reason = ""
    for index in sample(source, rows):
        try:
            seen = [dataset.get(int(index), np.random.default_rng((index, view))) for view in range(views)]
            found[int(index)] = [seen[0]["plain"], *(view["image"] for view in seen)]
        except UserError as error:
            reason = str(error)
    if not found:
        raise UserError(reason)
    sheet = Image.new("RGB", ((views + 1) * (side + 4) + 4, len(found) * (side + 18) + 4), "white")
    for row, (index, pictures) in enumerate(found.items()):
        y = 4 + row * (side + 18)
        for column, pixels in enumerate(pictures):
            sheet.paste(drawing.tile(pixels, side), (4 + column * (side + 4), y + 14))
        label, names = source.examples[index].get("label", "none"), dict(enumerate(source.class_names))
        name = names.get(label, f"label {label}")
        title = f"{drawing.short(name, 60)}  -  {drawing.short(Path(source.where(index)).name, 60)}"
        strip = drawing.line(title, 10)
        sheet.paste(strip.crop((0, 0, min(strip.width, sheet.width - 8), 14)), (4, y))
    try:
        sheet.save(path, "PNG")
    except OSError as error:
        raise UserError(f"cannot write the contact sheet {path} ({error.strerror}); choose another --sheet.") from error


def check(source: Source, threads: int) -> tuple[collections.Counter[int], list[str]]:
    """Read and decode every example; return how often each label occurs, and a sentence for each bad one.

    The label of examples without classes is -1.
    """

    def transform(example: Example, rng: np.random.Generator) -> Example:
        label = int(field(example, "label")) if source.class_names else -1
        if source.class_names and not 0 <= label < len(source.class_names):
            raise UserError(f"its label is {label}, which is none of the {len(source.class_names)} classes.")
        return {"label": label, "image": _DECODE(field(example, "image"), rng)}

    dataset = Dataset(source, transform)

    def label_of(index: int) -> int | str:
        try:
            return dataset.get(index, np.random.default_rng(0))["label"]
        except UserError as error:
            return str(error)

    labels, bad = collections.Counter(), []
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(dataset), 1024):  # a pool keeps all that it is given at once
            for found in pool.map(label_of, range(start, min(start + 1024, len(dataset)))):
                if isinstance(found, int):
                    labels[found] += 1
                else:
                    bad.append(found)
    return labels, bad
