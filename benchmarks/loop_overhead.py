"""What the train loop costs beside the bare step, and whether data keeps up.

python -m benchmarks.loop_overhead --config=configs/digits.py [--steps=300] [--parts=step,data,loop]

Prints examples per second of: the compiled step on one batch that stays on the devices; the data
pipeline alone; the train loop, which needs both. The loop can be no faster than the slower of the
two; on a CPU they also share its cores.
"""

import itertools
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import flags

from benchmarks.parts import prepared
from vit_jax_mixer import cli, command_line, config_file
from vit_jax_mixer.config import Config
from vit_jax_mixer.run.assemble import assemble
from vit_jax_mixer.train import train_and_evaluate

_FLAGS = flags.FlagValues()
_STEPS = flags.DEFINE_integer("steps", 300, "Steps that are timed, in each of the three.", flag_values=_FLAGS)
_PARTS = flags.DEFINE_list("parts", "step,data,loop", "Which of the three are measured.", flag_values=_FLAGS)


def main(given: command_line.Given) -> None:
    """Measure and print the table."""
    config: Any = given.config  # its fields are of any type
    steps = _STEPS.value
    config.steps = 2 * steps
    config.log_every = steps  # the second half of the run is timed
    config.eval_every = config.checkpoint.every = 2 * steps
    config.optim.warmup_steps = min(config.optim.warmup_steps, steps)
    run = Config.of(config)
    parts = {"step": lambda: step_alone(run, steps), "data": lambda: data_alone(run, steps)}
    rates = {f"{name} alone": measure() for name, measure in parts.items() if name in _PARTS.value}
    if "loop" in _PARTS.value:
        rates["train loop"] = train_loop(config)
    print(f"{'':<12}{'examples/s':>12}{'ms/step':>10}   {jax.device_count()} x {jax.devices()[0].device_kind}")
    for name, rate in rates.items():
        print(f"{name:<12}{rate:>12,.0f}{1000 * run.batch_size / rate:>10.2f}")
    if len(rates) == 3:
        slower = min(rates["step alone"], rates["data alone"])
        print(f"the loop reaches {rates['train loop'] / slower:.2f} of the slower part")


def step_alone(run: Config, steps: int) -> float:
    """Return examples per second of the step on one batch, over and over."""
    _, compiled, state, batch = prepared(run)
    state, metrics = compiled(state, batch)
    jax.block_until_ready(metrics)
    begun = time.perf_counter()
    for _ in range(steps):
        state, metrics = compiled(state, batch)
    jax.block_until_ready(metrics)
    return steps * run.batch_size / (time.perf_counter() - begun)


def data_alone(run: Config, steps: int) -> float:
    """Return examples per second of the pipeline, with nobody who waits for it but this loop."""
    parts = assemble(run)
    batches = parts.loader.train_batches(parts.task.train_data, seed=run.seed, batch_size=run.batch_size, start=0)
    warm = run.loader["prefetch"] + 1  # what was made ahead must not count
    for _ in itertools.islice(batches, warm):
        pass
    begun = time.perf_counter()
    for _ in itertools.islice(batches, steps):
        pass
    return steps * run.batch_size / (time.perf_counter() - begun)


def train_loop(config) -> float:
    """Return examples per second that a real run logs for its second half."""
    with tempfile.TemporaryDirectory() as workdir:
        train_and_evaluate(config, workdir)
        lines = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    # Of images, rows, ...: whatever the task's examples are.
    rate = lambda line: next((v for k, v in line.items() if k.startswith("perf/") and k.endswith("s_per_second")), None)
    return [found for line in lines if (found := rate(line)) is not None][-1]


if __name__ == "__main__":
    cli.run(main, _FLAGS, partial(command_line.parse_flags, values=_FLAGS), more_help=config_file.explain)
