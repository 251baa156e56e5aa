"""The metrics of a run in files that a full disk, a kill or a power cut may interrupt."""

import io
import json
import os
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax

from vit_jax_mixer import files, specs
from vit_jax_mixer.errors import UserError, writing

Scalars = Mapping[str, float]


METRICS = "metrics.jsonl"
_LONGEST = 1 << 20  # bytes of a line
_MOST = 4 << 30  # bytes of a file: ten million lines


class Writer(Protocol):
    """Where metrics go: one that ``config.writers`` names, in process 0 alone.

    It is made by a call with ``workdir``, a `Path`, and ``start``, the updates made before: what it was told of later
    steps belongs to a run that was killed, and comes again.

    It may have more: ``picture(step, name, picture)`` takes pictures of Pillow's, and texts; where its ``histograms``
    is true, ``histogram(step, name, values)`` takes each parameter with each evaluation.
    """

    def write(self, step: int, scalars: Scalars, /) -> None:
        """Take numbers by name, as 'train/loss', that belong to the state after ``step`` updates."""

    def close(self) -> None:
        """Write what is still to be written; the run has ended, or stops."""


def open_writers(
    specs_of_all: str,
    workdir: Path,
    start: int,
    known: Mapping[str, Callable[..., Writer]] = types.MappingProxyType({}),
) -> list[Writer]:
    """Return the writers of specs joined by ``|``, as ``csv|my_module:Lines('x')``; none but in process 0.

    Those that are ``known`` need no module before their names. ``jsonl`` may be one of them, and makes none: the `Log`
    is always there.

    Raises:
        UserError: there is no such writer, or it does not take its arguments.
    """
    made = []
    for name in specs_of_all.split("|") if specs_of_all and _writes() else ():
        if name.strip() == "jsonl":
            continue
        writer = specs.build(known, name, "config.writers", workdir=workdir, start=start)
        if not all(callable(getattr(writer, method, None)) for method in ("write", "close")):
            raise UserError(f"config.writers: {name!r} makes no writer; give it the methods write and close.")
        made.append(writer)
    return made


class Log:
    """The metrics of a run in its workdir, which a run that goes on reads; process 0 writes, the others stay silent.

    ``metrics.jsonl`` holds one JSON object a line: ``step`` (updates made), then names.
    """

    def __init__(self, workdir: Path, start: int, say: Callable[[str], None] = print) -> None:
        """Open the file; what a killed run wrote after its checkpoint at ``start`` is taken back.

        Args:
            workdir: where it is.
            start: updates made before.
            say: is told once when a file cannot be written.

        Raises:
            UserError: the workdir cannot be written.
        """
        self._file: Appended | None = None
        self._workdir, self._say = workdir, say
        path = workdir / METRICS
        self._last: Scalars = {}
        self.evaluations: dict[int, Scalars] = {}  # by step, of those that the file has
        kept = []  # as text, which takes less memory
        for line in read_lines(path):
            if line["step"] <= start:
                self._last = line
                if is_evaluation(line):
                    self.evaluations[int(line["step"])] = line
                kept.append(json.dumps(line) + "\n")
        if _writes():
            with writing(path):
                files.write_atomically(path, "".join(kept))
                self._file = Appended(path, say)

    def write(self, step: int, scalars: Scalars) -> None:
        """Write numbers that belong to the state after ``step`` updates."""
        if self._file:
            self._file.write((json.dumps({"step": step, **scalars}) + "\n").encode())

    def picture(self, step: int, name: str, picture: Any) -> None:
        """Write a picture, as Pillow has it, to ``pictures/NAME_STEP.png``; a text to .txt; a full disk is told of."""
        if not self._file:
            return
        ending = "txt" if isinstance(picture, str) else "png"
        data = picture.encode() if isinstance(picture, str) else png(picture)
        place = self._workdir / "pictures" / f"{name}_{step}.{ending}"
        try:
            place.parent.mkdir(exist_ok=True)
            files.write_atomically(place, data)
        except OSError as error:
            self._say(f"cannot write {place} ({error.strerror}); the run goes on without it")

    def has_evaluation(self, step: int) -> bool:
        """Say whether the last line that was found is an evaluation of ``step``."""
        return self._last.get("step") == step and is_evaluation(self._last)

    def close(self) -> None:
        if self._file:
            self._file.close()


def png(picture: Any) -> bytes:
    """Return a picture of Pillow's as a PNG file."""
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def is_evaluation(line: Iterable[str]) -> bool:
    """Say whether names, as those of a line of the log, are of an evaluation, and not of training."""
    return not any(name.startswith(("train/", "perf/")) for name in line)


def _writes() -> bool:
    return jax.process_index() == 0


class Appended:
    """A file that grows. What a full disk does not take waits in memory for the next write."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self._file = path.open("ab", buffering=0)
        self._path = path
        self._say = say
        self._waiting = b""
        self._failing = False

    def write(self, data: bytes) -> None:
        """Append; what is written survives a kill."""
        self._waiting += data
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
            self._failing = False
        except OSError as error:
            if not self._failing:
                self._say(f"cannot write to {self._path} ({error.strerror}); its lines wait until there is room")
            self._failing = True

    def close(self) -> None:
        self.write(b"")
        if self._waiting:
            self._say(f"{self._path} lacks its last lines: there is still no room for them")
        self._file.close()


def read_lines(path: Path) -> Iterator[dict[str, float]]:
    """Yield the lines of a file, but for those that a kill has cut, a power cut has emptied or that are none.

    Raises:
        UserError: the file is no regular one, or larger than any log.
    """
    if not os.path.lexists(path):
        return
    with files.open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MOST:
            raise UserError(f"{path} has {size:,} bytes, more than the {_MOST:,} that are read; look at it.")
        lines = io.BufferedReader(file, 1 << 20)  # pyright: ignore[reportArgumentType] # it is a FileIO
        while line := lines.readline(_LONGEST):
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict) and type(found.get("step")) is int:
                yield found
