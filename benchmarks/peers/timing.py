"""What each contestant does: from a row's name and its settings to figures, printed as JSON. No library is imported."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

Measured = dict[str, float]
Rows = dict[str, Callable[[dict[str, Any]], Measured]]  # by name; from the settings to the figures


def main(rows: Rows, versions: dict[str, str]) -> None:
    """Measure the row that the command line names, and print it with the versions of the libraries."""
    name, settings = sys.argv[1], json.loads(sys.argv[2])
    found = rows[name](settings)
    print(json.dumps({"found": found, "versions": {"Python": sys.version.split()[0], **versions}}))


def rate(step: Callable[[], object], images: int, seconds: float) -> float:
    """Return images per second of a step that returns when it is done; the first one does not count."""
    step()
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        step()
        count += images
    return count / (time.perf_counter() - begun)


def rate_of(batches: Iterator[int], seconds: float) -> float:
    """Return images per second of an endless iterator of batch sizes, after a warm-up of a third of the time."""
    for part in (seconds / 3, seconds):
        begun, count = time.perf_counter(), 0
        while time.perf_counter() - begun < part:
            count += next(batches)
    return count / (time.perf_counter() - begun)


def after_the_first(batches: Iterator[int]) -> float:
    """Return images per second of all batches but the first, until they end."""
    next(batches)
    begun = time.perf_counter()
    return sum(batches) / (time.perf_counter() - begun)


def peak_mib() -> float:
    """Return the most memory that this process has had, MiB."""
    import resource  # which Windows has not

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)
