"""Ours beside PyTorch (timm), the original's model and update, and tf.data, where they are: one table.

python -m benchmarks.peers [--rows=forward,train] [--rounds=3] [--seconds=6] [--to=peers.md]
                           [--torch_python=PATH] [--tf_python=PATH] [--original=CLONE]

Each figure is of a process of its own; those of a row take turns, and the table has medians over the rounds, with what
ours is of each in brackets. PyTorch and TensorFlow may be of other environments, whose Python is named; what is not
there is left out. CLONE is one of google-research/vision_transformer. All with all rows takes about 2 minutes a round.
--to also writes the table to a Markdown file, and each round's figures to one of JSON beside it. Each is as one
launches it: ours keeps memory on CPUs, and in training asks for large pages, as our commands do.
"""

import json
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from benchmarks.input_pipeline import make_photographs
from vit_jax_mixer import cli
from vit_jax_mixer.data.workers import cores
from vit_jax_mixer.errors import UserError

_FLAGS = flags.FlagValues()
_ROWS = flags.DEFINE_list("rows", [], "Which are measured; all if not given.", flag_values=_FLAGS)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Times that each is measured.", lower_bound=1, flag_values=_FLAGS)
_SECONDS = flags.DEFINE_float("seconds", 6, "Time of a measurement.", lower_bound=0.1, flag_values=_FLAGS)
_BATCH = flags.DEFINE_integer("batch_size", 16, "Images of a Mixer-S/16's batch.", lower_bound=1, flag_values=_FLAGS)
_PHOTOS = flags.DEFINE_string(
    "photos", "", "A folder with CLASS/x.jpg; 512 photos are made if not given.", flag_values=_FLAGS
)
_TORCH = flags.DEFINE_string("torch_python", sys.executable, "A Python that has PyTorch.", flag_values=_FLAGS)
_TF = flags.DEFINE_string("tf_python", sys.executable, "A Python that has TensorFlow.", flag_values=_FLAGS)
_ORIGINAL = flags.DEFINE_string("original", "", "A clone of the original.", flag_values=_FLAGS)
_TO = flags.DEFINE_string("to", "", "A Markdown file to write.", flag_values=_FLAGS)


class Line(NamedTuple):
    """A line of the table: a figure of a row."""

    row: str
    figure: str
    says: str


LINES = (
    Line("forward", "rate", "Mixer-S/16, forward, batch {batch}, images/s"),
    Line("train", "rate", "Mixer-S/16, training step, batch {batch}, images/s"),
    Line("train", "compile", "its tracing and compilation, s"),
    Line("train", "memory", "its process's peak memory, MiB"),
    Line("loop", "rate", "MNIST Mixer, training loop, batch 64, images/s"),
    Line("pipeline", "rate", "JPEGs to training batches of 224 x 224, images/s"),
    Line("inference", "rate", "JPEGs to classes by Mixer-S/16, batch {inference_batch}, images/s"),
)
ROWS = list(dict.fromkeys(line.row for line in LINES))


class Contestant(NamedTuple):
    """Who is measured: a module here, run by a Python."""

    name: str
    module: str
    python: str
    rows: Sequence[str]


def main(argv: list[str]) -> None:
    """Measure and print the table."""
    del argv
    rows = _ROWS.value or ROWS
    for row in rows:
        if row not in ROWS:
            raise UserError(f"--rows: {row!r} is not there; there are {', '.join(ROWS)}.")
    here = contestants()
    found: dict[str, dict[str, list[dict[str, float]]]] = {row: {} for row in rows}
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "batch": _BATCH.value,
            "inference_batch": 32,
            "seconds": _SECONDS.value,
            "steps": max(int(40 * _SECONDS.value), 1),
            "photos": _PHOTOS.value or folder,
            "original": _ORIGINAL.value,
        }
        if not _PHOTOS.value and {"pipeline", "inference"} & set(rows):
            make_photographs(Path(folder), 512)
        for number in range(_ROUNDS.value):
            for row in rows:
                for one in here:
                    if row in one.rows:
                        print(f"round {number + 1}: {row}, {one.name}", file=sys.stderr, flush=True)
                        said = measured(one, row, settings)
                        found[row].setdefault(one.name, []).append(said["found"])
                        versions |= said["versions"] if one.module == "ours" else _but_python(said["versions"])
    head = f"{machine()}; {', '.join(f'{name} {version}' for name, version in versions.items())}"
    text = f"{head}; medians of {_ROUNDS.value}\n\n{table(found, [one.name for one in here], settings)}\n"
    print(text)
    if _TO.value:
        target = Path(_TO.value)
        target.write_text(text)
        record = {"machine": machine(), "versions": versions, "settings": settings, "rounds": found}
        target.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


def contestants() -> list[Contestant]:
    """Return those that are here."""
    here = [Contestant("ours", "ours", sys.executable, ROWS)]
    if _ORIGINAL.value:
        if not (Path(_ORIGINAL.value) / "vit_jax" / "models_mixer.py").is_file():
            raise UserError(f"--original={_ORIGINAL.value} is no clone of vision_transformer; name the folder of one.")
        here.append(Contestant("original", "original", sys.executable, ("forward", "train")))
    if has(_TORCH.value, "torch", "--torch_python"):
        here.append(Contestant("PyTorch", "pytorch", _TORCH.value, ROWS))
    if has(_TF.value, "tensorflow", "--tf_python"):
        here.append(Contestant("tf.data", "tf_data", _TF.value, ("pipeline",)))
    return here


def has(python: str, library: str, flag: str) -> bool:
    """Say whether a Python has a library; a `UserError` if one was named for it and has not."""
    look = f"import sys, importlib.util; sys.exit(not importlib.util.find_spec({library!r}))"
    try:
        there = subprocess.run([python, "-c", look], check=False).returncode == 0
    except OSError as error:
        raise UserError(f"{flag}={python} cannot be run ({error.strerror}); name a Python.") from error
    if not there and python != sys.executable:
        raise UserError(f"{flag}={python} has no {library}; install it there, or name another.")
    return there


def measured(one: Contestant, row: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a contestant says of a row, in a process of its own."""
    command = [one.python, "-m", f"benchmarks.peers.{one.module}", row, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"{one.name}, {row} failed: {why}; leave it out, or mend that ({' '.join(command[:3])}).")
    return json.loads(done.stdout.splitlines()[-1])


def _but_python(versions: dict[str, str]) -> dict[str, str]:
    return {name: version for name, version in versions.items() if name != "Python"}


def machine() -> str:
    """Return the processor, its cores that are ours, and how busy they were at the last."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{cores()} cores, {name}"


def table(found: dict[str, dict[str, list[dict[str, float]]]], names: Sequence[str], settings: dict[str, Any]) -> str:
    """Return Markdown: a line a figure, a column a contestant, with ours / theirs in brackets."""
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for line in LINES:
        of_row = found.get(line.row, {})
        median = lambda name, line=line, of_row=of_row: statistics.median(
            [one[line.figure] for one in of_row.get(name, ()) if line.figure in one] or [float("nan")]
        )
        own = median("ours")
        if line.row in found:
            cells = [_cell(median(name), own, mine=name == "ours") for name in names]
            lines.append(f"| {line.says.format(**settings)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: float, own: float, *, mine: bool) -> str:
    if value != value:  # not measured
        return ""
    shown = f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
    return shown if mine else f"{shown} ({own / value:.2f})"


if __name__ == "__main__":
    cli.run(main, _FLAGS)
