"""What this machine's CPU does, measured: for plans that can be checked here."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import jax
import jax.numpy as jnp

from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run.hardware import Chip

_SIDE = 2048  # of the matrices whose product is timed
_FLOATS = 2**26  # of the array that is copied, 256 MB: more than any cache


def this_machine() -> Chip:
    """Measure the rate of a float32 matrix product and of a copy; a second or two."""
    square = jnp.ones((_SIDE, _SIDE))
    flops = 2 * _SIDE**3 / _seconds(jax.jit(lambda x: x @ x), square)
    bandwidth = 2 * 4 * _FLOATS / _seconds(jax.jit(lambda x: x + 1), jnp.ones(_FLOATS))
    # It computes bfloat16 in float32, and its devices share one memory, so that messages are copies.
    return Chip("cpu", "", memory(), {"bfloat16": flops, "float32": flops}, bandwidth, link=bandwidth)


def memory(limits: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the bytes of memory: the machine's or, if that is less, the container's limit.

    Args:
        limits: folder of Linux's control groups, version 2 or 1.

    Raises:
        UserError: the system does not tell.
    """
    if not hasattr(os, "sysconf"):  # as on Windows
        raise UserError("how much memory this machine has cannot be told on this system; name another --target.")
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # there is none, or it is "max"
            sizes.append(int((limits / name).read_text()))
    return float(min(sizes))


def _seconds(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
    """Return the least time of a few calls."""
    function(x).block_until_ready()
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        function(x).block_until_ready()
        times.append(time.perf_counter() - begun)
    return min(times)
