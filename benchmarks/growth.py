"""How cost grows with work: a step with batch, tokens, depth and devices, a start with files, a save with parameters.

    python -m benchmarks.growth [--rows=batch,tokens,depth,devices,files,parameters] [--files=1000,10000,100000]

The first three multiply one thing each and leave the rest: a Mixer of 4 blocks, 196 tokens of 256 channels, a batch of
8, float32, with memory kept. 'power' is the slope from the line before on logarithmic axes: 1 where cost grows as the
work. Memory is what XLA says that the compiled step needs beside state and batch. Devices are simulated, with 16
images each: the table says what a step sends, not how fast it is. A start opens a folder of empty files, first and
again, each in a process of its own. A checkpoint is written and read back.
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
from absl import flags

from benchmarks.parts import measure
from configs import mixer_imagenet
from vit_jax_mixer import cli
from vit_jax_mixer.config import Config
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.plan.cost import Collective
from vit_jax_mixer.run.assemble import assemble
from vit_jax_mixer.run.checkpoint import Checkpoints

_ROWS = flags.DEFINE_list("rows", [], "Which; all if not given.")
_FILES = flags.DEFINE_list("files", ["1000", "10000", "100000"], "Of folders, each listed twice.")
_STEPS = flags.DEFINE_integer("steps", 9, "Training steps of a line.", lower_bound=1)

BASE = {"batch": 8, "tokens": 196, "depth": 4, "width": 256}
TIMES = {"batch": (4, 8, 16, 32), "tokens": (49, 196, 784), "depth": (2, 4, 8, 16)}
WIDTHS = (128, 256, 512, 1024, 2048)  # of 4 blocks, for checkpoints
DEVICES = (2, 8, 32, 128)
_OPEN = """
import sys, time
from vit_jax_mixer.data.sources import open_source
begun = time.perf_counter()
count = len(open_source(f"folder:{sys.argv[1]}", "all").examples)
print(count, time.perf_counter() - begun)
"""


def main(argv: list[str]) -> None:
    """Measure and print the tables."""
    del argv
    jax.config.update("jax_enable_compilation_cache", False)
    kinds: dict[str, Callable[[], None]] = {
        **{name: lambda name=name: steps(name) for name in TIMES},
        "devices": messages,
        "files": starts,
        "parameters": checkpoints,
    }
    for row in _ROWS.value or kinds:
        if row not in kinds:
            raise UserError(f"--rows: {row!r} is not there; there are {', '.join(kinds)}.")
        kinds[row]()


def table(head: Sequence[str], rows: Iterator[Sequence[float]]) -> None:
    """Print Markdown, row by row; after the first column's, each value has its power beside it."""
    print(f"\n| {' | '.join(head)} |\n{'|---' * len(head)}|", flush=True)
    before: Sequence[float] = ()
    for row in rows:
        cells = [f"{row[0]:,}"]
        for number, value in enumerate(row[1:], 1):
            shown = f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
            if before and min(value, before[number]) > 0:
                power = math.log(value / before[number]) / math.log(row[0] / before[0])
                shown += f" ({power:.2f})"
            cells.append(shown)
        print(f"| {' | '.join(cells)} |", flush=True)
        before = row


def run_of(batch: int, tokens: int, depth: int, width: int) -> Config:
    """Return the ImageNet run of such a Mixer, of grey images."""
    config = mixer_imagenet.get_config("S/16")
    side = 16 * math.isqrt(tokens)
    config.model = dict(
        name="MlpMixer",
        num_blocks=depth,
        patch_size=16,
        hidden_dim=width,
        tokens_mlp_dim=128,
        channels_mlp_dim=4 * width,
        dtype="float32",
    )
    config.batch_size = batch
    config.data.source, config.data.eval = f"blank:1000,{side}x{side}x3", ""
    config.data.train_ops = config.data.eval_ops = "decode(3)|value_range(-1, 1)"
    config.checkpoint.best = ""
    return Config.of(config)


def steps(name: str) -> None:
    """Print what a step costs as one thing grows."""

    def rows() -> Iterator[Sequence[float]]:
        for value in TIMES[name]:
            compiling, step, temporaries, *_ = measure(run_of(**{**BASE, name: value}), _STEPS.value)
            yield value, 1000 * step, temporaries, compiling

    table((name, "step, ms (power)", "temporaries, MiB", "compilation, s"), rows())


def messages() -> None:
    """Print what a device sends in a step, and what it holds, as there are more of them."""

    def planned(devices: int, way: str) -> tuple[float, float]:
        command = [sys.executable, "-m", "vit_jax_mixer.plan", "--config=mixer_imagenet:S/16", "--json", "--nosearch"]
        command += [f"--target=h100:{devices}", f"--config.batch_size={16 * devices}", f"--config.parallel={way}"]
        command += ["--num_classes=1000", "--image_shape=224x224x3"]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        sent = sum(Collective(**one).sent for one in found["cost"]["collectives"])
        return sent / 1e6, sum(found["memory"][name] for name in ("parameters", "optimizer", "other_state")) / 1e6

    def rows() -> Iterator[Sequence[float]]:
        for devices in DEVICES:
            yield devices, *planned(devices, "jit"), *planned(devices, f"jit(fsdp={devices})")

    head = ("devices", "state whole: sent, MB (power)", "state, MB", "state spread: sent, MB", "state, MB")
    table(head, rows())


def starts() -> None:
    """Print the time to open a folder of that many images, in 100 classes."""

    def rows() -> Iterator[Sequence[float]]:
        for count in map(int, _FILES.value):
            with tempfile.TemporaryDirectory() as folder:
                for number in range(100):
                    (Path(folder) / f"class_{number:03}").mkdir()
                for number in range(count):
                    (Path(folder) / f"class_{number % 100:03}" / f"{number:08}.jpg").touch()
                yield count, *(opened(folder, count) for _ in range(2))

    table(("files", "first start, s (power)", "second, s"), rows())


def opened(folder: str, count: int) -> float:
    """Return the seconds to open it in a fresh process."""
    done = subprocess.run([sys.executable, "-c", _OPEN, folder], check=True, capture_output=True, text=True)
    found, seconds = done.stdout.split()
    assert int(found) == count
    return float(seconds)


def checkpoints() -> None:
    """Print the time to write a checkpoint and to read it, as there are more parameters."""

    def rows() -> Iterator[Sequence[float]]:
        for width in WIDTHS:
            made = assemble(run_of(**{**BASE, "width": width}))
            state = made.fresh_state()
            size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
            with tempfile.TemporaryDirectory() as folder:
                saved = Checkpoints(Path(folder), every=1, keep=1, best="")
                saved.save(1, made.devices.saved_form(state), {})  # the first prepares threads
                times = []
                for step in (2, 3, 4):
                    begun = time.perf_counter()
                    saved.save(step, made.devices.saved_form(state), {}, last=True)
                    times.append(time.perf_counter() - begun)
                begun = time.perf_counter()
                jax.block_until_ready(made.restored_state(saved, 4))
                reading = time.perf_counter() - begun
                saved.close()
            yield size, statistics.median(times), reading

    table(("parameters", "written, s (power)", "read, s"), rows())


if __name__ == "__main__":
    cli.run(main)
