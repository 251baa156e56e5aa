"""The record of bad examples that a run left out (``config.data.on_bad_example='skip'``)."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vit_jax_mixer import files
from vit_jax_mixer.data.pipeline import Dataset
from vit_jax_mixer.errors import writing

_MOST = 1 << 30  # bytes of the list


class Skipped:
    """Lists each bad example once, with its reason, in ``skipped_examples.txt``.

    What is listed stays listed when the run goes on after a stop.
    """

    def __init__(self, workdir: Path, process: int, say: Callable[[str], None], shown: int = 5) -> None:
        """Read what is listed already.

        Args:
            workdir: of the run.
            process: this process's number; each has its own file.
            say: shows a line.
            shown: how many are shown; the others are in the file alone.
        """
        self._path = workdir / f"skipped_examples{f'.{process}' if process else ''}.txt"
        self._say = say
        self._shown = shown
        self._seen: set[tuple[int, int]] = set()
        # Names of files need not be UTF-8.
        self._text: Any = dict(encoding="utf-8", errors="surrogateescape")
        listed = files.read_bytes(self._path, _MOST) if os.path.lexists(self._path) else b""
        self._lines = set(listed.decode(**self._text).splitlines())

    def __call__(self, dataset: Dataset, index: int) -> None:
        """List an example, unless it is listed."""
        if (id(dataset), index) in self._seen:
            return
        self._seen.add((id(dataset), index))
        line = " ".join(dataset.fault(index).splitlines())
        if line in self._lines:
            return
        self._lines.add(line)
        with writing(self._path), self._path.open("a", **self._text) as file:
            file.write(line + "\n")
        if len(self._lines) <= self._shown:
            self._say(f"skipped: {line}")
        elif len(self._lines) == self._shown + 1:
            self._say(f"more bad examples are skipped; {self._path} lists them.")

    def summary(self) -> str:
        """Return how many there are in all; '' for none."""
        return f"{len(self._lines)} bad examples were skipped; {self._path} lists them." if self._lines else ""
