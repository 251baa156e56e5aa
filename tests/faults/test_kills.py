"""Processes that are killed at random moments end bit for bit as if nothing had happened.

`pytest -m slow tests/faults/test_kills.py -s` prints the table of docs/running_at_scale.md.
"""

import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import traverse_util

from tests.helpers import ROOT, environment

STEPS = 600
# Name: overrides, and kills.
RUNS = {
    "jit": ([], 20),
    "pmap": (["--config.parallel=pmap"], 12),
    "running mean, accumulation": (["--config.ema_decay=0.99", "--config.accum_steps=2"], 12),
    "two data workers": (["--config.loader.workers=2"], 10),
}


def command(workdir: Path, overrides: list[str]) -> list[str]:
    return [
        *(sys.executable, "-m", "vit_jax_mixer.main", "--config=configs/digits.py", f"--workdir={workdir}"),
        *(f"--config.steps={STEPS}", "--config.checkpoint.every=3", "--config.eval_every=100"),
        *("--config.log_every=5", "--config.model.dropout_rate=0.1", *overrides),
    ]


def content(workdir: Path) -> tuple[dict[str, np.ndarray], list[dict[str, float]]]:
    """Return all that the last checkpoint holds, and what was logged but for the speed."""
    folder = workdir.absolute() / f"checkpoints/{STEPS}/default"
    with ocp.PyTreeCheckpointer() as checkpointer:
        arrays = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), checkpointer.metadata(folder).item_metadata.tree)
        tree = checkpointer.restore(folder, restore_args=arrays)
    flat = {"/".join(map(str, k)): np.asarray(v) for k, v in traverse_util.flatten_dict(_dicts(tree)).items()}
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return flat, [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows]


def _dicts(tree):
    if isinstance(tree, (list, tuple)):
        return {str(i): _dicts(x) for i, x in enumerate(tree)}
    return {k: _dicts(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def kill(process: subprocess.Popen, moment: float, reached: Callable[[], bool] = lambda: True) -> bool:
    """Kill a process ``moment`` seconds after it has reached something; return whether it had not ended by itself."""
    while process.poll() is None and not reached():
        time.sleep(0.005)
    time.sleep(moment)
    ended = process.poll() is not None
    process.kill()
    process.communicate()
    return not ended


def logs(workdir: Path, after: float) -> Callable[[], bool]:
    """Return a function that says whether a process that begins now has logged a step after that."""
    log = workdir / "metrics.jsonl"
    old = log.stat().st_ino if log.exists() else 0  # a resumed run begins a new file

    def reached() -> bool:
        if not log.exists() or log.stat().st_ino == old:
            return False
        return any(int(step) > after for step in re.findall(r'"step": (\d+)', log.read_text()))

    return reached


def saved(workdir: Path) -> tuple[int, bool]:
    """Return the newest checkpoint's step, and whether one was being written."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdecimal()), default=0), any("tmp" in name for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_kills_at_random_moments(tmp_path, name):
    overrides, kills = RUNS[name]
    moments = random.Random(name)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    quiet = dict(cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    subprocess.run(command(whole, overrides), check=True, **quiet)

    done, in_save, resumed = 0, 0, []
    for after in sorted(moments.uniform(0, STEPS - 100) for _ in range(kills)):
        reached = logs(killed, after)
        process = subprocess.Popen(command(killed, overrides), **quiet)
        if moments.random() < 0.2:  # while it starts, or goes on from a checkpoint
            done += kill(process, moments.uniform(0.2, 8))
        else:
            done += kill(process, moments.uniform(0, 0.3), reached)
        newest, writing = saved(killed)
        in_save += writing
        resumed.append(newest)
    subprocess.run(command(killed, overrides), check=True, **quiet)

    (expected, log), (state, other) = content(whole), content(killed)
    assert state.keys() == expected.keys()
    assert any(key.startswith("opt_state") for key in state)
    for key, value in expected.items():
        np.testing.assert_array_equal(state[key], value, err_msg=key)
    assert other == log
    assert done == kills
    assert in_save  # of a kill in the midst of one
    print(f"\n| {name} | {done} | {in_save} | {', '.join(map(str, resumed))} | bitwise equal |")
