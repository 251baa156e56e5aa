"""Sentences to sentences: a vocabulary of both sides, a sequence-to-sequence model, and BLEU."""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax_mixer import models, specs
from vit_jax_mixer.config import Config
from vit_jax_mixer.data.pipeline import Dataset, as_it_is
from vit_jax_mixer.data.sources import Source, open_source
from vit_jax_mixer.data.text import encoded, vocabulary
from vit_jax_mixer.errors import UserError, printable
from vit_jax_mixer.models import search
from vit_jax_mixer.predictors.text import BeamSize, Text, most_tokens
from vit_jax_mixer.special_tokens import BOS, PAD
from vit_jax_mixer.specs import Share, Within
from vit_jax_mixer.tasks.base import Aux, Outputs, Task, TrainState, Tree
from vit_jax_mixer.tasks.smoothing import label_smoothed


def create(
    run: Config, label_smoothing: Share, beam_size: BeamSize, penalty: str, samples: Annotated[int, Within(0, 1000)]
) -> "Translation":
    """Build the task from ``config.task``, ``model`` and ``data``."""
    specs.build(search.PENALTIES, penalty, "config.task.penalty")
    most = run.model.get("max_length")
    if not isinstance(most, int):
        most = 0  # which the model, when it is made, says is wrong
    data = specs.call(TextData, run.data, "config.data", max_length=most)
    fields = {**run.model, "vocab_size": len(data.pieces)}
    model = specs.call(models.create, fields, "config.model")
    about = Text(
        model=fields,
        vocabulary=data.pieces.text,
        source=f"trained on {run.data['source']} {run.data['train']}",
        beam_size=beam_size,
        penalty=penalty,
    )
    return Translation(model, data, about, label_smoothing, samples, most)


class TextData:
    """Pairs for training and evaluation, as tokens in memory.

    Attributes:
        pieces: the vocabulary, made of the pairs for training alone.
        train: batches {'inputs', 'targets': i32[B, L]} of a few lengths L.
        eval: the same for the evaluation, by the name of its split.
    """

    def __init__(
        self,
        source: str,
        train: str,
        eval: str,
        vocabulary: str,
        shapes: Annotated[int, Within(1, 8)],
        multiple: Annotated[int, Within(1, 1 << 16)],
        on_bad_example: str,
        *,
        max_length: int,
    ) -> None:
        """Take ``config.data``; ``configs/translate.py`` says what each field is.

        Raises:
            UserError: an unknown source or split, a bad pair that is not to be passed over, or no vocabulary.
        """
        skip_bad = specs.lookup({"stop": False, "skip": True}, on_bad_example, "config.data.on_bad_example")
        opened = open_source(source, train)
        self.pieces = _vocabulary_of(opened, vocabulary, skip_bad)

        def encode(found: Source, split: str) -> Any:
            return encoded.encode(found, f"{source}, split {split}", self.pieces, max_length, skip_bad=skip_bad)

        found, sides = encode(opened, train)
        lengths = encoded.lengths_of(sides, shapes)
        self.train = Dataset(found, as_it_is, batches=encoded.Pairs(sides, lengths, multiple))
        self.eval: dict[str, Dataset] = {}
        if eval:
            found, sides = encode(open_source(source, eval), eval)
            longest = max(int(side.counts.max()) for side in sides)
            more = (max_length,) if longest > lengths[-1] else ()
            self.eval[eval] = Dataset(found, as_it_is, batches=encoded.Pairs(sides, (*lengths, *more), multiple))


def _vocabulary_of(source: Source, spec: str, skip_bad: bool) -> vocabulary.Vocabulary:
    def sentences() -> Iterator[str]:
        for index in vocabulary.evenly(len(source.examples)):
            try:
                yield from encoded.pair_of(source.examples[index])
            except UserError:  # who encodes it tells of it
                continue

    return vocabulary.create(spec, sentences(), "config.data.vocabulary")


