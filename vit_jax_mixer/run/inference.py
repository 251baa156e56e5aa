"""A trained model over a dataset, on all devices: what `predict` and `evaluate` share."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from vit_jax_mixer.data.images import HostOp
from vit_jax_mixer.data.pipeline import IS_EXAMPLE, Dataset, Loader, OnSkipped
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run import parallel
from vit_jax_mixer.run.evaluation import ahead
from vit_jax_mixer.tasks.classification import of_any_image
from vit_jax_mixer.trained import About, Trained

Rows = dict[str, np.ndarray]
# ``outputs(params, batch)``, with arrays of one row an example, [B, ...]; traced
Outputs = Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]


def fitting(trained: Trained) -> HostOp:
    """Return the model's host operations; an image that does not become one of the model's is a `UserError`."""

    def read(image: Any, rng: np.random.Generator) -> np.ndarray:
        pixels = trained.ops(image, rng)
        if pixels.shape != trained.about.image_shape:
            better = of_any_image(trained.about.eval_ops, trained.about.image_shape)
            hint = f", as --ops={better!r}" if better != trained.about.eval_ops else ""
            raise UserError(
                f"the operations {trained.about.eval_ops!r} give an image of shape {pixels.shape}, "
                f"the model reads {trained.about.image_shape}; mend them with --ops{hint}."
            )
        return pixels

    return read


class Inference:
    """The outputs of a model for any number of datasets; the model is placed on the devices once."""

    def __init__(self, trained: Trained, outputs: Outputs, batch_size: int) -> None:
        """Take the model.

        Args:
            trained: the model.
            outputs: what is wanted of it.
            batch_size: B, at most, but for rounding up to a multiple of the devices.
        """
        self._devices = parallel.create("jit")
        self._params = self._devices.put_state(trained.params)
        self._batch_size = batch_size
        self._shape = trained.about.image_shape
        self._run = jax.jit(
            self._devices.eval_step(
                lambda across, params, batch: across.gather({**outputs(params, batch), IS_EXAMPLE: batch[IS_EXAMPLE]})
            )
        )

    def rows(self, dataset: Dataset, loader: Loader, on_skipped: OnSkipped) -> Iterator[Rows]:
        """Yield the outputs on the host, batch by batch; each example occurs in one of them, padding in none.

        Compilation is over before the iteration begins.

        Args:
            dataset: of examples {'image': u8[h, w, c], 'label': i32[]}.
            loader: reads them.
            on_skipped: is told of bad examples that are left out.

        Raises:
            UserError: an output is not finite, or an example is bad and not to be skipped.
        """
        devices = jax.device_count()
        size = even_batches(len(dataset), self._batch_size, devices)
        mine = size // jax.process_count()
        like = {
            "image": np.zeros((mine, *self._shape), np.uint8),
            "label": np.zeros(mine, np.int32),
            IS_EXAMPLE: np.zeros(mine, np.bool_),
        }
        step = self._run.lower(self._params, self._devices.put_batch(like)).compile()
        batches = loader.eval_batches(dataset, batch_size=size, on_skipped=on_skipped)
        running = (step(self._params, batch) for batch in ahead(batches, self._devices.put_batch))
        return map(_finite, map(parallel.rows_of, ahead(running, lambda rows: rows)))


def even_batches(count: int, most: int, devices: int) -> int:
    """Return the size of equal batches of about ``most`` for ``count`` examples, with the least padding."""
    batches = -(-count // most)
    return -(-count // (batches * devices)) * devices


def _finite(rows: Rows) -> Rows:
    for name, values in rows.items():
        if not np.isfinite(values).all():
            raise UserError(f"the model's {name} are not all finite; its weights are bad, or its dtype is too small.")
    return rows


def class_names(about: About) -> tuple[str, ...]:
    """Return a name for each logit: its number where the model has no names."""
    return about.class_names or tuple(str(number) for number in range(about.model["num_classes"]))
