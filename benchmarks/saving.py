"""What saving costs the train loop: the same run with checkpoints and without, in turn.

python -m benchmarks.saving [--model=Mixer-S/16 --batch_size=8 --every=50 --rounds=2 --workdir=DIR]

A run of configs/mixer_imagenet.py on grey images takes 3 * EVERY steps. The step times are those that
the run itself logs; those of the first EVERY steps do not count, so that two saves do. On a CPU the
threads that write share the cores with the step; on an accelerator they do not.
"""

import json
import statistics
import tempfile
from pathlib import Path

import jax
from absl import flags

from configs import mixer_imagenet
from vit_jax_mixer import cli
from vit_jax_mixer.train import train_and_evaluate

_MODEL = flags.DEFINE_string("model", "Mixer-S/16", "Model.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Images of a step.")
_EVERY = flags.DEFINE_integer("every", 50, "Steps between two checkpoints.")
_ROUNDS = flags.DEFINE_integer("rounds", 2, "Runs with saves, and as many without.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the runs write; a temporary folder unless given.")


def main(argv: list[str]) -> None:
    """Measure and print the table."""
    del argv
    seconds: dict[str, list[float]] = {"saves": [], "none": []}
    for number in range(_ROUNDS.value):
        # The other one first in every second round: a machine that grows hot or busy favours neither.
        for name in sorted(seconds, reverse=number % 2 == 1):
            seconds[name].append(step_seconds(_EVERY.value if name == "saves" else 10**9))
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(f"{_MODEL.value}, batch {_BATCH_SIZE.value}, {device}; seconds a step, {_ROUNDS.value} runs each")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        each = ", ".join(f"{value:.3f}" for value in values)
        print(f"{name:<8}{medians[name]:>8.3f}{medians[name] / medians['none']:>8.3f}   {each}")


def step_seconds(save_every: int) -> float:
    """Return the mean time of a run's later steps."""
    config = mixer_imagenet.get_config()
    config.model.name = _MODEL.value
    config.model.dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    config.batch_size = config.eval_batch_size = _BATCH_SIZE.value
    config.data.source = "blank:1000,224x224x3"
    config.data.train_ops = config.data.eval_ops = "value_range(-1, 1)"
    config.data.eval = "test[:8]"
    config.steps = config.eval_every = 3 * _EVERY.value
    config.log_every = _EVERY.value
    config.optim.warmup_steps = 0
    config.checkpoint.every = save_every
    config.checkpoint.best = ""
    with tempfile.TemporaryDirectory(dir=_WORKDIR.value) as workdir:
        train_and_evaluate(config, workdir)
        lines = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return statistics.mean([line["perf/step_seconds"] for line in lines if "perf/step_seconds" in line][1:])


if __name__ == "__main__":
    cli.run(main)
