"""Processes that are killed at random moments end bit for bit as if nothing had happened.

`pytest -m slow tests/faults/test_kills.py -s` prints the table of docs/running_at_scale.md.
"""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

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
    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.restore(workdir.absolute() / f"checkpoints/{STEPS}/default")
    flat = {"/".join(map(str, k)): np.asarray(v) for k, v in traverse_util.flatten_dict(_dicts(tree)).items()}
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return flat, [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows]


def _dicts(tree):
    if isinstance(tree, (list, tuple)):
        return {str(i): _dicts(x) for i, x in enumerate(tree)}
    return {k: _dicts(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def kill_at_random(process: subprocess.Popen, workdir: Path, moments: random.Random) -> bool:
    """Kill a process before its first steps or among them; return whether it had not ended by itself."""
    log = workdir / "metrics.jsonl"
    early = moments.random() < 0.2
    until = time.monotonic() + moments.uniform(0.2, 6)
    before = log.read_text() if log.exists() else ""
    while process.poll() is None and (time.monotonic() < until if early else not _grown(log, before)):
        time.sleep(0.01)
    if not early:
        time.sleep(moments.uniform(0, 0.4))
    ended = process.poll() is not None
    process.kill()
    process.communicate()
    return not ended


def _grown(log: Path, before: str) -> bool:
    text = log.read_text() if log.exists() else ""
    return len(text) > len(before) or text[: len(before)] != before[: len(text)]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_kills_at_random_moments(tmp_path, name):
    overrides, kills = RUNS[name]
    moments = random.Random(name)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    quiet = dict(cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    subprocess.run(command(whole, overrides), check=True, **quiet)

    done, in_save, reached = 0, 0, []
    while done < kills and not (reached and reached[-1] == STEPS):
        done += kill_at_random(subprocess.Popen(command(killed, overrides), **quiet), killed, moments)
        folder = killed / "checkpoints"
        found = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        in_save += any("tmp" in path for path in found)
        reached.append(max((int(path) for path in found if path.isdecimal()), default=0))
    subprocess.run(command(killed, overrides), check=True, **quiet)

    (expected, log), (state, other) = content(whole), content(killed)
    assert state.keys() == expected.keys()
    assert any(key.startswith("opt_state") for key in state)
    for key, value in expected.items():
        np.testing.assert_array_equal(state[key], value, err_msg=key)
    assert other == log
    assert done == kills
    print(f"\n| {name} | {done} | {in_save} | {', '.join(map(str, reached))} | bitwise equal |")
