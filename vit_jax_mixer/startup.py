"""What a command sets before JAX is loaded: memory that a process on CPUs keeps, and where programs are kept."""

import contextlib
import ctypes
import hashlib
import os
import platform
import sys
from glob import glob
from importlib import metadata
from pathlib import Path
from typing import Any

CACHE = "VIT_JAX_MIXER_CACHE"  # environment variable that names the folder of `cache_folder`
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")
_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")  # which of the ways in brackets
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def keep_memory() -> bool:
    """Let this process keep the memory that it frees, if JAX runs on CPUs and malloc is glibc's; say whether it does.

    XLA asks malloc for the temporaries of a step anew in each, and glibc gives large blocks back to the system at
    once, so that each step would fault all its pages in. No value changes by it.
    """
    if not (libc := _glibc_on_cpus()):
        return False
    # Large blocks come from the heap, of which nothing goes back and which grows by 64 MiB.
    asked = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 2**26))
    return all(libc.mallopt(name, value) for name, value in asked)


def ask_for_large_pages() -> None:
    """Begin this command anew with a malloc that asks the kernel for large pages, where `keep_memory` does something.

    Steps of large models fault far fewer pages in; but to zero them delays a start, so it is for training alone. glibc
    reads what it is told as a process starts, so the process becomes another one of the same command line. One that is
    told already stays as it is, and so does one that is more than a command, as a notebook's.
    """
    told = os.environ.get("GLIBC_TUNABLES", "")
    given = sys.argv[1:]
    if "hugetlb" in told or not given or sys.orig_argv[-len(given) :] != given or not _glibc_on_cpus():
        return
    with contextlib.suppress(OSError):
        if "[never]" not in _PAGES.read_text():
            variables = os.environ | {"GLIBC_TUNABLES": f"{told}:glibc.malloc.hugetlb=1".lstrip(":")}
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], variables)


def _glibc_on_cpus() -> Any:
    """Return glibc, if it is there and JAX runs on CPUs, or None."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" and _on_cpus() else None
    return libc if hasattr(libc, "gnu_get_libc_version") else None


def _on_cpus() -> bool:
    """Tell whether JAX will run on CPUs, as far as can be seen before it is loaded."""
    if asked := os.environ.get("JAX_PLATFORMS"):
        return set(asked.split(",")) == {"cpu"}
    return not any(glob(pattern) for pattern in _ACCELERATORS)


def keep_programs() -> None:
    """Let JAX keep the programs that it compiles in the user's cache folder, unless its own variables say otherwise.

    JAX names an entry by the program, its release and the flags of XLA, but not by what the processor can do, nor
    by the number of cores that a program for CPUs was split for: each such machine has a folder of its own. Entries
    are code, so the folder must be the user's alone.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or "jax" in sys.modules:
        return
    folder = cache_folder() / "compiled" / _machine()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        about = folder.stat()
        if about.st_mode & 0o022 or (hasattr(os, "getuid") and about.st_uid != os.getuid()):
            return
        _sweep(folder)
    except (OSError, ImportError):  # as of a home that cannot be written: then nothing is kept
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2**30))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")


def cache_folder() -> Path:
    """Return the user's folder for what can be fetched or made anew: weights, compiled programs, places of records."""
    whole = os.environ.get(CACHE) or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "vit_jax_mixer")
    return Path(whole).expanduser()


def _sweep(folder: Path) -> None:
    """Remove entries that are not whole: JAX writes the time beside an entry after it, and a kill may come between."""
    import fcntl  # which not every system has

    with open(folder / ".lockfile", "a") as lock, contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # JAX's own; who has it writes, and the next start sweeps
        for entry in folder.glob("*-cache"):
            if not entry.with_name(entry.name.removesuffix("cache") + "atime").exists():
                entry.unlink()


def _machine(processors: Path = Path("/proc/cpuinfo")) -> str:
    """Return a name of what a program is compiled for: the processor, what it can do, and how many cores are ours."""
    try:
        lines = processors.read_text().split("\n\n")[0].splitlines()
        own = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU p", "isa"))]
    except OSError:  # no Linux
        own = [platform.processor(), platform.version()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = "\n".join([platform.machine(), *own, f"{cores}", metadata.version("jaxlib")])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
