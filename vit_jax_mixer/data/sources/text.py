"""Pairs of sentences, a line each: of one file with tabs, or of two files side by side; gzipped or not."""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from vit_jax_mixer import files
from vit_jax_mixer.data.sources.base import Source, Splits
from vit_jax_mixer.errors import UserError

_MOST = 1 << 36  # bytes of a file as it lies on the disk
_SUFFIXES = (".tsv", ".txt", ".tsv.gz", ".txt.gz")
_GZIP = b"\x1f\x8b"


@dataclasses.dataclass(frozen=True, eq=False)
class Lines:
    """The lines of a file, in memory.

    Attributes:
        path: of the file, for messages.
        data: its bytes.
        ends: i64[N], where each line ends.
    """

    path: str
    data: bytes
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        """Return a line without its end; a `UserError` if it is no UTF-8."""
        begin = int(self.ends[index - 1]) + 1 if index else 0
        line = self.data[begin : int(self.ends[index])].removesuffix(b"\r")
        try:
            return line.decode("utf-8-sig" if index == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"it is no UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8.") from error


def read(path: str) -> Lines:
    """Read a text, gzipped or not; '-' is standard input.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    if path == "-":
        data, path = sys.stdin.buffer.read(), "standard input"
    else:
        path = os.path.expanduser(path)
        data = files.read_bytes(path, _MOST)
    if data.startswith(_GZIP):
        data = files.unpacked(path, data)
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
    if data and not data.endswith(b"\n"):
        ends = np.append(ends, len(data))
    return Lines(path, data, ends)


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs {'source': str, 'target': str}; a bad one is a `UserError` when it is asked for.

    Attributes:
        sides: one file with tabs between the sides, or a file for each.
        order: i64[N], the line of each pair.
    """

    sides: tuple[Lines, ...]
    order: np.ndarray

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, str]:
        line = int(self.order[index])
        cells = [side[line] for side in self.sides]
        if len(self.sides) == 1:
            cells = cells[0].split("\t")
            if len(cells) < 2:
                raise UserError("it has no tab between source and target; write both on one line, with a tab.")
        source, target = (cell.strip() for cell in cells[:2])  # what follows is of others, as whose sentence it is
        for name, side in (("source", source), ("target", target)):
            if not side:
                raise UserError(f"its {name} is empty; fill it, or remove the line.")
        return {"source": source, "target": target}

    def where(self, index: int) -> str:
        """Say where a pair stands."""
        return f"{' and '.join(side.path for side in self.sides)}, line {int(self.order[index]) + 1}"

    def traits(self) -> Iterator[bytes]:
        """Yield all that is read."""
        for side in self.sides:
            yield side.data


def open_text(place: str) -> Splits:
    """Return the splits of ``FILE``, ``SOURCE,TARGET``, ``DIR`` or ``DIR,en,es``.

    Those of files are 'all'. Those of a folder are its files, as train.tsv and test.tsv.gz, or with two endings its
    pairs of files, as train.en and train.es.
    """
    parts = [os.path.expanduser(part) for part in place.split(",")]
    folder = Path(parts[0])
    if folder.is_dir() and len(parts) in (1, 3):
        found = _of_folder(folder, parts[1:])
        if not found:
            wanted = f"two files, as train.{parts[1]} and train.{parts[2]}" if len(parts) == 3 else ", ".join(_SUFFIXES)
            raise UserError(f"text:{place}: the folder has no pairs of sentences; expected {wanted}.")
        return {split: functools.partial(_open, paths) for split, paths in found.items()}
    whole = os.path.expanduser(place)
    if len(parts) == 1 or os.path.lexists(whole):
        return {"all": functools.partial(_open, (whole,))}
    if len(parts) != 2:
        raise UserError(f"text:{place} is not of the form FILE, SOURCE,TARGET, DIR or DIR,en,es.")
    return {"all": functools.partial(_open, tuple(parts))}


