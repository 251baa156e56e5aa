"""Images that tasks learn from: with or without labels, whole or in crops, of one size or of several."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax_mixer import classes, pretrained, specs
from vit_jax_mixer.config import Config
from vit_jax_mixer.data import images
from vit_jax_mixer.data.balance import balanced
from vit_jax_mixer.data.kept import Kept
from vit_jax_mixer.data.pipeline import Batch, Dataset, as_it_is, field
from vit_jax_mixer.data.sources import open_source
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import stacked
from vit_jax_mixer.predictors.classification import worst
from vit_jax_mixer.predictors.image_operations import of_any_image
from vit_jax_mixer.predictors.images import Images
from vit_jax_mixer.pretrained import resize
from vit_jax_mixer.specs import Within


@dataclasses.dataclass(frozen=True)
class Crops:
    """Several images made of one, each with draws of its own: u8[count, h, w, c]; worker processes get a copy.

    Attributes:
        ops: what is done to each, as `images.parse` gives it.
        count: how many there are.
    """

    ops: images.Ops
    count: int

    def __call__(self, image: images.Encoded, rng: np.random.Generator) -> np.ndarray:
        return np.stack([self.ops(image, rng) for _ in range(self.count)])


@dataclasses.dataclass(frozen=True)
class Pictures:
    """From a source's example to images and, where there are classes, a label; worker processes get a copy.

    Attributes:
        ops: makes the image of each field, {'image': u8[h, w, c]}, or the crops, u8[n, h, w, c].
        classes: i32[J], the class for each label of the source; None for examples without 'label'.
    """

    ops: Mapping[str, images.HostOp]
    classes: np.ndarray | None = None

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        label = {}
        if self.classes is not None:
            number = int(field(example, "label"))
            if not 0 <= number < len(self.classes):
                raise UserError(f"its label is {number}, not from 0 to {len(self.classes) - 1}; name a labelled split.")
            label = {"label": np.int32(self.classes[number])}
        return {name: op(field(example, "image"), rng) for name, op in self.ops.items()} | label


def image_data(run: Config, *, labels: bool = True, crops: Mapping[str, Crops] | None = None) -> "ImageData":
    """Open the images of ``config.data`` for a task.

    Args:
        run: the config.
        labels: whether the task learns from labels. Else training examples have none, and those for
            evaluation where the data have classes.
        crops: the fields of a training example, in the place of 'image' by ``config.data.train_ops``.
    """
    return specs.call(ImageData, run.data, "config.data", labels=labels, crops=crops or {})


def describe(run: Config, data: "ImageData", *, num_classes: int, probabilities: str = "softmax") -> Images:
    """Return what a user of a model that learnt from these images must know, for `Task.about`.

    Args:
        run: the config, whose ``model`` it is.
        data: what it learnt from.
        num_classes: of the model: those of the data, or 0 of one that gives features alone.
        probabilities: what makes them of its logits.
    """
    return Images(
        model={**run.model, "num_classes": num_classes},
        image_shape=data.shape,
        eval_ops=of_any_image(run.data["eval_ops"], data.shape),
        class_names=tuple(data.class_names) if num_classes else (),
        source=f"trained on {run.data['source']} {run.data['train']}"
        + (f", from {run.init_from}" if run.init_from else ""),
        probabilities=probabilities,
    )


def begin_with(reference: str, params: Any, how: str, shape: tuple[int, ...]) -> Any:
    """Return a model's parameters, its head apart, as ``config.init_from`` has them.

    Args:
        reference: ``config.init_from``.
        params: fresh ones, whose head stays as it is.
        how: ``config.init_resize``.
        shape: (h, w, c) of the model's images.
    """
    fresh = stacked.unstack(params)
    loaded = resize.resize(
        pretrained.load(reference),
        fresh,
        how,
        size=(shape[0], shape[1]),
        source_size=resize.known_size(reference),
        where=reference,
    )
    return stacked.stack(pretrained.fill(fresh, loaded, new=("head",), where=reference), params)


def sheet(data: "ImageData", batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return a picture of the first images of a batch, with the names of their classes; for `Task.sheet`.

    What the step itself draws of images that stay in memory is not done yet.
    """
    pixels = np.asarray(batch["image"][: worst.MOST])
    labels = batch["label"][: len(pixels)] if "label" in batch else [-1] * len(pixels)
    captions = [(data.class_names[k],) if k >= 0 else ("",) for k in map(int, labels)]
    return {"first_batch": worst.sheet(list(pixels), captions, [False] * len(pixels))}


