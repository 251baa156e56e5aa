"""How far a download is, for a person."""

import sys
import time

from vit_jax_mixer.errors import printable


def say(line: str) -> None:
    """Tell a person; results go to standard output."""
    print(printable(line), file=sys.stderr, flush=True)


def megabytes(count: int) -> str:
    """Return a number of bytes as people read it."""
    return f"{count / 1e6:,.1f} MB"


class Bar:
    """A bar on a terminal; elsewhere, a line at the beginning."""

    def __init__(self, address: str, have: int, total: int | None):
        self.total, self.live, self.last = total, sys.stderr.isatty(), 0.0
        rest = f", from {megabytes(have)} on" if have else ""
        say(f"fetching {address} ({megabytes(total) if total else 'of unknown size'}{rest})")

    def show(self, have: int) -> None:
        """Draw it, ten times a second at most."""
        now = time.monotonic()
        if not self.live or now - self.last < 0.1:
            return
        self.last = now
        part = f"{'#' * (30 * have // self.total):<30} {have / self.total:4.0%} " if self.total else ""
        print(f"\r  {part}{megabytes(have)}\033[K", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Take it away."""
        if self.live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
