"""What a model reads and answers, for all that uses it: `docs/adding_a_task.md` walks through one.

B examples are a batch.
"""

import abc
import dataclasses
import shlex
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax
import numpy as np

from vit_jax_mixer import cli, models, plugins, pretrained, specs
from vit_jax_mixer.checkpoints import checksums
from vit_jax_mixer.data.groups import Batches
from vit_jax_mixer.data.pipeline import field
from vit_jax_mixer.data.sources import Source, open_source
from vit_jax_mixer.data.sources.base import RandomAccess
from vit_jax_mixer.errors import UserError

FILE = pretrained.DESCRIPTION
Tree = Any  # a pytree of arrays
Rows = Mapping[str, np.ndarray]  # one row an example, [B, ...] or [N, ...]
# From a source's example and a generator to {`Predictor.field`: array} and, of labelled ones, 'label'.
Transform = Callable[[Any, np.random.Generator], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Labelled:
    """From a source's example to {field: array, 'label': i32[] or f32[K]}; worker processes get a copy.

    Attributes:
        read: gives {field: array}.
        classes: i32[J], the class for each label of the source; or f32[J, K], the model's labels for each.
        matched: how they were found, for people; '' where that is plain.
    """

    read: Transform
    classes: np.ndarray
    matched: str = ""

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        label = int(field(example, "label"))
        if not 0 <= label < len(self.classes):
            raise UserError(f"its label is {label}, not from 0 to {len(self.classes) - 1}; name a labelled split.")
        return {**self.read(example, rng), "label": self.classes[label]}


def columns(text: str) -> int:
    """Return how many columns of a terminal a printable text takes: Chinese characters take two, accents none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in ("W", "F") else 1 for c in text
    )


class Answer(abc.ABC):
    """What a model says of one example.

    Attributes:
        name: of the example, for people: a file, a row of a table.
        features: f32[C], what the model sees in it, where it tells that; else None.
    """

    name: str
    features: Any

    def shares(self) -> dict[str, float]:
        """Return the probability of each class by name, the likeliest first; none where it tells no classes."""
        return {}

    @abc.abstractmethod
    def text(self, width: int) -> str:
        """Return a line or more for people, with the name padded to ``width`` columns; '' for features alone."""

    @abc.abstractmethod
    def record(self) -> dict[str, Any]:
        """Return it for JSON."""

    @abc.abstractmethod
    def cells(self) -> dict[str, Any]:
        """Return the row of a table: a value for each column."""


class Evaluated(abc.ABC):
    """What an evaluation found.

    Attributes:
        figures: by name; those of training have the same names after the dataset's.
    """

    figures: dict[str, float]

    @abc.abstractmethod
    def lines(self) -> list[str]:
        """Return what is printed."""

    @abc.abstractmethod
    def write(self, out: Path, given: Mapping[str, str]) -> list[str]:
        """Write the files of an evaluation to a folder, and return their names; ``given`` goes to metrics.json."""


@dataclasses.dataclass(frozen=True)
class Field:
    """What a page asks for.

    Attributes:
        name: above it.
        kind: 'sketch', an image u8[h, w] in white on black, which is drawn; 'file', the path of one; 'lines' of
            text; a 'number', or '' for none; or one of ``choices``, a 'choice'.
        choices: of a 'choice'.
    """

    name: str
    kind: str
    choices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Program:
    """A function that an export writes: (parameters, {name: array}) to {name: array}, pure.

    Attributes:
        run: the function.
        like: from b, a number or a symbol, to the shapes and types of its inputs for b examples.
        random: from parameters and a number of examples to inputs on which what is written is compared with ``run``.
    """

    run: Callable[[Tree, dict[str, jax.Array]], dict[str, jax.Array]]
    like: Callable[[Any], dict[str, jax.ShapeDtypeStruct]]
    random: Callable[[Tree, int], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class ForCard:
    """What an export's card says of a model of one kind.

    Attributes:
        code: Python that runs the weights with this package, where FOLDER and the inputs are the reader's.
        facts: rows of the first table.
        explained: Markdown that follows the input's type and shape.
        input: more of the input, for programs.
        fields: more of the model, for programs.
        alone: by format, what it needs and Python that runs it without this package, where that is not one function of
            an array.
    """

    code: str
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    explained: str = ", for any b."
    input: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    alone: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)


class Predictor(abc.ABC):
    """How a trained model is used. A kind is a frozen dataclass, whose fields are what ``model.json`` says.

    Attributes:
        kind: as ``model.json`` names it: of `predictors.KINDS`, or ``module:Name``.
        field: of an example, as 'image'; with an s it is the name of an exported model's input.
        runners: files that are copied beside an export's programs, and run them without this package.
        inputs: what `open` gives, in a word for people.
        arguments: what `predict` is given, in the command that a training proposes.
        extra: of this package, that it needs; '' for none.
        model: the fields of `models.create`.
        source: where the weights come from.
        licence: of the weights; '' if they are one's own.
    """

    kind: ClassVar[str]
    field: ClassVar[str]
    runners: ClassVar[tuple[str, ...]] = ()
    inputs: ClassVar[str] = "files"
    arguments: ClassVar[str] = "FILES"
    extra: ClassVar[str] = ""
    model: Mapping[str, Any]
    source: str
    licence: str

    def write(self, folder: Path, published: str = "") -> None:
        """Write ``model.json``, at once or not at all, with a checksum; who changes it by hand takes that out.

        Args:
            folder: takes it.
            published: of a workdir, where in the training state the parameters are; see `tasks.Task`.
        """
        told = self.as_json()
        checksums.write_json(folder / FILE, {**told, "published": published} if published else told)

    def as_json(self) -> dict[str, Any]:
        """Return what ``model.json`` holds, from which `of_json` makes it again."""
        return {"kind": self.kind, **dataclasses.asdict(self)}  # pyright: ignore[reportArgumentType] - a dataclass

    @classmethod
    def of_json(cls, fields: Mapping[str, Any], where: str) -> Self:
        """Return what ``model.json`` describes, by its fields; a `UserError` says what is wrong with them."""
        return specs.call(cls, {n: tuple(v) if isinstance(v, list) else v for n, v in fields.items()}, where)

    def command(self, workdir: Path) -> str:
        """Return the command that asks the model in a workdir, with the modules of a user's own that it needs."""
        told = {**self.as_json(), "source": ""}
        modules = ",".join(plugins.imported_of(told))
        words = [f"--model={workdir}", *([f"--module={modules}"] if modules else [])]
        words += ["--features=features.npz"] if self.lack() else []
        return f"{cli.typed('python -m vit_jax_mixer.predict')} {shlex.join(words)} {self.arguments}"

    def of_checkpoint(self, scores: Mapping[str, float]) -> Self:
        """Return it as it is for a checkpoint of a workdir, of those evaluation scores, as with its own threshold."""
        return self

    # --- The model ---

    def create(self, where: str) -> nn.Module:
        """Return the Flax module; ``where`` is for messages."""
        # How a training saves time and memory changes nothing here but the layout of the parameters.
        fields = {name: value for name, value in self.model.items() if name not in ("scan", "remat")}
        return specs.call(models.create, fields, f"{where}: model")

    def shapes(self, module: nn.Module) -> Tree:
        """Return the shapes and types of the module's parameters."""
        like = self.input()
        batch = jax.ShapeDtypeStruct((1, *like.shape), like.dtype)
        return jax.eval_shape(module.init, jax.random.key(0), batch)["params"]

    @abc.abstractmethod
    def input(self) -> jax.ShapeDtypeStruct:
        """Return the shape and type of what the model reads of one example, without an axis for a batch."""

    @abc.abstractmethod
    def outputs(self, module: nn.Module, params: Tree, inputs: jax.Array) -> dict[str, jax.Array]:
        """Return what the model says, arrays [B, ...] by name; pure, as it is jitted, exported and planned.

        ``inputs`` [B, ...] are as `input` says. Where there are 'features' f32[B, C], they can be saved and probed.
        """

    @abc.abstractmethod
    def meanings(self) -> dict[str, str]:
        """Say in a few words what each of `outputs` is."""

    def check_features(self) -> None:
        """Raise a `UserError` if there are no features among `outputs`."""
        if "features" not in self.meanings():
            raise UserError(f"a model of the kind {self.kind!r} tells no features; leave out --features or --probe.")

    def given(self) -> dict[str, str]:
        """Return what an evaluation tells of how it read its data, for metrics.json."""
        return {}

    def card(self) -> ForCard:
        """Return what an export's card says beside the shapes."""
        return ForCard(
            f"""\
import jax
from vit_jax_mixer.trained import open_model

trained = open_model(FOLDER)
outputs = jax.jit(trained.outputs)(trained.params, {self.field}s)"""
        )

    def random_inputs(self, count: int) -> np.ndarray:
        """Return inputs on which an export is compared with the model."""
        like, rng = self.input(), np.random.default_rng(0)
        if np.issubdtype(like.dtype, np.floating):
            return rng.normal(size=(count, *like.shape)).astype(like.dtype)
        return rng.integers(0, 2, (count, *like.shape), like.dtype)

    def programs(self, module: nn.Module) -> dict[str, Program]:
        """Return the functions that an export writes, each to files of its name."""
        name, like = f"{self.field}s", self.input()
        return {
            "model": Program(
                lambda params, inputs: self.outputs(module, params, inputs[name]),
                lambda b: {name: jax.ShapeDtypeStruct((b, *like.shape), like.dtype)},
                lambda params, count: {name: self.random_inputs(count)},
            )
        }

    # --- What it reads ---

    def with_ops(self, ops: str) -> Self:
        """Return it with other operations on its data."""
        raise UserError(f"--ops={ops!r}: a model of the kind {self.kind!r} has no operations to change; leave it out.")

    @abc.abstractmethod
    def open(self, arguments: Sequence[str]) -> Source:
        """Return the examples that the arguments of a command stand for, in their order, without labels."""

    def form(self) -> list[Field]:
        """Return what a page asks for; one that is not overridden asks for a file."""
        return [Field("A file", "file")]

    def given_as_files(self, values: Sequence[Any], folder: Path) -> list[str]:
        """Return the arguments of `open` for the values of `form`; what is no file yet is written to the folder.

        Raises:
            UserError: a value is none of its kind.
        """
        del folder
        return [str(value) for value in values]

    @abc.abstractmethod
    def reader(self) -> Transform:
        """Return what makes {`field`: array} of an example."""

    def batches(self, source: Source, on_bad: Callable[[int, str], None]) -> Batches | None:
        """Return the examples of `open` or `open_labelled` in batches of about one length, where they have lengths.

        None where each has the shape of `input`, and is read as it is needed. Batches have the arrays of `reader` and
        of `labelled`, and 'place' i32[B], in the source.

        Args:
            source: of the examples.
            on_bad: is told the place of each one that is left out, and what is wrong with it.
        """
        del source, on_bad
        return None

    # --- What it answers ---

    def told(self, outputs: Mapping[str, jax.Array], most: int) -> Mapping[str, jax.Array]:
        """Return of `outputs` what an answer needs, as the ``most`` likeliest of all classes; traced."""
        return outputs

    def explain(self, module: nn.Module, params: Tree, inputs: jax.Array) -> Mapping[str, jax.Array]:
        """Return what shows why it answers so, arrays [B, ...]; pure, as `outputs`.

        Raises:
            UserError: a model of this kind, or this model, has no such explanation.
        """
        raise UserError(f"answers of a model of the kind {self.kind!r} have no pictures; leave out --explain.")

    def picture(self, answer: Any, row: Rows) -> Any:
        """Return a picture, as Pillow has it, that explains an answer; ``row`` has what `explain` returned too."""
        raise NotImplementedError(f"{type(self).__name__} has `explain`, and must draw it in `picture`")

    @abc.abstractmethod
    def answer(self, name: str, row: Rows) -> Answer:
        """Return the answer for an example, of its row of `told`."""

    def of_bad(self, name: str) -> Answer | None:
        """Return what stands for an example that cannot be read, where answers keep their places; None: nothing."""
        del name
        return None

    def lack(self) -> str:
        """Return why it gives no answers but features, as 'has no head'; '' if it does."""
        return ""

    # --- How good it is ---

    def open_labelled(self, name: str, split: str, *, skip_bad: bool) -> Source:
        """Open a split of a labelled dataset, as --data and --split name them."""
        return open_source(name, split, skip_bad)

    @abc.abstractmethod
    def labelled(self, source: Source, where: str, *, by_number: bool) -> Transform:
        """Return what makes {`field`: array, 'label': array} of a labelled example.

        ``where`` is the dataset for messages, ``by_number`` what --by_number says: labels are the model's by number.
        """

    @abc.abstractmethod
    def label(self) -> jax.ShapeDtypeStruct:
        """Return the shape and type of an example's label."""

    @abc.abstractmethod
    def scores(self, outputs: Mapping[str, jax.Array], labels: jax.Array) -> Mapping[str, jax.Array]:
        """Return what is counted of each example of a batch, arrays [B, ...]; traced."""

    @abc.abstractmethod
    def evaluated(self, rows: Rows, labelled: Any, per_second: float, skipped: Sequence[str]) -> Evaluated:
        """Return the figures of an evaluation.

        Args:
            rows: of `scores`, of all examples.
            labelled: what `labelled` returned.
            per_second: examples a second, reading and all, but for the compilation.
            skipped: a sentence for each bad example.
        """

    def explained(self, found: Any, source: Source, scores: Callable[[RandomAccess], Rows]) -> Any:
        """Return an evaluation with what takes the model's `scores` of more examples, as of changed ones, added to it.

        Args:
            found: what `evaluated` returned.
            source: the examples that were evaluated.
            scores: from labelled examples to the rows of `scores`, of all of them.
        """
        del source, scores
        return found
