"""Rows of tables: classes or numbers of the rows in files, and how good they are on labelled ones."""

import csv
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax_mixer.data.pipeline import field
from vit_jax_mixer.data.sources import Source, open_source
from vit_jax_mixer.data.sources.table import in_order, table_of
from vit_jax_mixer.errors import UserError, printable
from vit_jax_mixer.predictors.base import Answer, Field, ForCard, Predictor, Transform, Tree, columns
from vit_jax_mixer.specs import Within


@dataclasses.dataclass(frozen=True)
class Rows(Predictor):
    """What a user of a model for rows must know.

    Attributes:
        model: the fields of `models.create`; with 0 classes it has features alone.
        encoding: how a row becomes f32[F], as `tables.encoding.Encoding` gives it.
        target: what is told of a row, as `tables.target.Target` gives it.
        source: where the weights come from.
        licence: of the weights; '' if they are one's own.
        threshold: least probability at which the positive class of two is told.
        threshold_of: the metric of a checkpoint that has its threshold in the place of that; '' for none.
    """

    kind = "rows"
    field = "row"
    inputs = "rows"
    arguments = "ROWS.csv"
    model: Mapping[str, Any]
    encoding: Mapping[str, Any]
    target: Mapping[str, Any]
    source: str
    licence: str = ""
    threshold: Annotated[float, Within(0, 1)] = 0.5
    threshold_of: str = ""

    @classmethod
    def of_json(cls, fields: Mapping[str, Any], where: str) -> Self:
        from vit_jax_mixer.data.tables.encoding import Encoding
        from vit_jax_mixer.data.tables.target import Target

        found = super().of_json(fields, where)
        if not isinstance(found.model, dict) or not isinstance(found.threshold_of, str):
            raise UserError(f"{where} cannot be read as the description of a model; mend it.")
        Encoding.of_json(found.encoding, where)
        if found.model.get("num_classes") not in (0, Target.of_json(found.target, where).outputs):
            raise UserError(f"{where}: num_classes of its model are not those of its target; mend it.")
        return found

    # --- The model ---

    @functools.cached_property
    def encodes(self) -> Any:
        """The `Encoding`."""
        from vit_jax_mixer.data.tables.encoding import Encoding

        return Encoding.of_json(self.encoding, "model.json")

    @functools.cached_property
    def wants(self) -> Any:
        """The `Target`."""
        from vit_jax_mixer.data.tables.target import Target

        return Target.of_json(self.target, "model.json")

    def of_checkpoint(self, scores: Mapping[str, float]) -> Self:
        own = scores.get(f"{self.threshold_of}_ema", scores.get(self.threshold_of, self.threshold))
        return dataclasses.replace(self, threshold=own) if own != self.threshold else self

    def input(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((len(self.encodes.features),), np.float32)

    def random_inputs(self, count: int) -> np.ndarray:
        rng = np.random.default_rng(0)
        return np.stack(
            [rng.integers(0, codes, count) if codes else rng.normal(size=count) for _, codes in self.encodes.features],
            axis=1,
        ).astype(np.float32)

    def outputs(self, module: nn.Module, params: Tree, inputs: jax.Array) -> dict[str, jax.Array]:
        applied: Any = module.apply({"params": params}, inputs, train=False, mutable=["intermediates"])
        logits, state = applied
        kept = state.get("intermediates", {}).get("pre_logits")
        found = {} if kept is None else {"features": jnp.asarray(kept, jnp.float32)}
        if self.lack():
            return found
        match self.wants.kind:
            case "number":
                return found | {"logits": logits, "number": logits[:, 0] * self.wants.deviation + self.wants.mean}
            case "two":
                return found | {"logits": logits, "probabilities": jax.nn.sigmoid(logits)}
        return found | {"logits": logits, "probabilities": jax.nn.softmax(logits)}

    def meanings(self) -> dict[str, str]:
        two = self.wants.kind == "two"
        of = f"of {self.wants.class_names[1]!r}" if two else "of each class"
        return {
            "logits": "in deviations from the mean" if self.wants.kind == "number" else f"a number {of}",
            "number": f"the {self.wants.name}",
            "probabilities": f"{'sigmoid' if two else 'softmax'} of the logits, {of}"
            + (f"; told from {self.threshold:.4g} on" if two else ""),
            "features": "pooled, before the head",
        }

    def card(self) -> ForCard:
        features = [
            {"feature": name, "codes": codes} if codes else {"feature": name} for name, codes in self.encodes.features
        ]
        number = self.wants.kind == "number"
        return ForCard(
            code=_CODE,
            facts={"Target": printable(self.wants.name)}
            | ({} if number else {"Classes": f"{len(self.wants.class_names):,}"}),
            explained=", for any b: a row's features, whose encoding `model.json` has.",
            input={"features": features},
            fields={} if number else {"classes": list(self.wants.class_names), "threshold": self.threshold},
        )

    # --- What it reads ---

    def open(self, arguments: Sequence[str]) -> Source:
        from vit_jax_mixer.data.tables.encoded import Encoded

        source = in_order(arguments)
        rows, said = self.encodes(table_of(source, arguments[0]))
        return dataclasses.replace(source, examples=Encoded(rows), notes=(*source.notes, *said))

    def form(self) -> list[Field]:
        """Return a field for each column; a category that is left out is one that was not seen."""
        return [
            Field(column.name, "number") if column.words is None else Field(column.name, "choice", column.words)
            for column in self.encodes.columns
        ]

    def given_as_files(self, values: Sequence[Any], folder: Path) -> list[str]:
        file = folder / "row.csv"
        with file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow([column.name for column in self.encodes.columns])
            writer.writerow(["" if value is None else value for value in values])
        return [str(file)]

    def reader(self) -> Transform:
        return _read

    # --- What it answers ---

    def lack(self) -> str:
        return "" if self.model["num_classes"] else f"has no head, so it does not tell {self.wants.name!r}"

    def answer(self, name: str, row: Mapping[str, np.ndarray]) -> "Told":
        features = row.get("features")
        if self.lack():
            return Told(name, self.wants.name, "", (), features)
        if self.wants.kind == "number":
            return Told(name, self.wants.name, float(row["number"]), (), features)
        names, p = self.wants.class_names, row["probabilities"].astype(float)
        shares = (1 - p[0], p[0]) if self.wants.kind == "two" else tuple(p)
        best = int(shares[1] >= self.threshold) if self.wants.kind == "two" else int(np.argmax(shares))
        return Told(name, self.wants.name, names[best], tuple(zip(names, map(float, shares), strict=True)), features)

    # --- How good it is ---

    def open_labelled(self, name: str, split: str, *, skip_bad: bool) -> Source:
        from vit_jax_mixer.data.tables.encoded import labelled

        source = open_source(name, split, skip_bad)
        found = labelled(table_of(source, name), self.encodes, self.wants)
        return dataclasses.replace(found, notes=(*source.notes, *found.notes))

    def labelled(self, source: Source, where: str, *, by_number: bool) -> Transform:
        return _read

    def label(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((), np.float32 if self.wants.kind == "number" else np.int32)

    def scores(self, outputs: Mapping[str, jax.Array], labels: jax.Array) -> Mapping[str, jax.Array]:
        return {"logits": outputs["logits"], "labels": labels}

    def evaluated(
        self, rows: Mapping[str, np.ndarray], labelled: Any, per_second: float, skipped: Sequence[str]
    ) -> Any:
        from vit_jax_mixer.predictors.tables.figures import figures
        from vit_jax_mixer.predictors.tables.report import Evaluated

        found = figures(self.wants, rows["logits"], rows["labels"], self.threshold)
        return Evaluated(self.wants, self.threshold, rows["labels"], rows["logits"], found, per_second)

    def explained(self, found: Any, source: Source, scores: Callable[[Any], Mapping[str, np.ndarray]]) -> Any:
        from vit_jax_mixer.predictors.tables.importance import MOST_COLUMNS, Importance, Shuffled, chosen

        if len(self.encodes.columns) > MOST_COLUMNS:
            return found
        examples: Any = source.examples  # `tables.encoded.Encoded`, as `open_labelled` gives them
        some = chosen(len(examples))
        labels, logits = found.labels[some], found.logits[some]
        shuffled = scores(Shuffled.of(examples.rows[some], labels, self.encodes))["logits"]
        told = Importance.of(self.encodes, self.wants, self.threshold, labels, logits, shuffled)
        return dataclasses.replace(found, importance=told)


_CODE = """\
import jax
from vit_jax_mixer.trained import open_model

trained = open_model(FOLDER)
source = trained.about.open(["rows.csv"])
outputs = jax.jit(trained.outputs)(trained.params, source.examples.rows)"""


def _read(example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """From a source's example to {'row': f32[F]} and, of labelled ones, 'label'."""
    return {"row": field(example, "row"), **({"label": example["label"]} if "label" in example else {})}


@dataclasses.dataclass(frozen=True)
class Told(Answer):
    """What the model says of a row.

    Attributes:
        name: its file and line.
        target: what is told.
        value: the class, or the number.
        probabilities: the name of each class and its; none of a number.
        features: f32[C], pooled, before the head.
    """

    name: str
    target: str
    value: str | float
    probabilities: tuple[tuple[str, float], ...]
    features: Any

    def shares(self) -> dict[str, float]:
        return dict(sorted(self.probabilities, key=lambda pair: -pair[1]))

    def text(self, width: int) -> str:
        place = printable(self.name)
        said = f"{self.value:.6g}" if isinstance(self.value, float) else printable(self.value)
        share = dict(self.probabilities).get(str(self.value))
        return f"{place}{' ' * (width - columns(place))}  {said}" + (
            f"  {100 * share:.2f} %" if share is not None else ""
        )

    def record(self) -> dict[str, Any]:
        value = float(f"{self.value:.7g}") if isinstance(self.value, float) else self.value
        shares = {name: float(f"{share:.7g}") for name, share in self.probabilities}
        return {"row": self.name, self.target: value, **({"probabilities": shares} if shares else {})}

    def cells(self) -> dict[str, Any]:
        file, _, place = self.name.rpartition(", ")
        value = f"{self.value:.7g}" if isinstance(self.value, float) else self.value
        found: dict[str, Any] = {"file": file, "line": place.rpartition(" ")[2], self.target: value}
        return found | {f"probability_{name}": f"{share:.7g}" for name, share in self.probabilities}
