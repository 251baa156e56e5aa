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
from vit_jax_mixer.run.reports import Reports

CODE = """
from vit_jax_mixer.run.reports import Console
console = Console(0, 10_000)
console.line("a name\\x1b[2J")
for step in (1, 4321):
    speed = {"perf/images_per_second": 1234.5, "perf/data_wait": 0.5, "perf/step_seconds": 0.1}
    console.training(step, {"accuracy": 0.1234, "loss": 2.303}, speed)
    console.advance(step)
    console._bar.refresh()
console.evaluation(4321, {"test/loss": 1.5})
console.close()
"""


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_the_bar_and_its_figures_fit_the_terminal(columns):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {name: value for name, value in environment().items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    env |= {"TERM": "xterm", **({"NO_COLOR": "1"} if columns == 60 else {})}
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
    assert ("\x1b[1mstep 4321/10000  evaluation: test/loss 1.5\x1b[0m" in said.decode()) == (columns != 60)


def test_the_summary_has_the_last_figures_beside_the_best(tmp_path, capsys):
    reports = Reports(tmp_path, 0, 3, 1, 8, writers="report")
    for step, loss in ((1, 2.0), (2, 1.5), (3, 1.75)):
        reports.evaluation(step, {"test/loss": loss, "test/accuracy": loss / 10})
    reports.summary(3, "done: all")
    reports.close()
    told = capsys.readouterr().out.splitlines()[-4:]
    assert told[0].endswith(f"curves and pictures are in {tmp_path}/report.html")
    assert told[1:] == [
        "  test/loss      1.75, best 1.5 at step 2",
        "  test/accuracy  0.175, best 0.2 at step 1",
        "done: all",
    ]