class Translation(Task):
    """Tokens of a source to those of its translation."""

    def __init__(
        self, model: Any, data: TextData, about: Text, label_smoothing: float, samples: int, most: int
    ) -> None:
        self.model, self.data = model, data
        self.train_data, self.eval_data = data.train, data.eval
        self.digests = {"the vocabulary": data.pieces.digest}
        self._about = about
        self._label_smoothing, self._samples, self._most = label_smoothing, samples, most

    def about(self) -> Text:
        return self._about

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        tokens = jnp.zeros((1, self._most), jnp.int32)
        return self.model.init(key, tokens, tokens)["params"], ()

    def _losses(self, params: Tree, batch: Mapping[str, jax.Array], **how: Any) -> tuple[jax.Array, ...]:
        """Return of each target the smoothed and the plain cross-entropy, and whether it is told: [B, T] each."""
        targets = batch["targets"]
        before = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=BOS)
        logits = self.model.apply({"params": params}, batch["inputs"], before, **how)
        smoothed, plain = label_smoothed(logits, targets, self._label_smoothing)
        return smoothed, plain, (jnp.argmax(logits, -1) == targets) & (targets != PAD)

    def loss(
        self, params: Tree, state: TrainState, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """Return means over the tokens of the targets: the smoothed cross-entropy, the plain one, what is told."""
        smoothed, plain, told = self._losses(params, batch, train=True, rngs={"dropout": key})
        count = jnp.sum(batch["targets"] != PAD).astype(jnp.float32)
        metrics = {"nll": jnp.sum(plain) / count, "token_accuracy": jnp.sum(told) / count}
        return jnp.sum(smoothed) / count, Aux(metrics, weight=count)

    def eval_step(self, state: TrainState, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Return each pair's sums over its tokens, and its translation with the likeliest token each time."""
        smoothed, plain, told = self._losses(state.params, batch, train=False)
        inputs = batch["inputs"]
        tokens, _ = search.translate(self.model, state.params, inputs, most_tokens(inputs, self._most))
        sums = {"loss": smoothed, "nll": plain, "token_accuracy": told, "tokens": batch["targets"] != PAD}
        return {name: jnp.sum(values, -1) for name, values in sums.items()} | {
            "translation": tokens,
            "index": batch["index"],
        }

    def evaluate(self, outputs: Callable[[str], Iterator[Outputs]]) -> dict[str, float]:
        """Return SPLIT/NAME: means over tokens, perplexity, BLEU, chrF and the share of exact matches."""
        from vit_jax_mixer.predictors.translation.figures import figures

        found: dict[str, float] = {}
        for split in self.data.eval:
            batches = list(outputs(split))
            total = {
                name: float(sum(np.sum(batch[name], dtype=np.float64) for batch in batches))
                for name in ("loss", "nll", "token_accuracy", "tokens")
            }
            of_split = {name: total[name] / total["tokens"] for name in ("loss", "nll", "token_accuracy")}
            of_split["perplexity"] = float(np.exp(of_split["nll"]))
            rows = [row for batch in batches for row in self._told(split, batch)]
            of_split |= figures([told for _, _, told in rows], [target for _, target, _ in rows])
            found |= {f"{split}/{name}": value for name, value in of_split.items()}
        return found

    def pictures(self, outputs: Callable[[str], Iterator[Outputs]]) -> dict[str, str]:
        """Return the first few pairs of each split with their translations, and how BLEU is counted."""
        from vit_jax_mixer.predictors.translation.figures import signatures

        found = {}
        for split in self.data.eval if self._samples else ():
            rows: list[tuple[str, str, str]] = []
            for batch in outputs(split):
                rows += self._told(split, batch)
                if len(rows) >= self._samples:
                    break
            lines = [f"BLEU {signatures()['bleu']}", ""]
            for row in rows[: self._samples]:
                lines += [printable(f"{name:7} {text}") for name, text in zip(_NAMES, row, strict=True)] + [""]
            found[f"translations_{printable(split).replace('/', '_')}"] = "\n".join(lines)
        return found

    def _told(self, split: str, batch: Outputs) -> Iterator[tuple[str, str, str]]:
        """Yield (source, target, translation) of each row."""
        examples, pieces = self.data.eval[split].source.examples, self.data.pieces
        for index, tokens in zip(batch["index"].tolist(), batch["translation"].tolist(), strict=True):
            yield (*encoded.pair_of(examples[index]), pieces.decode(tokens))


_NAMES = ("source", "given", "told")
