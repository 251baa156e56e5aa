"""What a classifier says of a file."""

import dataclasses
import textwrap
from typing import Any

import numpy as np

from vit_jax_mixer.errors import printable
from vit_jax_mixer.predictors.base import Answer, columns


@dataclasses.dataclass(frozen=True)
class Prediction(Answer):
    """What the model says of a file.

    Attributes:
        name: its path.
        classes: (number, name, probability) of the likeliest, in that order; none without a head.
        features: f32[C], pooled, before the head.
    """

    name: str
    classes: tuple[tuple[int, str, float], ...]
    features: np.ndarray

    @property
    def file(self) -> str:
        """The path."""
        return self.name

    def shares(self) -> dict[str, float]:
        return {name: share for _, name, share in self.classes}

    def text(self, width: int) -> str:
        """Return one line for one class, with the path padded to ``width`` columns, and else a block of lines."""
        file = printable(self.name)
        answers = [f"{100 * share:6.2f} %  {printable(name)}" for _, name, share in self.classes]
        if not answers:
            return ""
        if len(answers) == 1:
            return f"{file}{' ' * (width - columns(file))}  {answers[0]}"
        wrapped = (textwrap.fill(answer, 78, subsequent_indent=" " * 12, break_long_words=False) for answer in answers)
        return textwrap.indent("\n".join(wrapped), "  ").join([f"{file}\n", ""])

    def record(self) -> dict[str, Any]:
        classes = [{"class": k, "name": name, "probability": float(f"{p:.7g}")} for k, name, p in self.classes]
        return {"file": self.name, "predictions": classes}

    def cells(self) -> dict[str, Any]:
        found = {"file": self.name}
        for place, (_, name, share) in enumerate(self.classes, 1):
            found |= {f"class_{place}": name, f"probability_{place}": f"{share:.7g}"}
        return found
