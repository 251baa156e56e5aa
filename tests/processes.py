"""Runs of several real processes over loopback, for tests."""

import contextlib
import importlib
import json
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.helpers import ROOT, assert_close, environment
from vit_jax_mixer.train import train_and_evaluate

# A digits run of 6 steps with large enough arrays to be split, and with dropout, which would show if rows
# were in another order. SGD, since Adam blows up gradients that are zero but for rounding.
FIELDS = {
    "steps": 6,
    "log_every": 1,
    "eval_every": 6,
    "eval_batch_size": 92,  # which does not divide the 360 examples
    "checkpoint.every": 3,
    "checkpoint.keep": 2,
    "model.num_blocks": 1,
    "model.hidden_dim": 128,
    "model.dropout_rate": 0.2,
    "optim.optimizer": "sgd(momentum=0.9)",
    "optim.learning_rate": 0.1,
    "optim.warmup_steps": 2,
}


def _fields(changes):
    """Return those of the run with changes; one that is None is left out."""
    return {name: value for name, value in {**FIELDS, **changes}.items() if value is not None}


def in_this_process(workdir, name="digits", **changes):
    """Train one of configs/ on the two devices here; return what `end_of` does."""
    config = importlib.import_module(f"configs.{name}").get_config()
    config.update_from_flattened_dict(_fields(changes))
    train_and_evaluate(config, workdir)
    return end_of(workdir)


def end_of(workdir):
    """Return the parameters that are saved, and what was logged but the speed."""
    from vit_jax_mixer import pretrained

    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return pretrained.load(workdir), [{k: v for k, v in line.items() if k[:5] != "perf/"} for line in lines]


def assert_same_run(found, expected):
    assert_close(found[0], expected[0])
    assert [line["step"] for line in found[1]] == [line["step"] for line in expected[1]]
    for a, b in zip(found[1], expected[1], strict=True):
        assert a.keys() == b.keys()
        for name, value in b.items():
            exact = name.endswith("accuracy")
            assert a[name] == (value if exact else pytest.approx(value, rel=1e-5, abs=1e-7)), (name, b["step"])


def free_port(least=1024, most=2**16):
    for port in np.random.default_rng().permutation(np.arange(max(least, 20_000), most)):
        with contextlib.suppress(OSError), socket.create_server(("", int(port))):
            return int(port)
    raise AssertionError("no port is free")


def plain(count):
    """Return the variables of each process as a person sets them."""
    address = f"127.0.0.1:{free_port()}"
    shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    return [{**shared, "JAX_PROCESS_ID": str(p)} for p in range(count)]


def slurm(count):
    """Return the variables of each process as SLURM sets them, for one node; JAX makes the port of the job's number."""
    shared = {
        "SLURM_JOB_ID": str(free_port(least=2**16 - 2**12) - (2**16 - 2**12)),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": str(count),
    }
    return [{**shared, "SLURM_PROCID": str(p), "SLURM_LOCALID": str(p)} for p in range(count)]


def start(workdirs, variables, devices=1, name="digits", **changes):
    """Start one process for each set of variables, of one of configs/."""
    # What LLVM would make faster takes longer to compile than to run.
    xla = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    env = {**environment(), "XLA_FLAGS": xla}
    flags = [f"--config.{field}={value}" for field, value in _fields(changes).items()]
    command = [sys.executable, "-m", "vit_jax_mixer.main", f"--config=configs/{name}.py", *flags]
    return [
        subprocess.Popen(
            [*command, f"--workdir={workdir}", "--change_config"],
            cwd=ROOT,
            env={**env, **own},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for workdir, own in zip(workdirs, variables, strict=True)
    ]


def results_of(processes):
    """Wait for all; return (exit code, stdout, stderr) of each."""
    try:
        texts = [process.communicate(timeout=500) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]


def wait_for_steps(processes, workdir):
    """Wait until the first steps are logged."""
    begun = time.monotonic()
    while not ((log := workdir / "metrics.jsonl").exists() and "train/loss" in log.read_text()):
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() - begun < 300
        time.sleep(0.1)


def together(workdir, variables, **kwargs):
    """Run to the end; return what `end_of` does."""
    for code, _, said in results_of(start([workdir] * len(variables), variables, **kwargs)):
        assert code == 0, said
    return end_of(workdir)


def up_to(step, workdir, other):
    """Copy a workdir, without the checkpoints after a step."""
    shutil.copytree(workdir, other)
    for path in (other / "checkpoints").iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)
    assert (other / f"checkpoints/{step}").is_dir()
    return other
