"""From what a step costs to how long it takes at least, and what a run costs.

The roofline (Williams et al. 2009): arithmetic, main memory and messages each need a time; a step
takes no less than the longest of them, which is reached if the other two hide behind it.
"""

import dataclasses

from vit_jax_mixer.plan.cost import Cost
from vit_jax_mixer.plan.targets import Target

_DTYPES = {"bf16": "bfloat16", "f16": "bfloat16"}  # all else runs at the rate of float32


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step on each resource, if it were used at its full rate."""

    arithmetic: float
    memory: float
    interconnect: float

    @property
    def seconds(self) -> float:
        """The least time of a step."""
        return max(self.arithmetic, self.memory, self.interconnect)

    @property
    def bound(self) -> str:
        """What takes the longest."""
        times = dataclasses.asdict(self)
        return max(times, key=times.__getitem__)


def roofline(cost: Cost, target: Target) -> Roofline:
    """Return the times of a step of that cost, for each chip of the target."""
    chip = target.chip
    return Roofline(
        arithmetic=sum(flop / chip.flops[_DTYPES.get(dtype, "float32")] for dtype, flop in cost.flop.items()),
        memory=cost.bytes / chip.bandwidth,
        interconnect=sum(c.sent / target.bandwidth(c.group, c.nodes) for c in cost.collectives),
    )


@dataclasses.dataclass(frozen=True)
class Bill:
    """What a run costs at a share of the roofline's speed."""

    step_seconds: float
    examples_per_second: float
    hours: float
    chip_hours: float


def bill(line: Roofline, *, utilisation: float, steps: int, batch_size: int, chips: int) -> Bill:
    """Return the bill of a run of ``steps`` that goes at ``utilisation`` (0 to 1) of the roofline's speed."""
    seconds = line.seconds / utilisation
    hours = steps * seconds / 3600
    return Bill(seconds, batch_size / seconds, hours, hours * chips)
