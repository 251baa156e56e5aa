"""Image operations: an ordered list in the config, as in ``decode_crop(224)|flip_lr|value_range(-1, 1)``.

Host operations run in NumPy, OpenCV, Pillow and libjpeg-turbo on one image, u8[H, W, C]: `decoding`,
`geometry`, `augment`. The last ones of the list may be device operations (`device`), which run
inside the jitted step on a batch. docs/data.md has a table of all; one of a user's own is
``my_module:blur(2)``, and docs/extending.md says what it must be.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np

from vit_jax_mixer import specs
from vit_jax_mixer.data.images import geometry
from vit_jax_mixer.data.images.augment import AUGMENT_OPS
from vit_jax_mixer.data.images.decoding import Encoded, HostOp, decode
from vit_jax_mixer.data.images.device import DEVICE_OPS, DeviceOp, Images, Targets
from vit_jax_mixer.data.images.room import ROOM
from vit_jax_mixer.data.images.twins import TWINS, Twin
from vit_jax_mixer.errors import UserError

HOST_OPS: Mapping[str, Callable[..., HostOp]] = {
    "decode": decode,
    "decode_crop": geometry.decode_crop,
    "resize": geometry.resize,
    "resize_small": geometry.resize_small,
    "center_crop": geometry.center_crop,
    "inception_crop": geometry.inception_crop,
    "flip_lr": geometry.flip_lr,
    "random_shift": geometry.random_shift,
    **AUGMENT_OPS,
}
_DRAW_NOTHING = ("decode", "resize", "resize_small", "center_crop")  # of the operations of the host


@dataclasses.dataclass(frozen=True)
class Ops:
    """A parsed list of operations: ``ops(image, rng)`` on the host, ``ops.on_device(images)`` after.

    Attributes:
        host: one after the other, on an image.
        device: the same, on a batch.
        decodes: whether they begin with one that reads encoded bytes.
        scales: whether the device operations bring bytes to the range that a model reads.
        scaler: the place in ``device`` of the one that does.
    """

    host: tuple[HostOp, ...]
    device: tuple[DeviceOp, ...]
    decodes: bool
    scales: bool
    scaler: int = 0

    def __call__(self, image: Encoded, rng: np.random.Generator) -> np.ndarray:
        """Map encoded bytes or u8[H, W, C] to u8[h, w, c]; all randomness comes from ``rng``.

        Raises:
            UserError: the image is bad, or does not fit the operations.
        """
        if isinstance(image, bytes) and not self.decodes:
            raise UserError("it is encoded; begin the operations with decode or decode_crop.")
        if isinstance(image, np.ndarray) and not (
            image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] in (1, 3) and image.size
        ):
            raise UserError(f"it is {image.dtype}{list(image.shape)}; images are uint8[height, width, 1 or 3].")
        cv2.setNumThreads(1)  # the loader's threads and processes share the cores already
        try:
            for op in self.host:
                image = op(image, rng)
        finally:
            ROOM.give_back()
        return np.asarray(image)

    def on_device(
        self, images: Images, targets: Targets = None, key: jax.Array | None = None
    ) -> tuple[Images, Targets]:
        """Map a batch to what the model reads and learns.

        Args:
            images: u8[B, h, w, c].
            targets: f32[B, K], a distribution over the classes for each row; None in evaluation.
            key: of the randomness; None in evaluation.

        Returns:
            f32[B, h, w, c] and the new targets.

        Raises:
            UserError: an operation for training alone, without targets or key.
        """
        for i, op in enumerate(self.device):
            images, targets = op(images, targets, None if key is None else jax.random.fold_in(key, i))
        return images, targets

    def scaled_by(self, other: "Ops") -> "Ops":
        """Return these with all that the other does on the device in the place of what scales the values here.

        So a model with a normalisation of its own sees the same images, mixed and erased by the same draws.
        """
        device = list(self.device)
        device[self.scaler] = lambda images, targets, key: (other.on_device(images)[0], targets)
        return dataclasses.replace(self, device=tuple(device))


def parse(spec: str, where: str) -> Ops:
    """Parse operations joined by ``|``.

    Raises:
        UserError: an operation or argument is not known, or the order does not work.
    """
    host, device = [], []
    names = [specs.parse(part, where)[0] for part in spec.split("|")]
    scaling = [i for i, name in enumerate(names) if name in ("value_range", "normalize")]
    if len(scaling) > 1:
        raise UserError(f"{where}: {names[scaling[1]]} would scale the values again; leave one of the two out.")
    if "random_erase" in names and not any(i < names.index("random_erase") for i in scaling):
        raise UserError(f"{where}: random_erase fills in values around 0; put it after value_range or normalize.")
    for name, part in zip(names, spec.split("|"), strict=True):
        try:
            op = specs.build({**HOST_OPS, **DEVICE_OPS}, part, where)
            on_device = name in DEVICE_OPS or (name not in HOST_OPS and _is_of_batch(op, name))
        except UserError as error:  # an operation itself does not know its field
            raise UserError(str(error) if where in str(error) else f"{where}: {part.strip()[:60]}: {error}") from error
        if device and not on_device:
            raise UserError(f"{where}: {part.strip()!r} comes after a device operation; move it before.")
        (device if on_device else host).append(op)
    decodes = names[0].rpartition(":")[2].startswith("decode")
    scalers = [i - len(host) for i in scaling] + [i for i, op in enumerate(device) if getattr(op, "scales", False)]
    return Ops(tuple(host), tuple(device), decodes, bool(scalers), *scalers[:1])  # a user's own says that it scales


class Undrawn(NamedTuple):
    """What is left of the operations of the host where it draws nothing.

    Attributes:
        fixed: those before the first that draws.
        twins: the others as the step does them.
        moved: the names of those.
        alone: the name of the first that has no twin, so that the host must do them all; '' if there is none.
    """

    fixed: Ops
    twins: tuple[Twin, ...]
    moved: tuple[str, ...]
    alone: str


def undrawn(spec: str, where: str) -> Undrawn:
    """Parse operations for images that stay in memory.

    Raises:
        UserError: as `parse` does.
    """
    ops = parse(spec, where)
    parts = spec.split("|")[: len(ops.host)]
    names = [specs.parse(part, where)[0] for part in parts]
    fixed = next((i for i, name in enumerate(names) if name not in _DRAW_NOTHING), len(names))
    alone = next((name for name in names[fixed:] if name not in TWINS), "")
    twins = () if alone else tuple(specs.build(TWINS, part, where) for part in parts[fixed:])
    return Undrawn(dataclasses.replace(ops, host=ops.host[:fixed]), twins, tuple(names[fixed:]), alone)


def in_step(twins: Sequence[Twin], images: Images, keys: jax.Array) -> Images:
    """Return u8[B, h, w, c], done one after the other on each image with its key of keys [B]."""

    def of_one(image: jax.Array, key: jax.Array) -> jax.Array:
        for i, twin in enumerate(twins):
            image = twin(image, jax.random.fold_in(key, i))
        return image

    return jax.vmap(of_one)(images, keys)


def _is_of_batch(op: Any, name: str) -> bool:
    """Say whether a user's own operation runs in the step: whether it takes (images, targets, key), or (image, rng)."""
    count = len(inspect.signature(op).parameters) if callable(op) else 0
    if count not in (2, 3):
        raise UserError(
            f"{name} must return an op(image, rng), or an op(images, targets, key) for a batch in the step."
        )
    return count == 3
