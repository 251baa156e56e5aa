"""What every kind of source gives."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from vit_jax_mixer.errors import UserError

_MOST_READ = 200_000  # examples whose labels are read one by one


class RandomAccess(Protocol):
    """What Grain needs of a source; threads share it, and worker processes get a pickled copy.

    It may have a method ``traits()``; see the function of that name. One whose examples are arrays in memory may
    have ``batch(indices)``, from i64[B] to all of these in one, {name: [B, ...]}.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Source:
    """The examples of one split.

    Attributes:
        examples: dicts; of images, with 'image' (encoded bytes, or u8[H, W, C]) and, but for those of
            data without, 'label'.
        class_names: the name of each label; empty where labels have none.
        where: says, for messages, where example ``i`` comes from.
        passed_over: files and folders that are no examples, and lie where examples were looked for.
        notes: sentences that whoever uses the examples should read once.
        unlabelled: why examples have no label of a class, and what to do about it; '' where they have one.
    """

    examples: RandomAccess
    class_names: tuple[str, ...]
    where: Callable[[int], str]
    passed_over: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unlabelled: str = ""

    def check_labelled(self, where: str, who: str) -> None:
        """Raise a `UserError` if there are no classes: ``who``, as 'the task', needs them of the data ``where``."""
        if not self.class_names:
            why = self.unlabelled or f"{where} has no class labels; choose another dataset."
            raise UserError(f"{who} needs labels, and {why}")

    def passed(self, shown: int = 5) -> str:
        """Say how many files and folders were passed over, and name the first; '' for none."""
        more = ", ..." if len(self.passed_over) > shown else ""
        names = ", ".join(self.passed_over[:shown]) + more
        return f"{len(self.passed_over):,} files or folders hold no image: {names}" if names else ""

    def remarks(self) -> list[str]:
        """Return the lines that tell what was passed over and the notes."""
        return [f"passed over: {self.passed()}"] * bool(self.passed_over) + list(self.notes)


Splits = Mapping[str, Callable[[], Source]]
"""The splits of a dataset: the name of each, and how to open it."""


def labels_of(source: Source, field: str) -> np.ndarray:
    """Return the label of each example, int[N], which ``field``, what a person wrote, needs.

    Raises:
        UserError: they are not known, or only by reading very many examples.
    """
    source.check_labelled("the dataset", field)
    labels = getattr(source.examples, "labels", None)
    if labels is None:
        count = len(source.examples)
        if count > _MOST_READ:
            raise UserError(
                f"{field} needs the labels of all {count:,} examples at once, and this dataset gives them one by one, "
                f"which takes too long above {_MOST_READ:,}; use a folder:, manifest:, idx: or hf: dataset."
            )
        labels = np.array([int(source.examples[i]["label"]) for i in range(count)])
    bad = np.flatnonzero((labels < 0) | (labels >= len(source.class_names)))
    if len(bad):
        raise UserError(
            f"{field} needs labels, and {source.where(int(bad[0]))} has {labels[bad[0]]}; name another split."
        )
    return labels


def traits(examples: RandomAccess) -> Iterator[bytes]:
    """Yield what tells examples from others at little cost, the same wherever they lie.

    That is what their own ``traits()`` yields, such as all names and labels; or else a `sample`.
    """
    own = getattr(examples, "traits", None)
    yield from own() if own else sample(examples)


def sample(examples: RandomAccess) -> Iterator[bytes]:
    """Yield the content of a few examples."""
    for index in evenly(len(examples), 32):
        try:
            example = examples[index]
        except Exception:  # who trains on it is told of it, whatever it is
            continue
        for name, value in sorted(example.items()):
            yield name.encode()
            yield value if isinstance(value, bytes) else np.asarray(value).tobytes()  # of a str, its code points


def evenly(count: int, most: int) -> range:
    """Return at most ``most`` indices of ``count``, evenly spread."""
    return range(0, count, max(-(-count // most), 1))
