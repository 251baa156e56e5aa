"""Writers of metrics that ``config.writers`` knows by name, beside `writers.Log`, which is always there."""

import importlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax_mixer import files
from vit_jax_mixer.errors import UserError, writing
from vit_jax_mixer.run.writers import Appended, Scalars

TABLE = "metrics.csv"
RUN_ID = "wandb_run_id"
_HEAD = "step,name,value\n"
_MOST = 4 << 30  # bytes of a table


class Csv:
    """``metrics.csv``: step, name and value, a line each; what a full disk does not take waits."""

    def __init__(self, workdir: Path, start: int) -> None:
        path = workdir / TABLE
        before = files.read_text(path, _MOST).splitlines(keepends=True) if path.exists() else []
        kept = [line for line in before if line.endswith("\n") and _step(line) <= start]
        with writing(path):
            files.write_atomically(path, _HEAD + "".join(kept))
            self._file = Appended(path, print)

    def write(self, step: int, scalars: Scalars) -> None:
        self._file.write(
            "".join(f"{step},{_cell(name)},{float(value)!r}\n" for name, value in scalars.items()).encode()
        )

    def close(self) -> None:
        self._file.close()


class WeightsAndBiases:
    """A run of W&B, that one run of ours stays over all its stops: its id is kept in the workdir.

    Steps that come again after a kill have the values that W&B has of them. ``histograms`` of the parameters come if
    they are asked for.
    """

    def __init__(self, project: str, workdir: Path, start: int, *, entity: str = "", histograms: bool = False) -> None:
        self.histograms = histograms
        try:
            wandb: Any = importlib.import_module("wandb")  # an extra: typed where it is installed, missing where not
        except ImportError as error:
            raise UserError("config.writers: wandb needs its package; run: pip install -e '.[wandb]'.") from error
        self._wandb = wandb
        path = workdir / RUN_ID
        name = files.read_text(path, 100).strip() if start and path.exists() else secrets.token_hex(4)
        if not name.isalnum():
            raise UserError(f"{path} holds {name!r}, no id of a run of W&B; restore or remove it.")
        with writing(path):
            files.write_atomically(path, f"{name}\n")
        config = workdir / "config.json"
        settings: Mapping[str, Any] = files.read_json(config) if config.exists() else {}
        how = dict(project=project, entity=entity or None, id=name, resume="allow", name=workdir.name, dir=str(workdir))
        try:
            self._run = wandb.init(**how, config=dict(settings), settings=wandb.Settings(console="off"))
        except wandb.errors.Error as error:  # no key, a wrong one, or no connection
            told = " ".join(f"{error}".split()).rstrip(".")
            raise UserError(f"config.writers: wandb: {told}; log in, or set WANDB_MODE=offline.") from error

    def write(self, step: int, scalars: Scalars) -> None:
        self._run.log(dict(scalars), step=step)

    def picture(self, step: int, name: str, picture: Any) -> None:
        """Send a picture; texts have no place here."""
        if not isinstance(picture, str):
            self._run.log({name: self._wandb.Image(picture)}, step=step)

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Send how often values of any shape are where."""
        counted = np.histogram(np.asarray(values, np.float64), 64)
        self._run.log({name: self._wandb.Histogram(np_histogram=counted)}, step=step)

    def close(self) -> None:
        self._run.finish()


BY_NAME = {"csv": Csv, "wandb": WeightsAndBiases}


def _step(line: str) -> float:
    """Return the step of a line; infinity of one that has none, as the head's."""
    number = line.partition(",")[0]
    return int(number) if number.isascii() and number.isdigit() and len(number) < 20 else float("inf")


def _cell(name: str) -> str:
    quoted = name.replace('"', '""')
    return f'"{quoted}"' if set(name) & set('",\r\n') else name
