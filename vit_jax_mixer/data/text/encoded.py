"""Pairs of sentences as tokens, in memory, in batches of about one length."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax_mixer.data.groups import EMPTY, Batch, Batches, Groups, lengths_for
from vit_jax_mixer.data.sources.base import RandomAccess, Source, traits
from vit_jax_mixer.data.text.vocabulary import Vocabulary
from vit_jax_mixer.errors import UserError, printable
from vit_jax_mixer.special_tokens import EOS, PAD

_AT_A_TIME = 4096  # pairs


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """The tokens of one side of all pairs, one after another, each sentence with its EOS.

    Attributes:
        tokens: i32[sum].
        begins: i64[N + 1].
    """

    tokens: np.ndarray
    begins: np.ndarray

    @classmethod
    def of(cls, sentences: Sequence[Sequence[int]]) -> "Side":
        ended = [[*tokens, EOS] for tokens in sentences]
        begins = np.cumsum([0, *map(len, ended)], dtype=np.int64)
        return cls(np.fromiter((token for one in ended for token in one), np.int32, count=int(begins[-1])), begins)

    @property
    def counts(self) -> np.ndarray:
        """How many tokens each sentence has, i64[N]."""
        return np.diff(self.begins)

    def padded(self, indices: np.ndarray, length: int) -> np.ndarray:
        """Return i32[B, length]; all padding for `EMPTY`."""
        begins = self.begins[indices]
        counts = np.where(indices == EMPTY, 0, self.begins[indices + 1] - begins)[:, None]
        there = np.arange(length) < counts
        return np.where(there, self.tokens[np.where(there, begins[:, None] + np.arange(length), 0)], np.int32(PAD))


class Pairs(Batches):
    """Pairs as {'inputs': i32[B, S], 'targets': i32[B, S], 'index': i32[B]}, the place in the source.

    An empty one has EOS alone for its inputs, and targets that are padding.
    """

    def __init__(self, sides: tuple[Side, Side], lengths: Sequence[int], multiple: int) -> None:
        self._sides = sides
        self.groups = Groups(np.searchsorted(lengths, _longer(sides)), lengths, multiple)

    def gather(self, indices: np.ndarray, length: int) -> Batch:
        inputs, targets = (side.padded(indices, length) for side in self._sides)
        inputs[indices == EMPTY, 0] = EOS
        return {"inputs": inputs, "targets": targets, "index": indices.astype(np.int32)}


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
    """The examples of a source that are of use, each with its place among them, 'index'."""

    examples: RandomAccess
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.examples[int(self.indices[index])], "index": index}

    def traits(self) -> Iterator[bytes]:
        """Yield those of the source, and what is kept of it."""
        yield from traits(self.examples)
        yield self.indices.tobytes()


def encode(
    source: Source, name: str, vocabulary: Vocabulary, most: int, *, skip_bad: bool
) -> tuple[Source, tuple[Side, Side]]:
    """Return the pairs that are of use, and their tokens.

    Args:
        source: of pairs.
        name: of it, for messages.
        vocabulary: of both sides.
        most: tokens of a side, EOS counted.
        skip_bad: pass over what is bad, and say so in the source's notes; or else the first one is an error.

    Raises:
        UserError: a pair is bad, or none is left.
    """
    kept: list[int] = []
    sides: tuple[list[list[int]], list[list[int]]] = ([], [])
    passed: list[str] = []

    def bad(index: int, reason: object) -> None:
        sentence = f"{printable(source.where(index))}: {reason}"
        if not skip_bad:
            raise UserError(f"{sentence} To pass over such pairs, set on_bad_example='skip'.")
        passed.append(sentence)

    for first in range(0, len(source.examples), _AT_A_TIME):
        found: dict[int, tuple[str, str]] = {}
        for index in range(first, min(first + _AT_A_TIME, len(source.examples))):
            try:
                found[index] = pair_of(source.examples[index])
            except UserError as error:
                bad(index, error)
        both = [vocabulary.encode([pair[side] for pair in found.values()]) for side in (0, 1)]
        for index, *pair in zip(found, *both, strict=True):
            if reason := fault(vocabulary, {"source": pair[0], "target": pair[1]}, most):
                bad(index, reason)
                continue
            kept.append(index)
            for side, tokens in zip(sides, pair, strict=True):
                side.append(tokens)
    if not kept:
        raise UserError(f"{name} has no pair that is of use; the first: {passed[0]}")
    indices = np.array(kept)
    where: Callable[[int], str] = lambda index: source.where(int(indices[index]))
    notes = (*source.notes, *_passed_over(passed, len(source.examples), name))
    left = dataclasses.replace(source, examples=Kept(source.examples, indices), where=where, notes=notes)
    return left, (Side.of(sides[0]), Side.of(sides[1]))


def pair_of(example: Mapping[str, Any]) -> tuple[str, str]:
    """Return source and target of an example; a `UserError` if it has none."""
    if not {"source", "target"} <= example.keys():
        raise UserError(f"it is no pair of sentences, but has {', '.join(example)}; name a source of pairs.")
    return example["source"], example["target"]


def fault(vocabulary: Vocabulary, sides: Mapping[str, Sequence[int]], most: int) -> str:
    """Return what is wrong with sentences as tokens; '' for nothing."""
    for side, tokens in sides.items():
        if len(tokens) + 1 > most:
            return f"its {side} has {len(tokens) + 1:,} tokens, EOS counted, more than max_length ({most}); cut it."
        if vocabulary.knows_none(tokens):
            return f"its {side} has only characters that the vocabulary lacks; write it in its language."
        if not tokens:
            return f"its {side} has nothing that can be read; fill it, or remove the line."
    return ""


def _passed_over(passed: Sequence[str], count: int, name: str) -> list[str]:
    if not passed:
        return []
    return [f"{name}: {len(passed):,} of {count:,} pairs are passed over; the first: {passed[0]}"]


def lengths_of(sides: tuple[Side, Side], shapes: int) -> tuple[int, ...]:
    """Return at most so many lengths, which pad these pairs least."""
    return lengths_for(_longer(sides), shapes)


def _longer(sides: tuple[Side, Side]) -> np.ndarray:
    """Return the tokens of the longer side of each pair, i64[N]."""
    return np.maximum(sides[0].counts, sides[1].counts)
