"""What Orbax lacks where several processes save together: it leaves their stops alone, and tells failures at once."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import orbax.checkpoint as ocp

FAILURES = (OSError, ValueError, RuntimeError)  # Orbax has all of them for a full disk


class Manager(ocp.CheckpointManager):
    """Orbax's, which does not ask whether the run is to stop."""

    def reached_preemption(self, step: int) -> bool:
        """Return False: asking would count back the steps by which processes agree when to stop (`interruption`)."""
        del step
        return False


def telling(handler: ocp.StandardCheckpointHandler, tell: Callable[[Exception], None]) -> Any:
    """Make a handler tell at once what it cannot write; Orbax tells it after the other processes, which wait for this.

    It takes no subclass for the arguments of its own.
    """
    found: Any = handler
    save, finalize = found.async_save, found.finalize

    async def async_save(*args: Any, **kwargs: Any) -> list[_Told]:
        return [_Told(future, tell) for future in await save(*args, **kwargs) or ()]

    found.async_save = async_save
    found.finalize = told(tell)(finalize)
    return found


@dataclasses.dataclass
class _Told:
    """A future of Orbax."""

    future: Any
    tell: Callable[[Exception], None]

    def result(self, timeout: float | None = None) -> Any:
        with told(self.tell):
            return self.future.result(timeout)


@contextmanager
def told(tell: Callable[[Exception], None]) -> Iterator[None]:
    """Tell a failure to write in the block, which goes on as an exception."""
    try:
        yield
    except FAILURES as error:
        tell(error)
        raise
