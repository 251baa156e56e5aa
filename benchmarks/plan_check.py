"""Whether a plan is right, where it can be measured: on this machine's CPU.

python -m benchmarks.plan_check [--model=Mixer-S/32] [--images=32] [--dtype=float32]

Plans the step for one CPU device, runs it, and prints what was planned beside what was measured: the
bytes of the arguments, the memory that a step needs beside them (by the process's peak), the FLOP
(by the Mixer's formula, two per multiply-add) and the time.
Linux only.
"""

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags

from configs import mixer_b16
from vit_jax_mixer import cli
from vit_jax_mixer.config import Config
from vit_jax_mixer.data.pipeline import first_example
from vit_jax_mixer.models import MODELS
from vit_jax_mixer.plan import targets
from vit_jax_mixer.plan.compiled import Planned
from vit_jax_mixer.plan.data_shape import without_data
from vit_jax_mixer.plan.roofline import roofline
from vit_jax_mixer.plan.this_machine import this_machine
from vit_jax_mixer.run.assemble import assemble

_MODEL = flags.DEFINE_string("model", "Mixer-S/32", "A Mixer.")
_IMAGES = flags.DEFINE_integer("images", 32, "Of a batch.", lower_bound=1)
_DTYPE = flags.DEFINE_string("dtype", "float32", "Of the computation.")
_SCAN = flags.DEFINE_bool("scan", False, "config.model.scan")
_STEPS = flags.DEFINE_integer("steps", 5, "That are timed.", lower_bound=1)


def main(argv: list[str]) -> None:
    """Plan, run, compare."""
    del argv
    run = without_data(Config.of(mixer_b16.get_config("imagenet2012")), None, "")
    model = {**run.model, "name": _MODEL.value, "dtype": _DTYPE.value, "scan": _SCAN.value}
    run = dataclasses.replace(run, model=model, batch_size=_IMAGES.value)
    target = targets.parse("cpu", this_machine)
    planned = Planned(run, target).compile(run.batch_size)
    memory, cost = planned.memory, planned.cost
    assert cost
    arguments = memory.parameters + memory.optimizer + memory.other_state + memory.batch
    held, beside, seconds = measure(run)
    flop = sum(cost.flop.values())
    print(f"{_MODEL.value} {_DTYPE.value}, {_IMAGES.value} images   {'planned':>12}{'measured':>12}{'ratio':>8}")
    for name, plan, found in (
        ("arguments, MB", arguments / 1e6, held / 1e6),
        ("temporaries, MB", memory.temporaries / 1e6, beside / 1e6),
        ("GFLOP (formula)", flop / 1e9, run.batch_size * formula(_MODEL.value) / 1e9),
        ("step, s", roofline(cost, target).seconds, seconds),
    ):
        print(f"{name:<36}{plan:>12,.3f}{found:>12,.3f}{plan / found:>8.3f}")
    rate, copy = target.chip.flops["float32"] / 1e9, target.chip.bandwidth / 1e9
    bound = roofline(cost, target).bound
    print(f"bound by {bound}; a product of matrices reaches {rate:,.0f} GFLOP/s, a copy {copy:,.1f} GB/s")


def measure(run: Config) -> tuple[float, float, float]:
    """Return the bytes of the arguments, the memory taken beside them, and the least time of a step."""
    parts = assemble(run, jax.devices()[:1])
    devices, state = parts.devices, parts.fresh_state()
    example = first_example(parts.task.train_data)
    batch = devices.put_batch({n: np.stack([x] * run.batch_size) for n, x in example.items()})
    held = sum(leaf.nbytes for leaf in jax.tree.leaves((state, batch)))
    train_step = devices.train_step(parts.train_step)
    state, _ = jax.block_until_ready(train_step(state, batch))  # compiles
    times, peaks = [], []
    for _ in range(_STEPS.value):
        Path("/proc/self/clear_refs").write_text("5")  # begins a new peak
        before = status("VmRSS")
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(train_step(state, batch))
        times.append(time.perf_counter() - begun)
        peaks.append(status("VmHWM") - before)
    return held, max(peaks), min(times)


def status(name: str) -> float:
    """Return a size of this process, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return float(line.split()[1]) * 1024


def formula(name: str) -> float:
    """Return the FLOP of a Mixer's matrix products for one image of 224 pixels, forward and backward.

    The backward pass costs twice the forward pass, but for the images no gradient is computed.
    """
    sizes = MODELS[name].sizes
    width, patch = sizes["hidden_dim"], sizes["patch_size"]
    tokens = (224 // patch) ** 2
    stem = tokens * patch * patch * 3 * width
    block = width * tokens * sizes["tokens_mlp_dim"] * 2 + tokens * width * sizes["channels_mlp_dim"] * 2
    return 2.0 * (2 * stem + 3 * sizes["num_blocks"] * block + 3 * width * 1000)


if __name__ == "__main__":
    cli.run(main)
