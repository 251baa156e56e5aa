"""What every kind of source gives."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol


class RandomAccess(Protocol):
    """What Grain needs of a source; threads share it, and worker processes get a pickled copy."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Source:
    """The examples of one split.

    Attributes:
        examples: dicts; of images, with 'image' (encoded bytes, or u8[H, W, C]) and 'label'.
        class_names: the name of each label; empty where labels have none.
        where: says, for messages, where example ``i`` comes from.
        passed_over: files and folders that are no examples, and lie where examples were looked for.
        notes: sentences that whoever uses the examples should read once.
    """

    examples: RandomAccess
    class_names: tuple[str, ...]
    where: Callable[[int], str]
    passed_over: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


Splits = Mapping[str, Callable[[], Source]]
"""The splits of a dataset: the name of each, and how to open it."""
