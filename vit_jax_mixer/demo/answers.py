"""What models say of what was entered on a page; nothing here needs a browser, or Gradio."""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from vit_jax_mixer.errors import UserError, printable
from vit_jax_mixer.predictions import Asking
from vit_jax_mixer.predictors.base import Field
from vit_jax_mixer.trained import Trained, open_model

_TOP = 5  # classes


@dataclasses.dataclass(frozen=True)
class Shown:
    """What a page shows of one model.

    Attributes:
        text: a line or more: the answer, and what was wrong with what was entered.
        shares: the probability of each class by name.
        picture: of Pillow's, which explains it; None where there is none.
    """

    text: str = ""
    shares: dict[str, float] = dataclasses.field(default_factory=dict)
    picture: Any = None


class Model:
    """A model that is asked again and again.

    Attributes:
        name: as it was named.
        form: what it asks for.
        explains: whether its answers have pictures.
    """

    def __init__(self, reference: str) -> None:
        """Open the model; a `UserError` says why it cannot be, or that it answers nothing."""
        self._trained = open_model(reference)
        self._about = self._trained.about
        if lack := self._about.lack():
            raise UserError(f"{reference} {lack}; name a model that answers.")
        self.name = reference
        self.form: list[Field] = self._about.form()
        self.explains = _explains(self._trained)
        self._asking = Asking(self._trained, top=_TOP, batch_size=32, explain=self.explains)

    def __call__(self, values: Sequence[Any]) -> Shown:
        """Return what the model says of the values of its form; what is wrong with them is a sentence in it."""
        said: list[str] = []
        pictures: list[Any] = []
        with tempfile.TemporaryDirectory() as folder:
            try:
                places = self._about.given_as_files(values, Path(folder))
                source = self._about.open(places)
                said += source.remarks()
                keep = (lambda answer, picture: pictures.append(picture)) if self.explains else None
                answers = list(self._asking(source, said.append, keep))
            except UserError as error:
                said.append(str(error))
                answers, places = [], [str(value) for value in values if value]
        shares = answers[0].shares() if answers else {}
        told = [] if shares else [answer.text(0).removeprefix(printable(answer.name)).strip() for answer in answers]
        text = "\n".join([*told, *(_without_folders(line, [*places, folder]) for line in said)])
        return Shown(printable(text, keep="\n"), shares, pictures[0] if pictures else None)


def open_models(references: Sequence[str]) -> list[Model]:
    """Return the models of a page.

    Raises:
        UserError: there are none, or they ask for different things.
    """
    if not references:
        raise UserError("no --model given; name one, as --model=runs/digits, or several.")
    models = [Model(reference) for reference in references]
    for model in models[1:]:
        if model.form != models[0].form:
            raise UserError(
                f"{models[0].name} and {model.name} read different things, and cannot be asked side by side; start a "
                "page for each."
            )
    return models


def _explains(trained: Trained) -> bool:
    about, like = trained.about, trained.about.input()
    batch = jax.ShapeDtypeStruct((1, *like.shape), like.dtype)
    try:
        jax.eval_shape(lambda params, inputs: about.explain(trained.module, params, inputs), trained.params, batch)
    except UserError:
        return False
    return True


def _without_folders(line: str, places: Sequence[str]) -> str:
    """Return a sentence with the names of files alone: where they lie on the server says nothing to who reads it."""
    for place in places:
        line = line.replace(place, Path(place).name)
    return " ".join(line.splitlines())
