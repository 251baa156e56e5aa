"""What each setting of a training step costs on a TPU, without one: needs `pip install -e '.[plan]'`.

python -m benchmarks.tpu_step [--target=v5e:2x2] [--size=B/16] [--images=32]

Compiles the step for the target with each setting and prints a Markdown table: the CPU time of the
compiler; of each chip the temporaries, what it reads from and writes to its main memory, the matrix
products' FLOP, and the least time of a step by the roofline. The first row is the original's step:
float32 with nothing of the rest. 'XLA bytes' are the compiler's own count, which has the traffic with
a chip's fast memory as well; it has a loop's body once, so it is multiplied by what our count of the
main memory's bytes grows by when the body counts as often as it runs.
"""

import dataclasses
from typing import Any

from absl import flags

from configs import mixer_b16
from vit_jax_mixer import cli
from vit_jax_mixer.config import Config
from vit_jax_mixer.plan import targets
from vit_jax_mixer.plan.compiled import Compiled, Planned
from vit_jax_mixer.plan.data_shape import without_data
from vit_jax_mixer.plan.roofline import roofline
from vit_jax_mixer.plan.this_machine import this_machine

_TARGET = flags.DEFINE_string("target", "v5e:2x2", "As that of `python -m vit_jax_mixer.plan`.")
_SIZE = flags.DEFINE_string("size", "B/16", "Of the Mixer.")
_IMAGES = flags.DEFINE_integer("images", 32, "Of each chip.", lower_bound=1)
_ONLY = flags.DEFINE_list("only", [], "Rows to print, by their names; all if empty.")

SETTINGS = {
    "float32 pmap (the original)": dict(parallel="pmap", dtype="float32"),
    "float32": dict(dtype="float32"),
    "bfloat16": dict(dtype="bfloat16"),
    "bfloat16 remat": dict(dtype="bfloat16", remat=True),
    "bfloat16 scan": dict(dtype="bfloat16", scan=True),
    "bfloat16 scan remat": dict(dtype="bfloat16", scan=True, remat=True),
}


def main(argv: list[str]) -> None:
    """Compile and print, row by row."""
    del argv
    target = targets.parse(_TARGET.value, this_machine)
    config = mixer_b16.get_config("imagenet2012")
    config.model.name = f"Mixer-{_SIZE.value}"
    run = without_data(Config.of(config), None, "")
    print(
        "| Mixer-"
        + _SIZE.value
        + f", {_IMAGES.value} images a chip, {target.name} | compile, CPU s | temporaries, GB ",
        end="",
    )
    print(
        "| main memory, GB | XLA bytes, GB | TFLOP | least ms | bound by |\n|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for name, settings in SETTINGS.items():
        if not _ONLY.value or name in _ONLY.value:
            fields: dict[str, Any] = dict(settings)
            way = fields.pop("parallel", "jit")
            changed = dataclasses.replace(run, parallel=way, model={**run.model, **fields})
            compiled = Planned(changed, target).compile(_IMAGES.value * target.count)
            print(row(name, compiled, target), flush=True)


def row(name: str, compiled: Compiled, target: targets.Target) -> str:
    """Return a row of the table."""
    memory, cost, xla = compiled.memory, compiled.cost, compiled.xla
    if not cost or not xla:
        return f"| {name} | {compiled.seconds:.0f} | does not fit: {memory.peak / 1e9:.2f} |"
    line = roofline(cost, target)
    cells = [
        f"{compiled.seconds:.0f}",
        f"{memory.temporaries / 1e9:.2f}",
        f"{cost.bytes / 1e9:.1f}",
        f"{xla['bytes accessed'] * cost.bytes / cost.bytes_once / 1e9:.1f}",
        f"{sum(cost.flop.values()) / 1e12:.2f}",
        f"{line.seconds * 1e3:.1f}",
        line.bound,
    ]
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    cli.run(main)
