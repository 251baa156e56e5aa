"""A vocabulary of word pieces, as SentencePiece makes it of a corpus (Kudo and Richardson 2018, arXiv 1808.06226)."""

import base64
import functools
import hashlib
import importlib
import io
import os
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from vit_jax_mixer import files, specs
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.special_tokens import BOS, EOS, PAD, UNK
from vit_jax_mixer.specs import Within

_MOST = 64 << 20  # bytes of a model
_LONGEST = 1 << 20  # bytes of a sentence; SentencePiece's own 4,192 would leave longer ones out in silence
_SENTENCES = 2_000_000  # that a vocabulary is made of, at most
_SPECIAL = {"pad": PAD, "unk": UNK, "bos": BOS, "eos": EOS}
Size = Annotated[int, Within(8, 1 << 18)]


class Vocabulary:
    """From text to tokens and back."""

    def __init__(self, model: bytes, where: str) -> None:
        """Take a model of SentencePiece.

        Args:
            model: the bytes of its file.
            where: it comes from, for messages.

        Raises:
            UserError: it is none, or its special tokens have other numbers than ours.
        """
        self.model = model
        self._pieces: Any = _library().SentencePieceProcessor()
        try:
            self._pieces.LoadFromSerializedProto(model)
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"{where} is no SentencePiece model; name a .model file, or make a vocabulary.") from error
        found = {name: getattr(self._pieces, f"{name}_id")() for name in _SPECIAL}
        if found != _SPECIAL:
            told = ", ".join(f"{name} {number}" for name, number in found.items())
            raise UserError(
                f"{where} has {told}; make it with --pad_id={PAD} --unk_id={UNK} --bos_id={BOS} --eos_id={EOS}."
            )
        self._space = self._pieces.piece_to_id("▁")

    def __len__(self) -> int:
        return self._pieces.get_piece_size()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text, without BOS and EOS."""
        return self._pieces.encode(list(texts), num_threads=1)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens, up to EOS; UNK is shown as ⁇."""
        kept = []
        for token in map(int, tokens):
            if token == EOS:
                break
            if token not in (PAD, BOS):
                kept.append(token)
        return self._pieces.decode(kept).strip()

    def knows_none(self, tokens: Sequence[int]) -> bool:
        """Say whether all of a text is unknown."""
        return UNK in tokens and {*tokens} <= {UNK, self._space}

    @property
    def digest(self) -> str:
        """What tells it from others."""
        return hashlib.sha256(self.model).hexdigest()[:32]

    @property
    def text(self) -> str:
        """It, for JSON."""
        return base64.b64encode(self.model).decode()

    @classmethod
    def of_text(cls, text: Any, where: str) -> "Vocabulary":
        """Return what `text` gave."""
        try:
            model = base64.b64decode(text, validate=True)
        except (ValueError, TypeError) as error:
            raise UserError(f"{where} has a damaged vocabulary; restore the file.") from error
        return cls(model, f"the vocabulary in {where}")


def create(spec: str, sentences: Iterable[str], where: str) -> Vocabulary:
    """Return a vocabulary: of a file, where ``spec`` ends in '.model', else one made of the sentences.

    Of the same sentences it is made the same, whatever the machine: by one thread.

    Raises:
        UserError: there is no such file, or of so few sentences none of that size can be made.
    """
    if spec.endswith(".model"):
        path = os.path.expanduser(spec)
        return Vocabulary(files.read_bytes(path, _MOST), path)
    return specs.build({name: functools.partial(_made, sentences, where, name) for name in _KINDS}, spec, where)


_KINDS = ("unigram", "bpe", "word")


def _made(
    sentences: Iterable[str], where: str, kind: str, size: Size = 8000, coverage: Annotated[float, Within(0.9, 1)] = 1.0
) -> Vocabulary:
    library, model = _library(), io.BytesIO()
    try:
        library.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=kind,
            vocab_size=size,
            character_coverage=coverage,
            max_sentence_length=_LONGEST,
            hard_vocab_limit=False,  # of a small corpus it may be smaller
            num_threads=1,  # sums by several are rounded otherwise
            pad_id=PAD,
            unk_id=UNK,
            bos_id=BOS,
            eos_id=EOS,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = re.sub(r".*\] ?", "", " ".join(str(error).split()))[-200:]
        raise UserError(
            f"{where}: no vocabulary can be made by {kind}({size}) ({reason}); try another size."
        ) from error
    return Vocabulary(model.getvalue(), where)


def evenly(count: int) -> range:
    """Return which of so many sentences a vocabulary is made of: all or, of millions, an even choice."""
    return range(0, count, max(-(-count // _SENTENCES), 1))


def _library() -> Any:
    try:
        return importlib.import_module("sentencepiece")
    except ModuleNotFoundError as error:
        raise UserError("text needs the packages of the extra 'text'; run: pip install -e '.[text]'.") from error
