"""Rows of a table without their labels: what was in masked patches is told from the others (`masking`).

It begins a training on few labels: ``config.task.name='masked_rows'`` in a config of rows, and then, in the config
as it was, this run's workdir as ``config.init_from``.

B rows, F features, N patches of P features, C channels of a token.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax_mixer import models
from vit_jax_mixer.config import Config
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import stacked
from vit_jax_mixer.predictors.rows import Rows
from vit_jax_mixer.specs import Within
from vit_jax_mixer.tasks import masking
from vit_jax_mixer.tasks.base import Aux, Outputs, Task, TrainState, Tree
from vit_jax_mixer.tasks.table import TableData, parts


def create(run: Config, mask_ratio: Annotated[float, Within(0.01, 0.99)] = 0.5, predict: str = "auto") -> "MaskedRows":
    """Build the task; ``mask_ratio`` is the share of a row's patches that are masked, ``predict`` is as in `table`."""
    model, data, about = parts(run, predict, head=False)
    return MaskedRows(model, data, about, mask_ratio)


class MaskedRows(Task):
    """What was in masked patches, of the columns of numbers; the mean squared error is over those that were masked."""

    published = "params/backbone"

    def __init__(self, model: Any, data: TableData, about: Rows, mask_ratio: float) -> None:
        features = data.encoding.features
        self.model = model
        self.train_data = data.train
        self.eval_data = data.eval
        self._about = about
        self._ratio = mask_ratio
        self._width = model.patch_size
        self._decoder = nn.Dense(self._width)
        # The document's scaling makes numbers of codes too.
        self._numeric = np.array([not codes or bool(data.encoding.whole) for _, codes in features])
        examples: Any = data.train.source.examples
        self._means = np.asarray(np.mean(examples.rows, axis=0, dtype=np.float64), np.float32)
        if not self._numeric.any():
            raise UserError(
                "the table has no column of numbers, which masked_rows tells; set config.task.name='table'."
            )
        if masking.masked(self.tokens, mask_ratio) == self.tokens:
            raise UserError(
                f"config.task.mask_ratio {mask_ratio} leaves none of the {self.tokens} patches of a row to be seen; "
                "choose a lower one, or a lower config.model.patch_size."
            )

    @property
    def tokens(self) -> int:
        """N."""
        return -(-len(self._numeric) // self._width)

    def about(self) -> Rows:
        return self._about

    def forward_flop(self) -> float:
        return models.forward_flop(self.model, (len(self._numeric),))

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        of_model, of_token, of_decoder = jax.random.split(key, 3)
        channels = self.model.hidden_dim
        return {
            "backbone": stacked.init(self.model, of_model, jnp.zeros((1, len(self._numeric)))),
            "mask_token": nn.initializers.normal(0.02)(of_token, (channels,)),
            "decoder": self._decoder.init(of_decoder, jnp.zeros((1, channels)))["params"],
        }, ()

    def loss(
        self, params: Tree, state: TrainState, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """Return the mean over masked patches; those of codes alone, which are not told, do not count."""
        of_mask, of_dropout = jax.random.split(key)
        rows = batch["row"]
        mask = masking.random_mask(of_mask, len(rows), self.tokens, self._ratio)
        told = self.told(params, rows, mask, train=True, rngs={"dropout": of_dropout})
        errors, counted = self.errors(told, rows, mask)
        return jnp.sum(errors) / jnp.sum(counted), Aux({}, weight=jnp.sum(counted))

    def told(self, params: Tree, rows: jax.Array, mask: jax.Array, **how: Any) -> jax.Array:
        """Return f32[B, N, P], what the model tells of patches if it does not see those of the mask, f32[B, N]."""
        tokens = masking.tokens(self.model, params["backbone"], rows, mask, params["mask_token"], **how)
        told: Any = self._decoder.apply({"params": params["decoder"]}, tokens.astype(jnp.float32))
        return told

    def errors(self, told: jax.Array, rows: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return f32[B, N] twice: a masked patch's mean squared error over its numbers, and 1 where there is one."""
        numbers = self._patches(self._numeric[None].astype(np.float32))  # [1, N, P]
        count = numbers.sum(-1)
        squares = jnp.square(told - self._patches(rows)) * numbers
        counted = mask * (count > 0)
        return squares.sum(-1) / np.maximum(count, 1) * counted, counted

    def _patches(self, rows: Any) -> Any:
        """Map f32[B, F] to f32[B, N, P], the last one filled with zeros."""
        lacking = self.tokens * self._width - rows.shape[1]
        pad = np.pad if isinstance(rows, np.ndarray) else jnp.pad
        return pad(rows, ((0, 0), (0, lacking))).reshape(-1, self.tokens, self._width)

    def eval_step(self, state: TrainState, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Return each row's sum of errors, how many patches it is over, and that if means were told."""
        rows = batch["row"]
        mask = self._fixed_mask(rows)
        errors, counted = self.errors(self.told(state.params, rows, mask, train=False), rows, mask)
        of_means, _ = self.errors(self._patches(self._means[None]), rows, mask)
        return {"errors": errors.sum(1), "counted": counted.sum(1), "of_means": of_means.sum(1)}

    def _fixed_mask(self, rows: jax.Array) -> jax.Array:
        """Return f32[B, N], drawn by what is in a row: the same in each evaluation, however rows are put in batches."""
        bits = jnp.sum(jax.lax.bitcast_convert_type(rows, jnp.uint32), axis=1, dtype=jnp.uint32)
        draw = lambda number: masking.random_mask(
            jax.random.fold_in(jax.random.key(0), number), 1, self.tokens, self._ratio
        )
        return jax.vmap(draw)(bits)[:, 0]

    def evaluate(self, outputs: Callable[[str], Iterator[Outputs]]) -> dict[str, float]:
        """Return SPLIT/loss, and SPLIT/r2: 1 less its share of what it would be if each number were the mean."""
        found: dict[str, float] = {}
        for split in self.eval_data:
            totals = dict.fromkeys(("errors", "counted", "of_means"), 0.0)
            for batch in outputs(split):
                totals = {name: total + float(np.sum(batch[name], dtype=np.float64)) for name, total in totals.items()}
            found[f"{split}/loss"] = totals["errors"] / max(totals["counted"], 1)
            found[f"{split}/r2"] = 1 - totals["errors"] / max(totals["of_means"], 1e-12)
        return found
