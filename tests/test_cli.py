"""How commands end: with the right code and all that they said, whatever a library leaves behind."""

import subprocess
import sys

import pytest

from tests.helpers import ROOT, environment

# Three things that never end: a thread that the interpreter waits for, one of a pool, and an exit hook.
HANG = """
import atexit, concurrent.futures, threading, time
from vit_jax_mixer import cli
from vit_jax_mixer.errors import UserError
cli._SECONDS = cli._SECONDS_AFTER_ERROR = 1
for_ever = lambda: [time.sleep(1) for _ in iter(int, 1)]
def main(_):
    {hang}
    print("all that it said")
    {last}
cli.run(main)
"""
HANGS = {
    "thread": "threading.Thread(target=for_ever).start()",
    "pool": "concurrent.futures.ThreadPoolExecutor(1).submit(for_ever)",
    "hook": "atexit.register(for_ever)",
}


def end_of(hang, last):
    code = HANG.format(hang=HANGS[hang], last=last)
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("hang", HANGS)
def test_what_hangs_does_not_keep_a_command_that_failed(hang):
    result = end_of(hang, 'raise UserError("it is broken; mend it.")')
    assert result.returncode == 1
    assert result.stdout == "all that it said\n"
    assert result.stderr == "error: it is broken; mend it.\n"


@pytest.mark.parametrize(("last", "code"), [("pass", 0), ("raise SystemExit(3)", 3), ("raise KeyError('x')", 1)])
def test_the_code_is_the_commands_own(last, code):
    result = end_of("thread", last)
    assert result.returncode == code
    assert result.stdout == "all that it said\n"
    assert ("KeyError: 'x'" in result.stderr) == (last == "raise KeyError('x')")
