"""Plans of configs/mixer_imagenet.py on slices of TPUs, as a Markdown table: needs `pip install -e '.[plan]'`.

python -m benchmarks.plan_table [--sizes=B/16,L/16,H/14] [--targets=v5e:2x2,v5e:4x4,v5e:8x8,v5e:16x16]

The config's batch of 4,096 is computed in parts of at most --images a chip.
"""

import dataclasses

from absl import flags

from configs import mixer_imagenet
from vit_jax_mixer import cli
from vit_jax_mixer.config import Config
from vit_jax_mixer.plan import targets
from vit_jax_mixer.plan.data_shape import without_data
from vit_jax_mixer.plan.estimate import Plan, estimate
from vit_jax_mixer.plan.this_machine import this_machine

_SIZES = flags.DEFINE_list("sizes", ["B/16", "L/16", "H/14"], "Of the Mixer.")
_TARGETS = flags.DEFINE_list("targets", ["v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16"], "What to plan for.")
_STATES = flags.DEFINE_list("states", ["whole", "spread"], "A copy of the state on each chip, or a part of it.")
_IMAGES = flags.DEFINE_integer("images", 64, "The most that a chip computes at a time.", lower_bound=1)
_UTILISATION = flags.DEFINE_float("utilisation", 0.5, "Share of the roofline's speed that the runs are to reach.")

COLUMNS = (
    "model and target",
    "state",
    "parts",
    "state, GB",
    "temporaries, GB",
    "peak, GB",
    "TFLOP",
    "main memory, GB",
    "messages, GB",
    "least ms",
    "bound by",
    "images/s",
    "hours",
    "chip-hours",
)


def main(argv: list[str]) -> None:
    """Plan and print, row by row."""
    del argv
    compilers: set[str] = set()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for size in _SIZES.value:
        run = without_data(Config.of(mixer_imagenet.get_config(size)), None, "")
        for name in _TARGETS.value:
            target = targets.parse(name, this_machine)
            parts = -(-run.batch_size // (target.count * _IMAGES.value))
            for state in _STATES.value:
                parallel = {"whole": "jit", "spread": f"jit(fsdp={target.count})"}[state]
                changed = dataclasses.replace(run, parallel=parallel, accum_steps=parts)
                plan = estimate(changed, target, utilisation=_UTILISATION.value, search=False)
                print(row(f"{size}, {name}", state, parts, plan), flush=True)
                compilers.add(plan.compiler)
    print(f"\nCompiled by {'; '.join(sorted(compilers))}.")


def row(name: str, state: str, parts: int, plan: Plan) -> str:
    """Return a row of the table."""
    memory, cost, line, bill = plan.memory, plan.cost, plan.roofline, plan.bill
    kept = memory.parameters + memory.optimizer + memory.other_state
    cells = [name, state, f"{parts}", f"{kept / 1e9:.2f}"]
    if not (cost and line and bill):
        return f"| {' | '.join([*cells, '', f'{memory.peak / 1e9:.1f}: does not fit'])} |"
    cells += [f"{memory.temporaries / 1e9:.2f}", f"{memory.peak / 1e9:.2f}{'' if plan.fits else ': does not fit'}"]
    cells += [f"{sum(cost.flop.values()) / 1e12:.2f}", f"{cost.bytes / 1e9:.1f}"]
    cells += [f"{sum(message.bytes for message in cost.collectives) / 1e9:.2f}"]
    cells += [f"{line.seconds * 1e3:.1f}", line.bound, f"{bill.examples_per_second:,.0f}"]
    cells += [f"{bill.hours:,.1f}", f"{bill.chip_hours:,.0f}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    cli.run(main)
