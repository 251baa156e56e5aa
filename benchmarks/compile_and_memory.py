"""What `config.model.scan` and `config.model.remat` do to compile time, memory and speed of the training step.

python -m benchmarks.compile_and_memory [--model=Mixer-L/16 --batch_size=8 --dtype=float32 --rounds=3 --steps=1]

The step is that of configs/mixer_imagenet.py, for images of 224 x 224 pixels. Compile times are those
of tracing and compiling, without a cache; memory is what XLA says that the compiled program needs:
temporaries are what it needs beside the state and the batch, and all of the state should be reused
for the new one. The four ways are measured in turn, again and again, and the table has medians.
"""

import statistics

import jax
from absl import flags

from benchmarks.parts import measure
from configs import mixer_imagenet
from vit_jax_mixer import cli
from vit_jax_mixer.config import Config

_MODEL = flags.DEFINE_string("model", "Mixer-L/16", "Model, of 224 x 224 pixels.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Images of a step.")
_ACCUM_STEPS = flags.DEFINE_integer("accum_steps", 1, "Parts in which a batch is computed.")
_DTYPE = flags.DEFINE_string("dtype", "float32", "Of the computation.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Compilations of each way.")
_STEPS = flags.DEFINE_integer("steps", 1, "Steps of each way in each round; 0 times none.")

WAYS = {
    "unrolled": dict(scan=False, remat=False),
    "scan": dict(scan=True, remat=False),
    "remat": dict(scan=False, remat=True),
    "scan, remat": dict(scan=True, remat=True),
}
COLUMNS = ("compile s", "step s", "temporaries MiB", "arguments MiB", "reused MiB")


def main(argv: list[str]) -> None:
    """Measure and print the table."""
    del argv
    jax.config.update("jax_enable_compilation_cache", False)
    found = {name: [] for name in WAYS}
    for _ in range(_ROUNDS.value):
        for name, way in WAYS.items():
            found[name].append(measure(run_of(**way), _STEPS.value))
    rows = {name: [statistics.median(values) for values in zip(*of, strict=True)] for name, of in found.items()}
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(f"{_MODEL.value}, batch {_BATCH_SIZE.value}, {_DTYPE.value}, {device}; in brackets, relative to the first")
    print(f"{'':<12}" + "".join(f"{column:>22}" for column in COLUMNS))
    first = rows["unrolled"]
    for name, row in rows.items():
        cells = (f"{value:,.1f} ({value / max(of, 1e-9):.2f})" for value, of in zip(row, first, strict=True))
        print(f"{name:<12}" + "".join(f"{cell:>22}" for cell in cells))


def run_of(**way: bool) -> Config:
    """Return the ImageNet run with the embedded digits, enlarged, in the place of its data."""
    config = mixer_imagenet.get_config()
    config.model.update(name=_MODEL.value, dtype=_DTYPE.value, **way)
    config.batch_size = _BATCH_SIZE.value
    config.accum_steps = _ACCUM_STEPS.value
    config.data.source = "tfds:sklearn_digits"
    config.data.eval = "test"
    config.data.train_ops = "decode(3)|resize(224)|value_range(-1, 1)"
    config.data.eval_ops = config.data.train_ops
    return Config.of(config)


if __name__ == "__main__":
    cli.run(main)
