"""Images with several labels each: those whose probability is high enough."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from vit_jax_mixer.data.sources import Source
from vit_jax_mixer.errors import printable
from vit_jax_mixer.predictors.base import Labelled, Rows, columns
from vit_jax_mixer.predictors.classification import labels as matching
from vit_jax_mixer.predictors.classification import scores, several
from vit_jax_mixer.predictors.classification.prediction import Prediction
from vit_jax_mixer.predictors.images import Images
from vit_jax_mixer.specs import Rate


@dataclasses.dataclass(frozen=True)
class Labels(Prediction):
    """The labels of a file, the likeliest first; ``likeliest`` is there where none is likely enough, too."""

    likeliest: tuple[int, str, float] = (0, "", 0.0)

    def shares(self) -> dict[str, float]:
        return super().shares() or {self.likeliest[1]: self.likeliest[2]}

    def text(self, width: int) -> str:
        """Return one line, with the path padded to ``width`` columns."""
        file = printable(self.name)
        told = ", ".join(f"{printable(name)} ({100 * share:.1f} %)" for _, name, share in self.classes)
        _, name, share = self.likeliest
        return f"{file}{' ' * (width - columns(file))}  {told or f'none; {printable(name)} has {100 * share:.1f} %'}"

    def cells(self) -> dict[str, Any]:
        shares = several.BETWEEN.join(f"{share:.7g}" for _, _, share in self.classes)
        return {
            "file": self.name,
            "labels": several.BETWEEN.join(name for _, name, _ in self.classes),
            "probabilities": shares,
        }


@dataclasses.dataclass(frozen=True)
class MultiLabel(Images):
    """What a user of weights for images with several labels must know.

    Attributes:
        threshold: the probability from which on a label is told.
    """

    kind = "multilabel"
    threshold: Rate = 0.5

    def meanings(self) -> dict[str, str]:
        return {**super().meanings(), "probabilities": "sigmoid of the logits, of each label by itself"}

    def told(self, outputs: Mapping[str, jax.Array], most: int) -> dict[str, jax.Array]:
        del most  # it is the threshold that says how many
        return {"probabilities": outputs["probabilities"]}

    def answer(self, name: str, row: Rows) -> Labels:
        shares, names = row["probabilities"], self.names
        ranked = [(int(k), names[k], float(shares[k])) for k in np.argsort(-shares, kind="stable")]
        told = tuple(one for one in ranked if one[2] >= self.threshold)
        return Labels(name, told, row["features"], ranked[0])

    def picture(self, answer: Any, row: Rows) -> Image.Image:
        return super().picture(dataclasses.replace(answer, classes=(answer.likeliest,)), row)

    def labelled(self, source: Source, where: str, *, by_number: bool) -> Labelled:
        source.check_labelled(where, "an evaluation")
        names = several.names_in(source.class_names, where)
        found, matched = matching.match(names, self.class_names, len(self.names), where, by_number)
        places = dict(zip(names, found.tolist(), strict=True))
        return Labelled(self.reader(), several.table_of(source.class_names, places, len(self.names)), matched)

    def label(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((len(self.names),), np.float32)

    def scores(self, outputs: Mapping[str, jax.Array], labels: jax.Array) -> dict[str, jax.Array]:
        """Return the arguments of `several.summary`."""
        return {
            "wanted": labels > 0,
            "probabilities": outputs["probabilities"],
            "losses": scores.LOSSES["sigmoid"](outputs["logits"], labels),
        }

    def evaluated(  # pyright: ignore[reportIncompatibleMethodOverride] # other figures
        self, rows: Rows, labelled: Labelled, per_second: float, skipped: Sequence[str]
    ) -> several.Evaluated:
        return several.Evaluated(
            self.names,
            labelled.matched,
            rows["wanted"],
            rows["probabilities"],
            rows["losses"],
            self.threshold,
            per_second,
            skipped,
        )

    def explained(self, found: Any, source: Source, scores: Any) -> Any:
        """Return it with the names of the images."""
        del scores
        return dataclasses.replace(found, where=source.where)