class ImageData:
    """Images for training and evaluation.

    Attributes:
        class_names: those of the training split.
        num_classes: K, how many there are; 0 of data without labels.
        train: examples {'image': u8[h, w, c], 'label': i32[]}, augmented; or with crops, and without label.
        eval: the same for evaluation; its labels are those of the training split, by the names of the classes. None
            for a run without.
        plain: examples of training, as those of evaluation are made.
        eval_split: the name of the evaluation split.
        train_ops: what is done to a training image on the host and on the device.
        eval_ops: the same for evaluation.
        shape: (h, w, c) of an image.
        crop_shapes: the same of each field of crops.
    """

    def __init__(
        self,
        source: str,
        train: str,
        eval: str,
        train_ops: str,
        eval_ops: str,
        views: int,
        on_bad_example: str,
        cache: str = "none",  # as runs had it whose config lacks these two
        cache_mib: Annotated[int, Within(0, 2**24)] = 1024,
        balance: str = "",
        *,
        labels: bool = True,
        crops: Mapping[str, Crops] | None = None,
    ) -> None:
        """Take ``config.data``; ``configs/common.py`` says what each field is, `image_data` the rest.

        Raises:
            UserError: an unknown source, split or operation, labels without names, or operations
                that give training and evaluation images of different sizes.
        """
        if views < 1:
            raise UserError(f"config.data.views is {views}; it must be 1 or more.")
        skip_bad = specs.lookup({"stop": False, "skip": True}, on_bad_example, "config.data.on_bad_example")
        train_source = open_source(source, train, skip_bad)
        eval_source = open_source(source, eval, skip_bad) if eval else None
        self.class_names = train_source.class_names
        self.num_classes = len(self.class_names)
        for split, opened in ((train, train_source), (eval, eval_source)):
            if labels and opened:
                opened.check_labelled(f"{source}, split {split!r},", "the task")
        self.train_ops = images.parse(train_ops, "config.data.train_ops")
        self.eval_ops = images.parse(eval_ops, "config.data.eval_ops")
        classes.check_distinct(self.class_names, source)
        own = np.arange(self.num_classes, dtype=np.int32) if self.num_classes else None
        fields: Mapping[str, images.HostOp] = crops or {"image": self.train_ops}
        if drawn := balanced(balance, train_source):
            train_source = dataclasses.replace(train_source, notes=(*train_source.notes, drawn.note()))
        made = Pictures(fields, own if labels else None)
        self.train = Dataset(train_source, made, views, skip_bad, balance=drawn)
        self.plain = Dataset(train_source, Pictures({"image": self.eval_ops}, own), skip_bad=skip_bad)
        self.eval = None
        if eval_source is not None:
            matched = None
            if labels or (self.num_classes and eval_source.class_names):
                matched = classes.match(eval_source.class_names, self.class_names, f"{source} {eval}", f"{train}'s")
            self.eval = Dataset(eval_source, Pictures({"image": self.eval_ops}, matched), skip_bad=skip_bad)
        self.eval_split = eval
        targets = self.num_classes if labels else None
        self.crop_shapes = {
            name: _shape(f"the crops {name!r}", self.train, name, crop.ops, training=True, targets=targets)
            for name, crop in (crops or {}).items()
        }
        whole = None if crops else _shape("train", self.train, "image", self.train_ops, training=True, targets=targets)
        self.shape = _shape("eval", self.plain if self.eval is None else self.eval, "image", self.eval_ops)
        if whole and whole != self.shape:
            raise UserError(
                f"config.data.train_ops gives images of shape {whole}, eval_ops of {self.shape}; "
                "a Mixer reads one size: make them equal."
            )
        if specs.lookup({"none": False, "auto": True, "host": True, "device": True}, cache, "config.data.cache"):
            self._keep(train_ops, eval_ops, next(iter(crops or {}), ""), cache, cache_mib)

    def _keep(self, train_ops: str, eval_ops: str, crops: str, cache: str, mib: int) -> None:
        """Let small images stay in memory, or on each device, and tell of it; they must, but for 'auto'."""
        on_devices = cache == "device"
        where = "on each device" if on_devices else "in memory"
        left, told = mib << 20, []
        ops = images.undrawn(train_ops, "config.data.train_ops")
        why = f"{crops} are drawn on the host" if crops else _why_not(self.train, ops, self.shape, left)
        if why and cache != "auto":
            raise UserError(f"config.data.cache is {cache!r}, but {why}; set it to 'auto'.")
        if why:
            told.append(f"those of training are made anew each time: {why}")
        else:
            self.train = _kept(self.train, ops, on_devices)
            left -= _bytes(self.train, self.shape)
            moved = f", {' and '.join(ops.moved)} inside the step" if ops.moved else ""
            told.append(f"those of training stay {where}, {_bytes(self.train, self.shape) / 2**20:,.1f} MiB{moved}")
        of_eval = images.undrawn(eval_ops, "config.data.eval_ops")
        if self.eval and not of_eval.moved and not _why_not(self.eval, of_eval, self.shape, left):
            told.append(f"those of evaluation stay {where}, {_bytes(self.eval, self.shape) / 2**20:,.1f} MiB")
            self.eval = _kept(self.eval, of_eval, on_devices)
        source = self.train.source
        note = f"images: {'; '.join(told)}"
        self.train = dataclasses.replace(self.train, source=dataclasses.replace(source, notes=(*source.notes, note)))


