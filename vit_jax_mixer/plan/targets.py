"""What a run can be planned for: accelerators, and how many of them are joined how."""

import dataclasses
import math
import re
from collections.abc import Callable

from vit_jax_mixer import specs
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run.hardware import CHIPS, Chip

GPUS_OF_A_NODE = 8
MOST_SIMULATED = 256  # devices that a CPU simulates


@dataclasses.dataclass(frozen=True)
class Target:
    """A number of chips and how they are joined.

    Attributes:
        name: as it was given.
        chip: what each is.
        shape: of a TPU slice, as (16, 16); else (number,).
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many chips there are."""
        return math.prod(self.shape)

    @property
    def node(self) -> int:
        """How many chips with consecutive numbers are joined alike: of GPUs those of a node."""
        return GPUS_OF_A_NODE if self.chip.kind == "gpu" else self.count

    def bandwidth(self, group: int, nodes: int = 1) -> float:
        """Return bytes/s that a chip sends in a ring of ``group`` chips that are spread over ``nodes``.

        A ring of several nodes sends through the network port of each of its GPUs at the same time.
        A group of all chips of a slice uses every axis of it, a smaller one its best axis. An axis
        that is closed to a ring sends both ways; on an open one, the chip at its end has one link.
        """
        chip = self.chip
        if chip.kind == "gpu":
            return chip.link if nodes == 1 else min(chip.link, group / nodes * chip.network)
        if chip.kind == "cpu":
            return chip.link
        links = [2 if n % chip.wraps == 0 else 1 for n in self.shape if n > 1]
        return chip.link * (sum(links) if group == self.count else max(links, default=1))


def parse(name: str, this_machine: Callable[[], Chip]) -> Target:
    """Read 'v5e:16x16', 'h100:8' or 'cpu'; ``this_machine`` measures the latter.

    Raises:
        UserError: no such chip or topology, with those that are known.
    """
    kind, _, shape = name.partition(":")
    if not name:
        raise UserError("no --target given; name one, as --target=v5e:16x16, --target=h100:8 or --target=cpu.")
    if name == "cpu":
        return Target(name, this_machine(), (1,))
    chip = specs.lookup(CHIPS, kind, "--target")
    if chip.kind == "tpu":
        if shape not in chip.topologies:
            found = f"has no topology {shape!r}" if shape else "needs a topology"
            known = ", ".join(f"{kind}:{topology}" for topology in chip.topologies)
            raise UserError(f"--target: {kind} {found}; choose from {known}.")
        return Target(name, chip, tuple(map(int, shape.split("x"))))
    if not re.fullmatch(r"([1-9]\d{0,3})?", shape) or int(shape or 1) > MOST_SIMULATED:
        raise UserError(f"--target: {shape!r} is no number of chips from 1 to {MOST_SIMULATED}; write it as {kind}:8.")
    return Target(name, chip, (int(shape or 1),))
