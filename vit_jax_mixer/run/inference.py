"""A trained model over a dataset, on all devices: what `predict` and `evaluate` share."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from vit_jax_mixer.data.pipeline import IS_EXAMPLE, Dataset, Loader, OnSkipped
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run import parallel
from vit_jax_mixer.run.evaluation import ahead
from vit_jax_mixer.trained import Trained

Rows = dict[str, np.ndarray]
# ``outputs(params, batch)``, with arrays of one row an example, [B, ...]; traced
Outputs = Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]


class Inference:
    """The outputs of a model for any number of datasets; the model is placed on the devices once."""

    def __init__(self, trained: Trained, outputs: Outputs, batch_size: int, beside: Mapping[str, Any]) -> None:
        """Take the model.

        Args:
            trained: the model.
            outputs: what is wanted of it.
            batch_size: B, at most, but for rounding up to a multiple of the devices.
            beside: the shape and type of what an example has beside the predictor's field, as a label, by name.
        """
        self._devices = parallel.create("jit")
        self._params = self._devices.put_state(trained.params)
        self._batch_size = batch_size
        self._field = trained.about.field
        self._example = {trained.about.field: trained.about.input(), **beside, IS_EXAMPLE: np.zeros((), np.bool_)}
        self._steps: dict[tuple[int, ...], Any] = {}  # compiled, by the shape of a batch
        self._run = jax.jit(
            self._devices.eval_step(
                lambda across, params, batch: across.gather({**outputs(params, batch), IS_EXAMPLE: batch[IS_EXAMPLE]})
            )
        )

    def rows(self, dataset: Dataset, loader: Loader, on_skipped: OnSkipped) -> Iterator[Rows]:
        """Yield the outputs on the host, batch by batch; each example occurs in one of them, padding in none.

        Compilation is over before the iteration begins.

        Args:
            dataset: of examples {the predictor's field, and what is beside it}.
            loader: reads them.
            on_skipped: is told of bad examples that are left out.

        Raises:
            UserError: an output is not finite, or an example is bad and not to be skipped.
        """
        devices = jax.device_count()
        size = even_batches(len(dataset), self._batch_size, devices)
        mine = size // jax.process_count()
        for like in self._likes(dataset, mine):
            placed = self._devices.put_batch({name: like[name] for name in self._example})
            if (shape := placed[self._field].shape) not in self._steps:
                self._steps[shape] = self._run.lower(self._params, placed).compile()

        def put(batch: Rows) -> Any:
            return self._devices.put_batch({name: batch[name] for name in self._example})

        batches = loader.eval_batches(dataset, batch_size=size, on_skipped=on_skipped)
        running = (self._steps[batch[self._field].shape](self._params, batch) for batch in ahead(batches, put))
        return map(_finite, map(parallel.rows_of, ahead(running, lambda rows: rows)))

    def _likes(self, dataset: Dataset, rows: int) -> Iterator[Rows]:
        """Yield a batch of each shape."""
        if dataset.batches is not None:
            yield from dataset.batches.each_like(rows)
        else:
            yield {name: np.zeros((rows, *one.shape), one.dtype) for name, one in self._example.items()}


def even_batches(count: int, most: int, devices: int) -> int:
    """Return the size of equal batches of about ``most`` for ``count`` examples, with the least padding."""
    batches = -(-count // most)
    return -(-count // (batches * devices)) * devices


def _finite(rows: Rows) -> Rows:
    for name, values in rows.items():
        if not np.isfinite(values).all():
            raise UserError(f"the model's {name} are not all finite; its weights are bad, or its dtype is too small.")
    return rows