def _shape(
    name: str, dataset: Dataset, of: str, ops: images.Ops, *, training: bool = False, targets: int | None = None
) -> tuple[int, int, int]:
    """Try the operations on the first example, so that what is wrong with them is said at once.

    Args:
        name: of the field of ``config.data``, without its end, or what else they are called.
        dataset: whose example is tried.
        of: the field of the example.
        ops: what its images are made with.
        training: whether there are random draws.
        targets: K, whether there are targets f32[B, K].

    Returns:
        (h, w, c) of an image.
    """
    where = f"config.data.{name}_ops" if name in ("train", "eval") else name
    try:
        image = dataset.get(0, np.random.default_rng(0))[of]
        height, width, channels = image.shape[-3:]
        batch = jax.ShapeDtypeStruct((2, height, width, channels), image.dtype)
        learnt = None if targets is None else jax.ShapeDtypeStruct((2, targets), jnp.float32)
        jax.eval_shape(ops.on_device, batch, learnt, jax.random.key(0) if training else None)
    except UserError as error:
        # The data's own sentence says where; one of the operations does not know its field.
        raise UserError(f"{where}, on the first example: {error}") from error
    if not ops.scales:
        raise UserError(f"{where} gives bytes of 0 to 255; end it with value_range(-1, 1).")
    return height, width, channels


def _why_not(dataset: Dataset, ops: images.Undrawn, shape: tuple[int, ...], left: int) -> str:
    """Say why images of that shape cannot stay in memory, of which so many bytes are left; '' if they can."""
    if ops.alone:
        return f"{ops.alone} is drawn on the host"
    if dataset.skip_bad:
        return "config.data.on_bad_example is 'skip'"
    size = _bytes(dataset, shape) / 2**20
    return f"{size:,.0f} MiB are more than config.data.cache_mib leaves them" if size > left / 2**20 else ""


def _bytes(dataset: Dataset, shape: tuple[int, ...]) -> int:
    return len(dataset) * math.prod(shape)


def _kept(dataset: Dataset, ops: images.Undrawn, on_devices: bool) -> Dataset:
    """Return the dataset with its images in memory or on the devices, and what is drawn of them in the step."""
    pictures: Any = dataset.transform
    made = dataclasses.replace(dataset, transform=dataclasses.replace(pictures, ops={"image": ops.fixed}))

    def drawn(batch: Batch, keys: jax.Array) -> Batch:
        return {**batch, "image": images.in_step(ops.twins, batch["image"], keys)}

    source = dataclasses.replace(dataset.source, examples=Kept(made, on_devices=on_devices))
    return dataclasses.replace(dataset, source=source, transform=as_it_is, in_step=drawn if ops.twins else None)
