"""What a command sets before JAX is loaded: memory that a process on CPUs keeps, and where programs are kept."""

import ctypes
import os
import sys
from glob import glob

_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def keep_memory() -> bool:
    """Let this process keep the memory that it frees, if JAX runs on CPUs and malloc is glibc's; say whether it does.

    XLA asks malloc for the temporaries of a step anew in each, and glibc gives large blocks back to the system at
    once, so that each step would fault all its pages in. No value changes by it.
    """
    if sys.platform != "linux" or not _on_cpus():
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    # Large blocks come from the heap, of which nothing goes back and which grows by 64 MiB.
    asked = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 2**26))
    return all(libc.mallopt(name, value) for name, value in asked)


def _on_cpus() -> bool:
    """Tell whether JAX will run on CPUs, as far as can be seen before it is loaded."""
    if asked := os.environ.get("JAX_PLATFORMS"):
        return set(asked.split(",")) == {"cpu"}
    return not any(glob(pattern) for pattern in _ACCELERATORS)
