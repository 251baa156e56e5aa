"""How commands start and end: flags of their own, help, what hangs, devices that are not there."""

import platform
import subprocess
import sys

import pytest

from tests.helpers import ROOT, assert_one_sentence, command, environment
from vit_jax_mixer import cli

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


FAULTS = """
import resource, sys
sys.argv += {flags}
from vit_jax_mixer import cli
def main(_):
    faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(2**27)
    before = faults()
    for _ in range(20):
        bytearray(2**27)
    print(faults() - before)
cli.run(main)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's malloc that is told so")
@pytest.mark.parametrize(
    ("flags", "platforms", "keeps"),
    [
        ([], "cpu", True),
        (["--nokeep_memory"], "cpu", False),
        ([], "cuda,cpu", False),
    ],
)
def test_freed_memory_is_kept_on_cpus(flags, platforms, keeps):
    faults = int(python(FAULTS.format(flags=flags), JAX_PLATFORMS=platforms).stdout)
    # A page of the system is 2^12 bytes, or up to 2^21.
    assert faults < 20 if keeps else faults >= 20 * 2**27 / 2**21


def python(code, *flags, **env):
    line = [sys.executable, *flags, "-c", code]
    return subprocess.run(line, cwd=ROOT, env=environment() | env, capture_output=True, text=True, check=False)


def test_all_commands_can_be_imported_into_one_process_whose_warnings_are_errors():
    names = ["main", "predict", "evaluate", "convert"]
    names += [f"{name}.__main__" for name in ("data", "export", "plan", "pretrained")]
    code = "import importlib\n" + "".join(f"importlib.import_module('vit_jax_mixer.{name}')\n" for name in names)
    code += "from vit_jax_mixer import config_file; config_file.load('configs/digits.py')"
    result = python(code, "-W", "error")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("platform", ["cuda", "tpu", "cudaa"])
def test_an_accelerator_that_is_not_there_is_one_sentence(platform):
    code = "from vit_jax_mixer import cli; import jax; cli.run(lambda argv: jax.devices())"
    result = python(code, JAX_PLATFORMS=platform)
    assert_one_sentence(result, f"JAX_PLATFORMS={platform}", "python -c 'import jax; print(jax.devices())'")


def test_an_accelerator_that_is_missed_below_jaxs_own_frames_is_one_sentence_too(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert_one_sentence(command("models"), "JAX_PLATFORMS=cuda")


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_help_is_as_wide_as_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    rows = {"--short=": "what it is, in many words " * 5, "--" + "x" * 30: "a name as long as that", "--none": ""}
    lines = cli.in_columns(rows.items())
    assert max(map(len, lines)) <= columns
    assert " ".join(" ".join(lines).split()) == " ".join(" ".join(f"{a} {b}" for a, b in rows.items()).split())
    filled = cli.filled("word " * 50 + "\n\nname    what it is")
    assert max(map(len, filled.splitlines())) <= columns
    assert filled.endswith("\n  name  what it is")


def test_help_ends_well_and_lists_the_fields_of_the_config():
    result = command("main", "--config=configs/digits.py", "--help")
    assert result.returncode == 0, result.stderr
    assert "--workdir=" in result.stdout
    learning_rate = next(line for line in result.stdout.splitlines() if "learning_rate" in line)
    assert "--config.optim.learning_rate=0.003" in learning_rate
    assert learning_rate.endswith("the highest, after the warm-up")
    assert "--model=" in command("predict", "--help").stdout


def test_libraries_log_when_asked_to():
    code = "from absl import logging; from vit_jax_mixer import cli\ncli.run(lambda argv: logging.info('of a library'))"
    run = lambda *flags: subprocess.run(
        [sys.executable, "-c", code, *flags], env=environment(), capture_output=True, text=True, check=False
    )
    assert run().stderr == ""
    assert "of a library" in run("--verbosity=0").stderr


def test_a_script_without_a_main_guard_is_told_the_true_cause(tmp_path):
    script = tmp_path / "train.py"
    work = (
        "from vit_jax_mixer.data.pipeline import Dataset, Loader\n"
        "from vit_jax_mixer.data.sources import open_source\n"
        "data = Dataset(open_source('blank:2', 'train'), lambda example, rng: example)\n"
        "{}Loader(1, 1, 1).train_batches(data, seed=0, batch_size=2, start=0)\n"
    )
    run = lambda: subprocess.run(
        [sys.executable, script], env=environment(), capture_output=True, text=True, check=False
    )
    script.write_text(work.format(""))
    assert f"UserError: {script}, line 4, starts processes that read data" in (said := run().stderr)
    assert "config.loader.workers=0" in said
    script.write_text(work.format("if __name__ == '__main__':\n    "))
    assert run().returncode == 0