def _of_folder(folder: Path, endings: Sequence[str]) -> dict[str, tuple[str, ...]]:
    names = sorted(one.name for one in folder.iterdir() if one.is_file() and one.name[0] not in "._")
    if not endings:
        of_split = {name.removesuffix(end): name for name in names for end in _SUFFIXES if name.endswith(end)}
        stems = {split.removesuffix(".tsv").removesuffix(".txt"): name for split, name in of_split.items()}
        return {split: (str(folder / name),) for split, name in stems.items()}
    sides = [
        {
            name.removesuffix(end): name
            for name in names
            for end in (f".{ending}", f".{ending}.gz")
            if name.endswith(end)
        }
        for ending in endings
    ]
    return {split: tuple(str(folder / side[split]) for side in sides) for split in sides[0] if split in sides[1]}


def _open(paths: tuple[str, ...]) -> Source:
    sides = tuple(map(read, paths))
    if len({len(side) for side in sides}) > 1:
        one, two = sides
        raise UserError(
            f"{one.path} has {len(one):,} lines and {two.path} {len(two):,}; line by line they must be of one pair."
        )
    # In an order that is as good as random and always the same: a part of them is a fair one.
    pairs = Pairs(sides, np.random.default_rng(len(sides[0])).permutation(len(sides[0])))
    return Source(pairs, (), pairs.where)


@dataclasses.dataclass(frozen=True, eq=False)
class Single:
    """Lines {'source': str} of files, one after the other, as they stand in them."""

    texts: tuple[Lines, ...]

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(text) for text in self.texts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _locate(self, index: int) -> tuple[Lines, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self.texts[number], index - int(self._ends[number - 1] if number else 0)

    def __getitem__(self, index: int) -> dict[str, str]:
        text, line = self._locate(index)
        return {"source": text[line].strip()}

    def where(self, index: int) -> str:
        """Say where a line stands."""
        text, line = self._locate(index)
        return f"{text.path}, line {line + 1}"


def in_order(paths: Sequence[str]) -> Source:
    """Return all lines of files, for `predict`.

    Raises:
        UserError: one cannot be read, or there is no line.
    """
    lines = Single(tuple(map(read, paths)))
    if not len(lines):
        raise UserError(f"{', '.join(paths)} has no line; write a sentence a line.")
    return Source(lines, (), lines.where)


# --- Numbers and their names, which need no download ---

_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_NAMES = [*_ONES.split(), "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_LARGEST = 1_000_000


def in_words(number: int) -> str:
    """Return the English name of a number from 0 to 999,999."""
    if number < 20:
        return _NAMES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens - 2] + (f" {_NAMES[ones]}" if ones else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    times, rest = divmod(number, size)
    return f"{in_words(times)} {name}" + (f" {in_words(rest)}" if rest else "")


@dataclasses.dataclass(frozen=True, eq=False)
class Numbers:
    """Pairs as '4 0 7' and 'four hundred seven'."""

    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, str]:
        number = int(self.numbers[index])
        return {"source": " ".join(str(number)), "target": in_words(number)}


def open_numbers(place: str) -> Splits:
    """Return the splits 'train', of ``place`` different numbers below a million, and 'test', of others, a tenth."""
    if not place.isdecimal() or not 10 <= int(place) <= 500_000:
        raise UserError(f"numbers:{place} must say how many pairs there are, from 10 to 500,000, as numbers:20000.")
    count = int(place)
    rng = np.random.default_rng(0)
    # Of one to six digits, each kind as often, as far as there are so many.
    digits = rng.integers(1, 7, 4 * count)
    drawn = (rng.random(4 * count) * 10.0**digits).astype(np.int64)
    numbers = np.unique(np.concatenate([drawn, rng.integers(0, _LARGEST, 8 * count)]), return_index=True)
    order = numbers[0][np.argsort(numbers[1], kind="stable")]  # each once, as first drawn
    of = {"train": order[:count], "test": order[count : count + max(count // 10, 1)]}
    opened: Callable[[str], Source] = lambda name: Source(Numbers(of[name]), (), f"numbers:{place}, {name} {{}}".format)
    return {name: functools.partial(opened, name) for name in of}
