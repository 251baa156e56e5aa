"""Images with several labels each, by sigmoid cross-entropy of each label.

A source has one label an example, whose name lists them, as 'cat;dog' in the label column of a manifest; ';' alone is
none. So splits, slices and balanced sampling are those of any images, and go by the lists.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax_mixer import models, specs
from vit_jax_mixer.config import Config
from vit_jax_mixer.predictors.classification import several
from vit_jax_mixer.predictors.classification.scores import LOSSES
from vit_jax_mixer.predictors.multilabel import MultiLabel
from vit_jax_mixer.pretrained import resize
from vit_jax_mixer.specs import Rate
from vit_jax_mixer.tasks.base import Aux, Outputs, TrainState, Tree
from vit_jax_mixer.tasks.classification import Classification
from vit_jax_mixer.tasks.images import describe, image_data


def create(run: Config, threshold: Rate) -> "MultiLabelTask":
    """Build the task from ``config.task``, ``model``, ``data``, ``init_from`` and ``init_resize``."""
    resize.parse(run.init_resize)  # a misspelt part is told before the data are opened
    data = image_data(run)
    names = several.names_in(data.class_names, str(run.data["source"]))
    model = specs.call(models.create, run.model, "config.model", num_classes=len(names))
    images = describe(run, data, num_classes=len(names), probabilities="sigmoid")
    about = MultiLabel(**{**vars(images), "class_names": names}, threshold=threshold)
    return MultiLabelTask(model, data, "sigmoid", 0.0, run.init_from, about, run.init_resize)


class MultiLabelTask(Classification):
    """Images to any number of labels."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        names = self._about.names
        places = {name: k for k, name in enumerate(names)}
        self._table = several.table_of(self.data.class_names, places, len(names))

    def about(self) -> MultiLabel:
        assert isinstance(self._about, MultiLabel)
        return self._about

    def loss(
        self, params: Tree, state: TrainState, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """Return the mean over examples of the sum over labels, mixed if images are, and the F1 of the batch's labels.

        That of a batch in parts is their mean.
        """
        of_ops, of_dropout = jax.random.split(key)
        wanted = jnp.asarray(self._table)[batch["label"]]  # f32[B, K]
        images, targets = self.data.train_ops.on_device(batch["image"], wanted, of_ops)
        logits = self.model.apply({"params": params}, images, train=True, rngs={"dropout": of_dropout})
        assert targets is not None  # since there were targets
        said = jax.nn.sigmoid(logits) >= self.about().threshold
        f1 = 2 * jnp.sum(wanted * said) / jnp.maximum(jnp.sum(wanted) + jnp.sum(said), 1)
        return jnp.mean(LOSSES["sigmoid"](logits, targets)), Aux({"f1": f1})

    def eval_step(self, state: TrainState, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Return each example's labels, probabilities and loss, the arguments of `several.summary`."""
        images, _ = self.data.eval_ops.on_device(batch["image"])
        logits: Any = self.model.apply({"params": state.params}, images, train=False)
        outputs = {"logits": logits, "probabilities": jax.nn.sigmoid(logits)}
        return self.about().scores(outputs, jnp.asarray(self._table)[batch["label"]])

    def evaluate(self, outputs: Callable[[str], Iterator[Outputs]]) -> dict[str, float]:
        """Return SPLIT/NAME of `several.summary`."""
        split = self.data.eval_split
        batches = list(outputs(split))
        rows = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        if not np.isfinite(rows["probabilities"]).all():  # a state that is not finite is told of by the loop
            return {f"{split}/loss": float("nan")}
        found = several.summary(**rows, threshold=self.about().threshold)
        return {f"{split}/{name}": value for name, value in found.items()}

    def conclusion(self) -> dict[str, Any]:
        return {}
