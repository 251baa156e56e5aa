"""Lines as tokens, in batches of about one length, for who uses a model of text."""

from collections.abc import Callable, Generator, Sequence

import numpy as np

from vit_jax_mixer.data.groups import EMPTY, Batch, Batches, Groups
from vit_jax_mixer.data.order import IS_EXAMPLE, Share
from vit_jax_mixer.data.pipeline import placed
from vit_jax_mixer.data.sources.base import Source
from vit_jax_mixer.data.text import encoded
from vit_jax_mixer.data.text.vocabulary import Vocabulary
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.special_tokens import EOS

_WINDOW = 2048  # lines that are put into groups at a time, so that answers come while others are being made


class Lines(Batches):
    """The 'source' of examples as {'token': i32[B, S], 'label': i32[B], 'place': i32[B]}, both the place in the source.

    S depends on a line alone, so that what is said of it does not depend on the lines beside it.
    """

    def __init__(self, source: Source, vocabulary: Vocabulary, most: int, on_bad: Callable[[int, str], None]) -> None:
        """Read all lines.

        Args:
            source: of examples.
            vocabulary: of the model.
            most: tokens of a line, EOS counted, that the model takes.
            on_bad: is told the place of each line that is left out, and what is wrong with it.
        """
        places: list[int] = []
        lines: list[Sequence[int]] = []
        for place in range(len(source.examples)):
            try:
                lines.append(read(source.examples[place]["source"], vocabulary, most))
            except UserError as error:
                on_bad(place, str(placed(error, source, place)))
            else:
                places.append(place)
        self._places, self._side = np.array(places, np.int32), encoded.Side.of(lines)
        lengths = ladder(most)
        self.groups = Groups(np.searchsorted(lengths, self._side.counts), lengths, 1)

    def gather(self, indices: np.ndarray, length: int) -> Batch:
        tokens = self._side.padded(indices, length)
        tokens[indices == EMPTY, 0] = EOS
        places = self._places[indices] if len(self._places) else np.zeros(len(indices), np.int32)
        return {"token": tokens, "label": places, "place": places}

    def evaluation(self, rows: int, share: Share) -> Generator[Batch, None, None]:
        """Yield batches as `Batches` says, of a few thousand lines after the other."""
        for first in range(0, len(self.groups.group), _WINDOW):
            window = Groups(self.groups.group[first : first + _WINDOW], self.groups.lengths, 1)
            for indices, length in window.once(rows):
                mine = indices[share.rows(rows)]
                mine = np.where(mine == EMPTY, EMPTY, mine + first)
                yield self.gather(mine, length) | {IS_EXAMPLE: mine != EMPTY}


def read(line: str, vocabulary: Vocabulary, most: int) -> list[int]:
    """Return the tokens of a line, none of an empty one; a `UserError` if they cannot be read, or are too many."""
    (tokens,) = vocabulary.encode([line])
    if tokens and (reason := encoded.fault(vocabulary, {"source": tokens}, most)):
        raise UserError(reason)
    return tokens


def ladder(most: int) -> tuple[int, ...]:
    """Return the at most eight lengths that lines are padded to: the most, and down from it by 3/4 and 2/3 in turn."""
    return tuple(sorted({-(-most * part // (4 << halved)) for halved in range(4) for part in (4, 3)}))
