"""Sentences to their translations: of lines in files, and how good they are beside given ones."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax_mixer import specs
from vit_jax_mixer.data.groups import Batches
from vit_jax_mixer.data.sources import Source, open_source
from vit_jax_mixer.data.sources.text import in_order
from vit_jax_mixer.data.text import encoded
from vit_jax_mixer.data.text.vocabulary import Vocabulary
from vit_jax_mixer.errors import UserError, printable
from vit_jax_mixer.models import search
from vit_jax_mixer.predictors.base import Answer, Field, ForCard, Predictor, Program, Transform, Tree
from vit_jax_mixer.predictors.translation import lines, run_translation
from vit_jax_mixer.predictors.translation.programs import programs
from vit_jax_mixer.special_tokens import EOS, PAD, SPECIAL
from vit_jax_mixer.specs import Within

BeamSize = Annotated[int, Within(1, 64)]


@dataclasses.dataclass(frozen=True)
class Text(Predictor):
    """What a user of a model for text must know.

    Attributes:
        model: the fields of `models.create`.
        vocabulary: of both sides, a SentencePiece model in base64.
        source: where the weights come from.
        licence: of the weights; '' if they are one's own.
        beam_size: of the search; 1 takes the likeliest token each time.
        penalty: what its scores are divided by, a spec of `search.PENALTIES`.
    """

    kind = "text"
    field = "token"
    runners = (run_translation.__file__,)
    inputs = "lines"
    arguments = "LINES.txt"
    extra = "text"
    model: Mapping[str, Any]
    vocabulary: str
    source: str
    licence: str = ""
    beam_size: BeamSize = 1
    penalty: str = "length(0.6)"

    @classmethod
    def of_json(cls, fields: Mapping[str, Any], where: str) -> Self:
        found = super().of_json(fields, where)
        if not isinstance(found.model, dict) or not isinstance(found.model.get("max_length"), int):
            raise UserError(f"{where} cannot be read as the description of a model of text; mend it.")
        pieces = Vocabulary.of_text(found.vocabulary, where)
        if found.model.get("vocab_size") != len(pieces):
            raise UserError(
                f"{where}: its vocabulary has {len(pieces):,} pieces, its model {found.model.get('vocab_size')!r:.20}: "
                "it is another's; restore the file."
            )
        specs.build(search.PENALTIES, found.penalty, f"{where}: penalty")
        return found

    # --- The model ---

    @functools.cached_property
    def pieces(self) -> Vocabulary:
        """The vocabulary."""
        return Vocabulary.of_text(self.vocabulary, "model.json")

    def input(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.model["max_length"],), np.int32)

    def shapes(self, module: nn.Module) -> Tree:
        tokens = jax.ShapeDtypeStruct((1, self.model["max_length"]), jnp.int32)
        return jax.eval_shape(module.init, jax.random.key(0), tokens, tokens)["params"]

    def random_inputs(self, count: int) -> np.ndarray:
        rng, most = np.random.default_rng(0), self.model["max_length"]
        tokens = rng.integers(SPECIAL, self.model["vocab_size"], (count, most))
        last = rng.integers(most // 2, most, (count, 1))
        places = np.arange(most)
        return np.where(places < last, tokens, np.where(places == last, EOS, PAD)).astype(np.int32)

    def outputs(self, module: nn.Module, params: Tree, inputs: jax.Array) -> dict[str, jax.Array]:
        tokens, scores = search.translate(
            module, params, inputs, most_tokens(inputs, self.model["max_length"]), self.beam_size, self.penalty
        )
        return {"tokens": jnp.where(inputs[:, :1] == EOS, PAD, tokens), "score": scores}  # nothing stays nothing

    def meanings(self) -> dict[str, str]:
        return {
            "tokens": "the translation, which EOS ends",
            "score": "its log-probability over the power of its length",
        }

    def given(self) -> dict[str, str]:
        return {"search": f"beam({self.beam_size}, {self.penalty})"}

    def card(self) -> ForCard:
        return ForCard(
            code=_CODE,
            facts={"Vocabulary": f"{len(self.pieces):,} pieces", "Search": printable(self.given()["search"])},
            explained=", for any b: tokens of SentencePiece, then EOS (3), then padding (0); `model.json` has its "
            "model in base64, as `vocabulary`.",
            alone={
                "stablehlo": (_ALONE.format("jax=={jax} flatbuffers", "stablehlo"), _ALONE_CODE),
                "onnx": (_ALONE.format("onnxruntime", "onnx"), _ALONE_CODE),
            },
        )

    def programs(self, module: nn.Module) -> dict[str, Program]:
        return programs(module, self.shapes(module), self.model["max_length"], self.random_inputs)

    # --- What it reads ---

    def with_ops(self, ops: str) -> Self:
        """Return it with another search, as 'beam(8)' or "beam(4, 'gnmt(0.6)')"; 'beam(1)' is greedy."""

        def beam(size: BeamSize, penalty: str = self.penalty) -> Self:
            specs.build(search.PENALTIES, penalty, "--ops: penalty")
            return dataclasses.replace(self, beam_size=size, penalty=penalty)

        return specs.build({"beam": beam}, ops, "--ops")

    def open(self, arguments: Sequence[str]) -> Source:
        return in_order(arguments)

    def form(self) -> list[Field]:
        return [Field("Lines to translate", "lines")]

    def given_as_files(self, values: Sequence[Any], folder: Path) -> list[str]:
        (text,) = values
        if not (text or "").strip():
            raise UserError("there is no text; write a line.")
        file = folder / "lines.txt"
        file.write_text(text.strip(), encoding="utf-8")
        return [str(file)]

    def reader(self) -> Transform:
        return Read(self.pieces, self.model["max_length"])

    def batches(self, source: Source, on_bad: Callable[[int, str], None]) -> Batches:
        return lines.Lines(source, self.pieces, self.model["max_length"], on_bad)

    # --- What it answers ---

    def answer(self, name: str, row: Mapping[str, np.ndarray]) -> "Translation":
        return Translation(name, self.pieces.decode(row["tokens"].tolist()), float(row["score"]))

    def of_bad(self, name: str) -> "Translation":
        return Translation(name, "", None)

    # --- How good it is ---

    def open_labelled(self, name: str, split: str, *, skip_bad: bool) -> Source:
        source = open_source(name, split, skip_bad)
        most = self.model["max_length"]
        found, _ = encoded.encode(source, f"{name}, split {split}", self.pieces, most, skip_bad=skip_bad)
        return found

    def labelled(self, source: Source, where: str, *, by_number: bool) -> Transform:
        return Read(self.pieces, self.model["max_length"], source)

    def label(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((), np.int32)

    def scores(self, outputs: Mapping[str, jax.Array], labels: jax.Array) -> Mapping[str, jax.Array]:
        tokens = outputs["tokens"]  # of all lengths of lines together
        beyond = self.model["max_length"] - tokens.shape[1]
        return {"tokens": jnp.pad(tokens, ((0, 0), (0, beyond)), constant_values=PAD), "index": labels}

    def evaluated(
        self, rows: Mapping[str, np.ndarray], labelled: Any, per_second: float, skipped: Sequence[str]
    ) -> Any:
        from vit_jax_mixer.predictors.translation.figures import figures, signatures
        from vit_jax_mixer.predictors.translation.report import Evaluated

        order = np.argsort(rows["index"])
        pairs = [encoded.pair_of(labelled.source.examples[int(index)]) for index in rows["index"][order]]
        told = [self.pieces.decode(tokens) for tokens in rows["tokens"][order].tolist()]
        found = figures(told, [target for _, target in pairs])
        triples = [(*pair, translation) for pair, translation in zip(pairs, told, strict=True)]
        return Evaluated(found, signatures(), triples, per_second, skipped)


def most_tokens(inputs: jax.Array, most: int) -> int:
    """Return how long a translation of inputs i32[B, S] may be: twice theirs, as far as the model goes."""
    return min(2 * inputs.shape[1], most)


@dataclasses.dataclass(frozen=True)
class Read:
    """From a line to {'token': i32[S]} and, of a pair, its place in the source as the label.

    Attributes:
        pieces: the vocabulary.
        most: S.
        source: of the pairs, for `evaluated`; None for lines alone.
    """

    pieces: Vocabulary
    most: int
    source: Source | None = None

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        tokens = lines.read(example["source"], self.pieces, self.most)
        row = np.full(self.most, PAD, np.int32)
        row[: len(tokens) + 1] = [*tokens, EOS]
        return {"token": row, **({"label": np.int32(example["index"])} if "index" in example else {})}


@dataclasses.dataclass(frozen=True)
class Translation(Answer):
    """What the model makes of a line; nothing, without a score, of one that cannot be read."""

    name: str
    translation: str
    score: float | None
    features = None  # it tells none

    def text(self, width: int) -> str:
        return printable(self.translation)

    def record(self) -> dict[str, Any]:
        return {"line": self.name, "translation": self.translation, "score": self.score and float(f"{self.score:.7g}")}

    def cells(self) -> dict[str, Any]:
        return self.record()


_CODE = """\
import jax
from vit_jax_mixer.trained import open_model

trained = open_model(FOLDER)
outputs = jax.jit(trained.outputs)(trained.params, tokens)
print([trained.about.pieces.decode(row) for row in outputs["tokens"].tolist()])"""

_ALONE = (
    "`encoder.{1}` reads a source, and `step.{1}` is one step of decoding; `run_translation.py` searches with them. It "
    "needs `pip install sentencepiece {0}`, and nothing else: `python run_translation.py lines.txt`, or"
)
_ALONE_CODE = """\
import sys

sys.path.append(FOLDER)
from run_translation import load

translate = load(FOLDER)
print(translate("a line"))"""
