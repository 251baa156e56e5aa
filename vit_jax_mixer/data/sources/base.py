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
    """

    examples: RandomAccess
    class_names: tuple[str, ...]
    where: Callable[[int], str]


Splits = Mapping[str, Callable[[], Source]]
"""The splits of a dataset: the name of each, and how to open it."""
