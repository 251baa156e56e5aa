"""What a run can be planned for: accelerators, and how many of them are joined how.

Sources of the figures:

- TPUs: Google's pages docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e, "chip specifications".
  The memory is what libtpu's compiler gives a program, as its message says when there is too little
  ("available HBM (15.75G)"); the pages say 32, 16, 95 and 32 GB. A link's bandwidth is that of one
  direction: the pages' bandwidth of a chip, shared by its links.
- GPUs: NVIDIA's data sheets of the A100 80GB SXM, H100 SXM and H200 SXM: dense rates, without
  sparsity; NVLink of one direction. The network of one GPU is that of the DGX A100, H100 and H200 (a
  port of 200, 400 and 400 Gbit/s for each). Of the memory, a program has the 75 % that JAX takes
  (docs.jax.dev, "GPU memory allocation").

The FLOP/s of 'float32' are those of JAX's default precision for float32 products
(docs.jax.dev, `jax.lax.Precision`): bfloat16 passes on TPUs, TF32 on GPUs.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

from vit_jax_mixer import specs
from vit_jax_mixer.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """An accelerator.

    Attributes:
        kind: 'tpu', 'gpu' or 'cpu'.
        memory: bytes that a program can use.
        flops: FLOP/s of matrix products, by 'bfloat16' and 'float32'.
        bandwidth: bytes/s of the main memory.
        link: bytes/s of one direction of one link between chips (all of NVLink, for a GPU).
        network: bytes/s of one direction of a GPU's network port; 0 for TPUs.
        wraps: a torus axis of a multiple of this length is closed to a ring; 0 for GPUs.
        topologies: shapes that can be rented, for the message about an unknown one.
    """

    kind: str
    memory: float
    flops: Mapping[str, float]
    bandwidth: float
    link: float
    network: float = 0.0
    wraps: int = 0
    topologies: tuple[str, ...] = ()


def _tpu(memory: float, flops: float, bandwidth: float, link: float, wraps: int, topologies: str) -> Chip:
    rates = {"bfloat16": flops, "float32": flops}
    return Chip("tpu", memory * GIB, rates, bandwidth, link, wraps=wraps, topologies=tuple(topologies.split()))


def _gpu(memory: float, bfloat16: float, tf32: float, bandwidth: float, nvlink: float, network: float) -> Chip:
    return Chip("gpu", 0.75 * memory, {"bfloat16": bfloat16, "float32": tf32}, bandwidth, nvlink, network)


_SQUARE = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"
_CUBE = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16"

CHIPS: Mapping[str, Chip] = {
    "v4": _tpu(30.75, 275e12, 1228e9, 50e9, 4, _CUBE),
    "v5e": _tpu(15.75, 197e12, 819e9, 50e9, 16, _SQUARE),
    "v5p": _tpu(95.74, 459e12, 2765e9, 100e9, 4, _CUBE),
    "v6e": _tpu(31.25, 918e12, 1638e9, 100e9, 16, _SQUARE),
    "a100": _gpu(80e9, 312e12, 156e12, 2039e9, 300e9, 25e9),
    "h100": _gpu(80e9, 989e12, 494e12, 3350e9, 450e9, 50e9),
    "h200": _gpu(141e9, 989e12, 494e12, 4800e9, 450e9, 50e9),
}
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

    def bandwidth(self, group: int) -> float:
        """Return bytes/s that a chip sends in a ring of ``group`` chips.

        A group of all chips of a slice uses every axis of it, a smaller one its best axis. An axis
        that is closed to a ring sends both ways; on an open one, the chip at its end has one link.
        """
        chip = self.chip
        if chip.kind == "gpu":
            return chip.link if group <= GPUS_OF_A_NODE else min(chip.link, GPUS_OF_A_NODE * chip.network)
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
    if not re.fullmatch(r"([1-9]\d*)?", shape) or int(shape or 1) > MOST_SIMULATED:
        raise UserError(f"--target: {shape!r} is no number of chips from 1 to {MOST_SIMULATED}; write it as {kind}:8.")
    return Target(name, chip, (int(shape or 1),))
