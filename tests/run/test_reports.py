"""The console at common widths."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from tests.helpers import environment

CODE = """
from vit_jax_mixer.run.reports import Console
console = Console(0, 10_000)
console.line("a name\\x1b[2J")
for step in (1, 4321):
    speed = {"perf/images_per_second": 1234.5, "perf/data_wait": 0.5, "perf/step_seconds": 0.1}
    console.training(step, {"accuracy": 0.1234, "loss": 2.303}, speed)
    console.advance(step)
    console._bar.refresh()
console.close()
"""


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_the_bar_and_its_figures_fit_the_terminal(columns):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {name: value for name, value in environment().items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen([sys.executable, "-c", CODE], stdin=theirs, stdout=theirs, env=env) as run:
        os.close(theirs)
        said = b""
        try:
            while part := os.read(ours, 4096):
                said += part
        except OSError:  # so a terminal's end is told
            pass
        os.close(ours)
    assert run.returncode == 0
    lines = said.decode().replace("\r", "\n").splitlines()
    shown = [line for line in lines if "4321/10000" in line][-1]
    assert len(shown) <= columns
    assert shown.count("|") == 2
    assert len(shown.split("|")[1]) >= 10  # the bar itself
    assert "loss 2.303" in shown
    assert ("accuracy 0.1234" in shown) == (columns >= 80)  # a figure is shown whole or not at all
    assert ("1,234 images/s" in shown) == (columns >= 100)
    assert ("50% waiting for data" in shown) == ("waiting" in shown) == (columns >= 200)
    assert "\x1b[2J" not in said.decode()
