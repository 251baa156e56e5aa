"""The pictures of the README, of a run on the digits: `make train`, then `python -m benchmarks.pictures`.

Writes docs/images/training.png (its curves), augmented.png (a contact sheet), token_mixing.png (what units of the first
and the last block's token mixing weigh) and class_maps.png (where images speak for their class).
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image

from vit_jax_mixer import charts, cli, drawing, inspection
from vit_jax_mixer.data import describe, images
from vit_jax_mixer.data.sources import open_source
from vit_jax_mixer.predictors import class_maps
from vit_jax_mixer.trained import Trained, open_model

_MODEL = flags.DEFINE_string("model", "runs/digits", "Workdir of a run on the digits.")
_OUT = flags.DEFINE_string("out", "docs/images", "Folder for the pictures.")
_SOURCE = "tfds:sklearn_digits"


def main(argv: list[str]) -> None:
    """Draw and save them all."""
    del argv
    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads(Path(_MODEL.value, "config.json").read_text())
    trained = open_model(_MODEL.value)
    _curves(Path(_MODEL.value)).save(out / "training.png", optimize=True)
    ops = images.parse(config["data"]["train_ops"], "the run's train_ops")
    describe.contact_sheet(open_source(_SOURCE, "train"), ops, out / "augmented.png", rows=3, views=5, side=80)
    _token_mixing(trained).save(out / "token_mixing.png", optimize=True)
    _class_maps(trained).save(out / "class_maps.png", optimize=True)


def _curves(run: Path) -> Image.Image:
    """Return the loss of training steps, and the accuracy on the test split."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

    def series(name: str) -> tuple[np.ndarray, np.ndarray]:
        rows = [(line["step"], line[name]) for line in lines if name in line]
        return np.array([step for step, _ in rows], float), np.array([value for _, value in rows], float)

    loss, accuracy = series("train/loss"), series("test/accuracy")
    return charts.beside(
        [
            charts.lines("training loss, step by step", "step", "loss", [("", *loss)], size=(420, 300)),
            charts.lines("test accuracy", "step", "accuracy", [("", *accuracy)], dots=True, size=(420, 300)),
        ],
        2,
    )


def _coloured(sheet: np.ndarray, times: int) -> Image.Image:
    """Return f32[H, W] from -1 to 1 in red and blue, with white where it is 0 or NaN, enlarged."""
    strength = np.abs(np.nan_to_num(sheet))[..., None]
    colour = np.where(np.nan_to_num(sheet)[..., None] > 0, class_maps.FOR, class_maps.AGAINST)
    pixels = ((1 - strength) * 255 + strength * colour).round().astype(np.uint8)
    pixels[np.isnan(sheet)] = 255
    return Image.fromarray(pixels).resize((sheet.shape[1] * times, sheet.shape[0] * times), Image.Resampling.NEAREST)


def _token_mixing(trained: Trained) -> Image.Image:
    """Return the maps of the first 24 units of the first and of the last block."""
    grid, last = inspection.grid_of(trained), trained.module.num_blocks - 1  # pyright: ignore[reportAttributeAccessIssue] # of a Mixer
    titled = []
    for block in (0, last):
        maps = inspection.token_mixing_maps(trained.params, grid, block)[:24]
        sheet = _coloured(inspection.contact_sheet(maps, columns=8), times=10)
        title = drawing.line(f"token mixing of block {block}: what {len(maps)} units weigh")
        picture = Image.new("RGB", (max(sheet.width, title.width) + 16, sheet.height + title.height + 12), "white")
        picture.paste(title, (4, 4))
        picture.paste(sheet, (4, title.height + 6))
        titled.append(picture)
    return charts.beside(titled, 2)


def _class_maps(trained: Trained) -> Image.Image:
    """Return the class maps of four test images that are of four classes."""
    source = open_source(_SOURCE, "test")
    read = [trained.ops(source.examples[i]["image"], np.random.default_rng(0)) for i in range(40)]
    labels = np.array([source.examples[i]["label"] for i in range(40)])
    chosen = [int(np.flatnonzero(labels == digit)[0]) for digit in (0, 3, 4, 7)]
    pixels = np.stack([read[i] for i in chosen])
    scaled, _ = trained.ops.on_device(jnp.asarray(pixels))
    maps = jax.device_get(class_maps.of_classes(trained.module, trained.params, scaled, jnp.asarray(labels[chosen])))
    logits = maps.mean((1, 2))
    names = [source.class_names[labels[i]] for i in chosen]
    return _spaced(
        [
            class_maps.picture(image, found, f"for the class {name}", f"logit {logit:.1f}, the mean of the map")
            for image, found, name, logit in zip(pixels, maps, names, logits, strict=True)
        ]
    )


def _spaced(pictures: list[Image.Image]) -> Image.Image:
    """Return two pictures a row, with white between them."""
    framed = []
    for picture in pictures:
        framed.append(Image.new("RGB", (picture.width + 24, picture.height + 12), "white"))
        framed[-1].paste(picture, (0, 0))
    return charts.beside(framed, 2)


if __name__ == "__main__":
    cli.run(main)
