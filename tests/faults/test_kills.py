"""Processes that are killed at random moments end bit for bit as if nothing had happened.

`pytest -m slow tests/faults/test_kills.py -s` prints the table of docs/running_at_scale.md; with KILLS=20
in the environment there are fewer.
"""

import collections
import json
import os
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

from tests.helpers import ROOT, assert_same, environment
from vit_jax_mixer import pretrained
from vit_jax_mixer.checkpoints import best, checksums, keeping

STEPS, EVAL_EVERY = 600, 20
KILLS = int(os.environ.get("KILLS", "200"))  # in all
# Name: overrides, and the share of the kills.
RUNS = {
    "jit": ([], 0.35),
    "pmap": (["--config.parallel=pmap"], 0.2),
    "running mean, accumulation": (["--config.ema_decay=0.99", "--config.accum_steps=2"], 0.25),
    "two data workers": (["--config.loader.workers=2"], 0.2),
}
# Of runs that do not classify images: what is killed a few times.
OTHERS = {
    "distillation": ["--config=configs/distil.py", "--config.task.teacher={teacher}", "--config.accum_steps=2"],
    "mae": ["--config=configs/mae.py", "--config.ema_decay=0.99"],
    "rows": ["--config=configs/tabular.py", "--config.parallel=pmap", "--config.task.beside="],
    "masked rows": [
        "--config=configs/tabular.py:masked",
    ],
    "dino": [
        *("--config=configs/dino.py", "--config.data.source=tfds:sklearn_digits", "--config.model.num_blocks=1"),
        "--config.data.eval_ops=decode(1)|resize(28)|value_range(-1, 1)",
        *("--config.batch_size=16", "--config.accum_steps=2", "--config.task.probe_examples=50"),
    ],
    "translation": [
        *("--config=configs/translate.py", "--config.data.source=numbers:300", "--config.data.eval=test"),
        *("--config.model.dropout_rate=0.1", "--config.model.hidden_dim=16", "--config.model.mlp_dim=16"),
        *("--config.batch_size=256", "--config.ema_decay=0.99"),
    ],
}
Flat = dict[str, np.ndarray]


def command(workdir: Path, overrides: list[str]) -> list[str]:
    return [
        *(sys.executable, "-m", "vit_jax_mixer.main", "--config=configs/digits.py", f"--workdir={workdir}"),
        *(f"--config.steps={STEPS}", "--config.checkpoint.every=3", f"--config.eval_every={EVAL_EVERY}"),
        *("--config.log_every=5", "--config.model.dropout_rate=0.1", *overrides),
    ]


def other(name: str, workdir: Path, teacher: Path) -> list[str]:
    words = [word.format(teacher=teacher) for word in OTHERS[name]]
    steps = ["--config.steps=60", "--config.optim.warmup_steps=5", "--config.log_every=1", "--config.eval_every=20"]
    return [
        sys.executable,
        "-m",
        "vit_jax_mixer.main",
        f"--workdir={workdir}",
        *words,
        *steps,
        "--config.checkpoint.every=3",
    ]


def content(checkpoint: Path) -> Flat:
    """Return all that a checkpoint holds."""
    arrays_in = checkpoint.absolute() / "default"
    with ocp.PyTreeCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(arrays_in).item_metadata.tree
        arrays = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), metadata)
        tree = checkpointer.restore(arrays_in, restore_args=arrays)
    return {"/".join(map(str, k)): np.asarray(v) for k, v in traverse_util.flatten_dict(_dicts(tree)).items()}


