"""The cores that read data, and the worker processes on them."""

import multiprocessing
import os
import signal
import threading
import time


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent(*_: int) -> None:
    """Let a worker process end when the process that started it was killed, and leave Ctrl-C to that process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all of them
    creator = multiprocessing.parent_process()  # not getppid(): it may have been killed before this line
    parent = creator.pid if creator else os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
