"""Facts of accelerators.

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
import re
from collections.abc import Mapping

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """An accelerator.

    Attributes:
        kind: 'tpu', 'gpu' or 'cpu'.
        name: pattern of JAX's `device_kind`, which some releases write otherwise.
        memory: bytes that a program can use.
        flops: FLOP/s of matrix products, by 'bfloat16' and 'float32'.
        bandwidth: bytes/s of the main memory.
        link: bytes/s of one direction of one link between chips (all of NVLink, for a GPU).
        network: bytes/s of one direction of a GPU's network port; 0 for TPUs.
        wraps: a torus axis of a multiple of this length is closed to a ring; 0 for GPUs.
        topologies: shapes that can be rented, for the message about an unknown one.
    """

    kind: str
    name: str
    memory: float
    flops: Mapping[str, float]
    bandwidth: float
    link: float
    network: float = 0.0
    wraps: int = 0
    topologies: tuple[str, ...] = ()


def _tpu(name: str, memory: float, flops: float, bandwidth: float, link: float, wraps: int, topologies: str) -> Chip:
    rates = {"bfloat16": flops, "float32": flops}
    return Chip("tpu", name, memory * 2**30, rates, bandwidth, link, wraps=wraps, topologies=tuple(topologies.split()))


def _gpu(
    name: str, memory: float, bfloat16: float, tf32: float, bandwidth: float, nvlink: float, network: float
) -> Chip:
    return Chip("gpu", name, 0.75 * memory, {"bfloat16": bfloat16, "float32": tf32}, bandwidth, nvlink, network)


_SQUARE = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"
_CUBE = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16"

CHIPS: Mapping[str, Chip] = {
    "v4": _tpu("TPU v4", 30.75, 275e12, 1228e9, 50e9, 4, _CUBE),
    "v5e": _tpu(r"TPU v5( lite|e)", 15.75, 197e12, 819e9, 50e9, 16, _SQUARE),
    "v5p": _tpu(r"TPU v5p?$", 95.74, 459e12, 2765e9, 100e9, 4, _CUBE),
    "v6e": _tpu(r"TPU v6( lite|e)", 31.25, 918e12, 1638e9, 100e9, 16, _SQUARE),
    "a100": _gpu("NVIDIA A100", 80e9, 312e12, 156e12, 2039e9, 300e9, 25e9),
    "h100": _gpu("NVIDIA H100", 80e9, 989e12, 494e12, 3350e9, 450e9, 50e9),
    "h200": _gpu("NVIDIA H200", 141e9, 989e12, 494e12, 4800e9, 450e9, 50e9),
}


def peak_flop() -> float:
    """Return the peak of all devices of the run together, in FLOP a second of bfloat16; 0 where it is not known."""
    peaks = [_peak(device.device_kind) for device in jax.devices()]
    return sum(peaks) if all(peaks) else 0.0


def _peak(device_kind: str) -> float:
    return next((chip.flops["bfloat16"] for chip in CHIPS.values() if re.match(chip.name, device_kind)), 0.0)
