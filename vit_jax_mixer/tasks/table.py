"""Rows of a table to classes or to a number."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax_mixer import models, predictors, pretrained, specs
from vit_jax_mixer.config import Config
from vit_jax_mixer.data.balance import balanced
from vit_jax_mixer.data.pipeline import Dataset, as_it_is
from vit_jax_mixer.data.sources import open_source
from vit_jax_mixer.data.sources.table import table_of
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import stacked
from vit_jax_mixer.predictors.rows import Rows
from vit_jax_mixer.pretrained import folder, trees
from vit_jax_mixer.specs import Share
from vit_jax_mixer.tasks.base import Aux, Outputs, Task, TrainState, Tree

BESIDE = "rows of the models beside"  # a name of `Task.eval_data`, for what is told in the last evaluation alone


def create(
    run: Config, predict: str, class_weights: str, label_smoothing: Share, threshold: str, beside: str
) -> "TableTask":
    """Build the task from ``config.task``, ``model`` and ``data``."""
    from vit_jax_mixer.predictors.tables import baselines
    from vit_jax_mixer.predictors.tables.figures import CRITERIA

    specs.lookup(dict.fromkeys(("auto", "classes", "number")), predict, "config.task.predict")
    specs.lookup(dict.fromkeys(("none", "balanced")), class_weights, "config.task.class_weights")
    specs.lookup(dict.fromkeys(("half", *CRITERIA)), threshold, "config.task.threshold")
    compared = baselines.parse(beside, "config.task.beside")
    model, data, about = parts(run, predict)
    if data.target.kind == "two" and data.eval_split:
        about = dataclasses.replace(about, threshold_of=f"{data.eval_split}/threshold")
    weighted = class_weights == "balanced"
    return TableTask(model, data, about, weighted, label_smoothing, threshold, compared, run.init_from)


def parts(run: Config, predict: str, *, head: bool = True) -> tuple[Any, "TableData", Rows]:
    """Return the model, with a head or without, the data, and what users of the model must know."""
    data = specs.call(TableData, run.data, "config.data", predict=predict, init_from=run.init_from)
    fields, outputs = {**run.model, **_of_columns(run.model, data)}, data.target.outputs if head else 0
    model = specs.call(models.create, fields, "config.model", num_classes=outputs)
    about = Rows(
        model={**fields, "num_classes": outputs},
        encoding=dataclasses.asdict(data.encoding),
        target=dataclasses.asdict(data.target),
        source=f"trained on {run.data['source']} {run.data['train']}",
    )
    return model, data, about


def _of_columns(model: Mapping[str, Any], data: "TableData") -> dict[str, Any]:
    """Return how many codes the features have, for a model that has a field for it and is not told."""
    module: Any = models.named(str(model.get("name", "")), "config.model.name").module
    taken = module.__dataclass_fields__
    if "categories" not in taken or model.get("categories") or data.encoding.whole:
        return {}
    return {"categories": tuple(codes for _, codes in data.encoding.features)}


class TableData:
    """Rows for training and evaluation, in memory.

    Attributes:
        target: what is told of a row; fitted to the training rows, as is the encoding.
        encoding: how a row becomes f32[F]; with weights to begin with, theirs.
        train: examples {'row': f32[F], 'label': i32[] or f32[]}.
        eval: the same for each evaluation, by the name of its split; the first one gives the threshold.
        eval_split: the name of the first; '' for none.
    """

    def __init__(
        self,
        source: str,
        train: str,
        eval: str,
        test: str,
        target: str,
        drop: str,
        scaling: str,
        balance: str = "",
        *,
        predict: str,
        init_from: str,
    ) -> None:
        """Take ``config.data``; ``configs/tabular.py`` says what each field is.

        Raises:
            UserError: an unknown source, split or column, rows from which nothing can be learnt, or weights to begin
                with that read other columns.
        """
        from vit_jax_mixer.data.tables import encoding, reading
        from vit_jax_mixer.data.tables import target as targets
        from vit_jax_mixer.data.tables.encoded import labelled

        if test and not eval:
            raise UserError(
                "config.data.test is set without config.data.eval, whose rows choose the threshold; set both."
            )
        if test == eval and test:
            raise UserError(f"config.data.test is {test!r}, and config.data.eval too; a threshold wants other rows.")
        opened = open_source(source, train)
        table: reading.Table = table_of(opened, source)
        name = targets.choose(table, target)
        self.target = targets.fit(table, name, predict)
        dropped = targets.drops(table, drop)
        labelled_rows, _, _ = self.target(table)
        seen = table if len(labelled_rows) == len(table) else table.take(labelled_rows)
        if init_from:
            self.encoding, said = _encoding_of(init_from, (name, *dropped), scaling), []
        else:
            self.encoding, said = encoding.fit(seen, (name, *dropped), scaling)
        found = labelled(table, self.encoding, self.target)
        told = f"{source}: the target is {name}" + (f", {self.target.kind}" if self.target.kind != "two" else "")
        if balance and self.target.kind == "number":
            raise UserError("config.data.balance is set, but the target is a number; set it to ''.")
        examples: Any = found.examples
        drawn = balanced(balance, found, examples.labels)
        told_of = (told, *said, *found.notes, *([drawn.note()] if drawn else []))
        self.train = Dataset(dataclasses.replace(found, notes=told_of), as_it_is, balance=drawn)

        def of(split: str) -> Dataset:
            found = labelled(table_of(open_source(source, split), source), self.encoding, self.target)
            return Dataset(found, as_it_is)

        self.eval = {split: of(split) for split in (eval, test) if split}
        self.eval_split = eval


def _encoding_of(init_from: str, left_out: Sequence[str], spec: str) -> Any:
    """Return how the rows were encoded that pretrained weights have learnt from: to them, other numbers say nothing."""
    path = pretrained.locate(trees.split(init_from)[0])
    run = folder.run_of(path)
    about = predictors.read(run) if (run / predictors.FILE).is_file() else None
    if not isinstance(about, Rows):
        raise UserError(
            f"config.init_from is {init_from!r}, which is no model of rows with its {predictors.FILE}; give the "
            "workdir or an export of one."
        )
    found = about.encodes
    if read := [column.name for column in found.columns if column.name in left_out]:
        raise UserError(
            f"config.init_from reads the column {read[0]!r}, which is the target here or in config.data.drop; choose "
            "another, or train without it."
        )
    if spec != found.scaling:
        raise UserError(f"config.data.scaling is {spec!r}, and that of config.init_from {found.scaling!r}; set that.")
    return found


class TableTask(Task):
    """Rows to classes or to a number."""

    def __init__(
        self,
        model: Any,
        data: TableData,
        about: Rows,
        balanced: bool,
        label_smoothing: float,
        threshold: str,
        beside: Mapping[str, Any],
        init_from: str = "",
    ) -> None:
        self.model = model
        self.data = data
        self.train_data = data.train
        self.eval_data = data.eval
        if beside and data.eval_split:  # in the last evaluation alone
            self.eval_data = {**data.eval, BESIDE: data.eval[data.eval_split]}
            self.every = {BESIDE: 1 << 40}
        self._about = about
        self._label_smoothing = label_smoothing
        self._threshold = threshold
        self._beside = beside
        self._init_from = init_from
        self._weights = _class_weights(data) if balanced else None

    def about(self) -> Rows:
        return self._about

    def forward_flop(self) -> float:
        return models.forward_flop(self.model, (len(self.data.encoding.features),))

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        return stacked.init(self.model, key, jnp.zeros((1, len(self.data.encoding.features)))), ()

    def load(self, params: Tree, extra: Tree) -> tuple[Tree, Tree]:
        """Read ``init_from``, if set; the head stays new."""
        if self._init_from:
            fresh, loaded = stacked.unstack(params), pretrained.load(self._init_from)
            filled = pretrained.fill(fresh, loaded, new=("head",), where=self._init_from)
            params = stacked.stack(filled, params)
        return params, extra

    def loss(
        self, params: Tree, state: TrainState, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """Return the mean loss, weighted by class where that is asked for, and what is right beside it."""
        logits = self.model.apply({"params": params}, batch["row"], train=True, rngs={"dropout": key})
        labels = batch["label"]
        each = self.losses(logits, labels)
        metrics = {"accuracy": jnp.mean(self._told(logits) == labels)} if self.data.target.class_names else {}
        if self._weights is None:
            return jnp.mean(each), Aux(metrics)
        weights = jnp.asarray(self._weights)[labels]
        return jnp.sum(weights * each) / jnp.sum(weights), Aux(metrics, weight=jnp.sum(weights))

    def losses(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Return f32[B]: cross-entropy, or squared distance in deviations.

        Several logits of two classes are those of an ensemble's members, each of which learns by itself.
        """
        smooth = self._label_smoothing
        match self.data.target.kind:
            case "number":
                return optax.squared_error(logits[:, 0], labels)
            case "two":
                wanted = (labels * (1 - smooth) + smooth / 2)[:, None]
                return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, wanted), axis=1)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smooth)
        return optax.softmax_cross_entropy(logits, targets)

    def _told(self, logits: jax.Array) -> jax.Array:
        return (logits[:, 0] >= 0).astype(jnp.int32) if self.data.target.kind == "two" else jnp.argmax(logits, -1)

    def eval_step(self, state: TrainState, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Return each row's logits and label."""
        return {
            "logits": self.model.apply({"params": state.params}, batch["row"], train=False),
            "labels": batch["label"],
        }

    def evaluate(self, outputs: Callable[[str], Iterator[Outputs]]) -> dict[str, float]:
        """Return SPLIT/NAME of `figures.figures`; the threshold is chosen on the first split alone."""
        from vit_jax_mixer.predictors.tables import figures

        found: dict[str, float] = {}
        threshold = 0.5
        for split in self.data.eval:
            batches = list(outputs(split))
            logits, labels = (np.concatenate([batch[name] for batch in batches]) for name in ("logits", "labels"))
            if not np.isfinite(logits).all():  # a state that is not finite is told of by the loop
                return {f"{one}/loss": float("nan") for one in self.data.eval}
            if split == self.data.eval_split and self.data.target.kind == "two":
                if self._threshold != "half":
                    p = figures.probabilities(self.data.target, logits)
                    threshold = figures.best_threshold(p, labels, self._threshold)
                found[f"{split}/threshold"] = threshold
            of_split = figures.figures(self.data.target, logits, labels, threshold)
            found |= {f"{split}/{name}": value for name, value in of_split.items()}
        due = BESIDE in self.eval_data and any(True for _ in outputs(BESIDE))
        return found | self._of_others() if due else found

    def _of_others(self) -> dict[str, float]:
        """Return the figures of the models that are told beside ours, fitted to the same rows."""
        from vit_jax_mixer.predictors.tables import baselines

        data = self.data
        sets = {split: _rows(dataset) for split, dataset in data.eval.items()}
        chosen_on = (data.eval_split, self._threshold)
        return baselines.evaluate(self._beside, data.encoding, data.target, _rows(data.train), sets, *chosen_on)


def _rows(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return f32[N, F] and the labels of a dataset of `TableData`."""
    examples: Any = dataset.source.examples  # `tables.encoded.Encoded`, which needs pyarrow
    return examples.rows, examples.labels


def _class_weights(data: TableData) -> np.ndarray:
    """Return f32[K], which give each class the same part in the loss, and have a mean of 1 over the rows."""
    if data.target.kind == "number":
        raise UserError("config.task.class_weights is 'balanced', but the target is a number; set it to 'none'.")
    _, labels = _rows(data.train)
    counts = np.bincount(labels, minlength=len(data.target.class_names))
    return (len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))).astype(np.float32)
