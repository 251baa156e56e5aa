"""Ten things that a newcomer tries, each one command, in an empty folder with an empty cache: how long each takes.

    python -m benchmarks.ten_tasks [--to=docs/ten_tasks.md] [--only=1,3]

The folder gets what a newcomer would bring: pictures of digits, folders of photographs, a table. Nothing is downloaded.
Times are from launch to exit, one launch each, in the order of the table; a task may use what one before it has made.
"""

import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from PIL import Image

from benchmarks.input_pipeline import make_photographs
from vit_jax_mixer import cli
from vit_jax_mixer.data.workers import cores
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.startup import CACHE

_FLAGS = flags.FlagValues()
_TO = flags.DEFINE_string("to", "", "A Markdown file whose table is written anew.", flag_values=_FLAGS)
_ONLY = flags.DEFINE_list("only", [], "Numbers of tasks; all if not given.", flag_values=_FLAGS)


class Task(NamedTuple):
    """One command, and which part of what it prints says what came of it, as a pattern with a group; '' for none."""

    wish: str
    command: str
    result: str


ACCURACY = r"(\S+/accuracy [\d.]*\d)"  # the last
TASKS = (
    Task("see it train", "train --config=digits", ACCURACY),
    Task("know what is in a picture", "predict --model=runs/digits --top=1 digits/seven.png", r"(\S+ %  \d)"),
    Task("see why", "predict --model=runs/digits --explain=maps digits", ""),
    Task(
        "find which images are wrong", "evaluate --model=runs/digits --data=tfds:sklearn_digits", r"\n +(accuracy .*%)"
    ),
    Task("ship it", "export --model=runs/digits exported", r"(exported/\S+): \w"),
    Task(
        "train on my own photos",
        "train --config=photos --config.data.source=folder:photos --config.steps=100 --config.optim.warmup_steps=10 "
        "--config.eval_every=50 --config.checkpoint.every=50",
        ACCURACY,
    ),
    Task("train on my own table", "train --config=tabular:rows.csv", r"(all.85%:./accuracy [\d.]*\d)"),
    Task("teach it to write numbers out", "train --config=translate", r"(\S+/exact_match [\d.]*\d)"),
    Task("learn without labels", "train --config=mae --config.steps=200", r"(test/loss [\d.]*\d)"),
    Task(
        "know what a large run would cost",
        "plan --config=mixer_imagenet:B/16 --target=h100:8 --num_classes=1000 --image_shape=224x224x3 --nosearch",
        r"(.*chip-hours.*)",
    ),
)


class Found(NamedTuple):
    """What a task took and gave."""

    seconds: float
    updates: str
    result: str


def main(argv: list[str]) -> None:
    """Do the tasks and print the table."""
    del argv
    known = [str(number) for number in range(1, len(TASKS) + 1)]
    for number in _ONLY.value:
        if number not in known:
            raise UserError(f"--only: {number!r} is no number of a task; they are 1 to {len(TASKS)}.")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bring(Path(folder))
        for number in _ONLY.value or known:
            task = TASKS[int(number) - 1]
            found = done(task, Path(folder))
            rows.append(
                f"| {task.wish} | `vit-mixer {task.command}` | {found.updates} | {found.seconds:.0f} | {found.result} |"
            )
            print(rows[-1], flush=True)
    head = "| I want to | command | updates | s | what it says |\n|---|---|---|---|---|"
    table = "\n".join([head, *rows, "", f"{cores()} cores, {platform.machine()}, Python {platform.python_version()}."])
    if _TO.value:
        page = Path(_TO.value)
        before = page.read_text().partition("| I want to |")[0] if page.exists() else "# Ten tasks\n\n"
        page.write_text(f"{before}{table}\n")


def bring(folder: Path) -> None:
    """Write what a newcomer would have: pictures of digits, photographs of two kinds, a table."""
    from sklearn.datasets import load_breast_cancer, load_digits

    digits: Any = load_digits()
    (folder / "digits").mkdir()
    for name, index in (("seven", 7), ("two", 2)):
        image = np.asarray(digits.images[index] * 255 / 16, np.uint8)
        Image.fromarray(image).save(folder / "digits" / f"{name}.png")
    make_photographs(folder / "photos", 120)
    rows: Any = load_breast_cancer(as_frame=True)
    rows.frame.to_csv(folder / "rows.csv", index=False)


def done(task: Task, folder: Path) -> Found:
    """Do a task in the folder."""
    command = [sys.executable, "-m", "vit_jax_mixer", *shlex.split(task.command)]
    env = {**os.environ, CACHE: str(folder / "cache"), "TFDS_DATA_DIR": str(folder / "tfds")}
    begun = time.perf_counter()
    ended = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    seconds = time.perf_counter() - begun
    said = ended.stdout + ended.stderr
    if ended.returncode:
        raise UserError(f"vit-mixer {task.command} ended with {said.strip().splitlines()[-1]}")
    updates = re.search(r"(\d+) steps;", said)
    results = re.findall(task.result, said) if task.result else []
    return Found(seconds, updates[1] if updates else "", " ".join(results[-1].split()) if results else "")


if __name__ == "__main__":
    cli.run(main, _FLAGS)
