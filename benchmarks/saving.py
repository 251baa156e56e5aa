"""What saving costs the train loop: some steps with a save before them, and as many without, in turn.

python -m benchmarks.saving [--model=Mixer-S/16 --batch_size=8 --every=50 --steps=10 --saves=10 --workdir=DIR]

The step is that of configs/mixer_imagenet.py on grey images. A save begins as in the train loop: the steps
before it are waited for, the state is copied from the devices, and threads write it while the next steps run;
after --steps of them they must be done (it says so if they are not). The first save compiles and does not
count. On a CPU the threads share the cores with the step; beside an accelerator they do not.
"""

import statistics
import tempfile
import time
from pathlib import Path

import jax
from absl import flags

from benchmarks.parts import prepared
from configs import mixer_imagenet
from vit_jax_mixer import cli
from vit_jax_mixer.config import Config
from vit_jax_mixer.run.checkpoint import Checkpoints

_MODEL = flags.DEFINE_string("model", "Mixer-S/16", "Model.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Images of a step.")
_EVERY = flags.DEFINE_integer("every", 50, "Steps between two checkpoints, to which the cost is compared.")
_STEPS = flags.DEFINE_integer("steps", 10, "Steps that are timed with a save, and without.")
_SAVES = flags.DEFINE_integer("saves", 10, "Saves that are timed.", lower_bound=1)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where it writes; a temporary folder unless given.")


def main(argv: list[str]) -> None:
    """Measure and print the table."""
    del argv
    devices, compiled, state, batch = prepared(run())
    seconds: dict[str, list[float]] = {"with a save": [], "without": []}
    with tempfile.TemporaryDirectory(dir=_WORKDIR.value) as workdir:
        checkpoints = Checkpoints(Path(workdir), every=1, keep=2, best="")
        for number in range(_SAVES.value + 1):
            for name, times in seconds.items():
                begun = time.perf_counter()
                if name == "with a save":
                    checkpoints.save(number, devices.saved_form(state), {})
                for _ in range(_STEPS.value):
                    state, _ = compiled(state, batch)
                jax.block_until_ready(state)
                times.append(time.perf_counter() - begun)
                if checkpoints.latest() != number:
                    print("the save was not done after --steps; take more of them")
        checkpoints.close()
    report({name: times[1:] for name, times in seconds.items()})


def run() -> Config:
    """Return what is trained."""
    config = mixer_imagenet.get_config()
    config.model.name = _MODEL.value
    config.model.dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    config.batch_size = _BATCH_SIZE.value
    config.data.source = "blank:1000,224x224x3"
    config.data.train_ops = config.data.eval_ops = "value_range(-1, 1)"
    return Config.of(config)


def report(seconds: dict[str, list[float]]) -> None:
    """Print the times, and the share of a save in the time of --every steps."""
    print(f"{_MODEL.value}, batch {_BATCH_SIZE.value}, {jax.device_count()} x {jax.devices()[0].device_kind}")
    for name, times in seconds.items():
        each = " ".join(f"{value:.2f}" for value in times)
        print(f"{_STEPS.value} steps {name:<12}{statistics.mean(times):>7.2f} s   {each}")
    costs = [a - b for a, b in zip(*seconds.values(), strict=True)]
    step = statistics.mean(seconds["without"]) / _STEPS.value
    for name, cost in (("mean", statistics.mean(costs)), ("median", statistics.median(costs))):
        print(f"a save costs {cost:.2f} s ({name}): {cost / (_EVERY.value * step):.1%} of {_EVERY.value} steps")


if __name__ == "__main__":
    cli.run(main)