def rows(workdir: Path) -> list[dict[str, float]]:
    """Return what was logged, but for the speed; of all lines that are whole."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in found]


def assert_same_run(workdir: Path, expected: Path) -> None:
    """Assert that two runs logged the same, and kept the same checkpoints with the same scores, the best among them."""
    assert rows(workdir) == rows(expected)
    steps = best.steps(expected / "checkpoints")
    assert best.steps(workdir / "checkpoints") == steps
    assert STEPS in steps
    for step in steps:
        one, other = (run / f"checkpoints/{step}" for run in (workdir, expected))
        assert best.read(one) == best.read(other)
        assert any(key.startswith("opt_state") for key in content(other))
        assert_same(content(one), content(other))
    taken, wanted = pretrained.read(workdir), pretrained.read(expected)
    assert taken.step == wanted.step
    assert f"step {wanted.step}, the best by test/accuracy" in taken.origin
    assert_same(taken.tree, wanted.tree)


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


def logs(workdir: Path, after: float, every: int = 1) -> Callable[[], bool]:
    """Return a function that says whether a process that begins now has logged a step after that, a multiple."""
    log = workdir / "metrics.jsonl"
    old = log.stat().st_ino if log.exists() else 0  # a resumed run begins a new file

    def reached() -> bool:
        if not log.exists() or log.stat().st_ino == old:
            return False
        steps = map(int, re.findall(r'"step": (\d+)', log.read_text()))
        return any(step > after and step % every == 0 for step in steps)

    return reached


def is_damaged(step: Path) -> bool:
    try:
        keeping.check(step)
    except checksums.DamageError:
        return True
    return False


def interrupted(workdir: Path) -> tuple[list[str], int]:
    """Return what a killed run was in the midst of, and its newest checkpoint's step."""
    checkpoints = workdir / "checkpoints"
    names = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
    last = rows(workdir)[-1:] if (workdir / "metrics.jsonl").exists() else []
    signs = {
        "saving": any("tmp" in name for name in names),
        "deleting": any(map(is_damaged, (checkpoints / ".deleted").glob("*"))),
        "evaluating": bool(last) and "train/loss" in last[0] and last[0]["step"] % EVAL_EVERY == 0,
    }
    newest = max((int(name) for name in names if name.isdecimal()), default=0)
    return [what for what, so in signs.items() if so], newest


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_kills_at_random_moments(tmp_path, name):
    overrides, share = RUNS[name]
    kills = round(KILLS * share)
    moments = random.Random(name)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    quiet = dict(cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    subprocess.run(command(whole, overrides), check=True, **quiet)

    done, during, resumed = 0, collections.Counter(), []
    for after in sorted(moments.uniform(0, STEPS - 100) for _ in range(kills)):
        how = moments.random()
        reached = logs(killed, after, EVAL_EVERY if how > 0.7 else 1)
        process = subprocess.Popen(command(killed, overrides), **quiet)
        if how < 0.2:  # while it starts, or goes on from a checkpoint
            done += kill(process, moments.uniform(0.2, 8))
        else:
            done += kill(process, moments.uniform(0, 0.02 if how > 0.7 else 0.3), reached)
        what, newest = interrupted(killed)
        during.update(what)
        resumed.append(newest)
    subprocess.run(command(killed, overrides), check=True, **quiet)

    assert_same_run(killed, whole)
    assert done == kills
    assert during["saving"]  # of a kill in the midst of one
    counts = " | ".join(str(during[what]) for what in ("saving", "deleting", "evaluating"))
    print(f"\n| {name} | {done} | {counts} | {resumed[0]} to {resumed[-1]} | bitwise equal |")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("teacher")
    subprocess.run(
        command(workdir, ["--config.steps=3", "--config.optim.warmup_steps=0"]), check=True, cwd=ROOT, env=environment()
    )
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_kills_of_other_tasks(tmp_path, name, teacher):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    quiet = dict(cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    subprocess.run(other(name, whole, teacher), check=True, **quiet)
    moments = random.Random(name)
    for after in (5, 20, 41):
        process = subprocess.Popen(other(name, killed, teacher), **quiet)
        assert kill(process, moments.uniform(0, 0.05), logs(killed, after))
    subprocess.run(other(name, killed, teacher), check=True, **quiet)
    assert rows(killed) == rows(whole)
    steps = best.steps(whole / "checkpoints")
    assert best.steps(killed / "checkpoints") == steps
    for step in steps:
        assert_same(*(content(run / f"checkpoints/{step}") for run in (killed, whole)))
