"""Several real processes as one run, over loopback: the same numbers, one voice, and a clear end."""

import contextlib
import json
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from configs import digits
from tests.helpers import ROOT, assert_close, assert_same, environment
from tests.test_sources import write_image
from vit_jax_mixer import distributed
from vit_jax_mixer.errors import UserError
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


def in_this_process(workdir, **changes):
    """Train on the two devices here; return what `end_of` does."""
    config = digits.get_config()
    config.update_from_flattened_dict({**FIELDS, **changes})
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


def start(workdirs, variables, devices=1, **changes):
    """Start one process for each set of variables."""
    # What LLVM would make faster takes longer to compile than to run.
    xla = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    env = {**environment(), "XLA_FLAGS": xla}
    flags = [f"--config.{name}={value}" for name, value in {**FIELDS, **changes}.items()]
    command = [sys.executable, "-m", "vit_jax_mixer.main", "--config=configs/digits.py", *flags]
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


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run in one process with two devices: its workdir, parameters and log."""
    workdir = tmp_path_factory.mktemp("alone")
    return workdir, in_this_process(workdir)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The run in two processes of one device each, which also prepare the data: its workdir and what they said."""
    workdir = tmp_path_factory.mktemp("two")
    fresh = {"TFDS_DATA_DIR": str(tmp_path_factory.mktemp("tfds"))}
    variables = [own | fresh for own in plain(2)]
    return workdir, results_of(start([workdir] * 2, variables, parallel="jit(fsdp=2)"))


def up_to(step, workdir, other):
    """Copy a workdir, without the checkpoints after a step."""
    shutil.copytree(workdir, other)
    for path in (other / "checkpoints").iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)
    assert (other / f"checkpoints/{step}").is_dir()
    return other


def test_two_processes_are_one_run(alone, two):
    workdir, results = two
    assert [code for code, _, _ in results] == [0, 0], results[0][2] + results[1][2]
    assert_same_run(end_of(workdir), alone[1])


def test_process_0_alone_speaks(two):
    _, [(_, first, _), (_, second, second_errors)] = two
    assert "step 6/6  evaluation: test/loss" in first
    assert "2 device(s)" in first
    for line in (second + second_errors).splitlines():
        assert not line or line.startswith("[Gloo]")


def test_what_two_processes_have_saved_one_goes_on_from(two, alone, tmp_path):
    resumed = in_this_process(up_to(3, two[0], tmp_path / "resumed"))
    assert_same_run(resumed, alone[1])


@pytest.mark.slow
def test_two_processes_that_go_on_end_to_the_same_bits(two, tmp_path):
    expected = end_of(two[0])
    found = together(up_to(3, two[0], tmp_path / "again"), plain(2), parallel="jit(fsdp=2)")
    assert_same(found[0], expected[0])
    assert found[1] == expected[1]


@pytest.mark.slow
def test_four_processes_as_slurm_starts_them_are_one_run(alone, tmp_path):
    assert jax.device_count() == 2
    one_of_four = up_to(3, alone[0], tmp_path / "resumed")  # saved by one process of two devices
    assert_same_run(together(one_of_four, slurm(4), parallel="jit(fsdp=4)"), alone[1])


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["jit", "jit(fsdp=4)", "jit(fsdp=2)"])
def test_two_processes_of_two_devices_and_one_of_four_take_turns(alone, tmp_path, layout):
    there = together(tmp_path / "there", plain(2), devices=2, parallel=layout)
    assert_same_run(there, alone[1])
    here = together(up_to(3, tmp_path / "there", tmp_path / "here"), [{}], devices=4, parallel="jit")
    assert_same_run(here, alone[1])
    back = together(up_to(3, tmp_path / "here", tmp_path / "back"), plain(2), devices=2, parallel=layout)
    assert_same_run(back, alone[1])


@pytest.mark.slow
def test_pmap_goes_on_from_what_several_processes_have_saved_and_they_from_it(tmp_path):
    still = {"model.dropout_rate": 0.0}  # of which each device of pmap has its own
    expected = in_this_process(tmp_path / "jit", **still)
    there = together(tmp_path / "there", plain(2), parallel="jit(fsdp=2)", **still)
    assert_same_run(there, expected)
    of_pmap = in_this_process(up_to(3, tmp_path / "there", tmp_path / "resumed"), parallel="pmap", **still)
    assert_same_run(of_pmap, expected)
    assert_same_run(in_this_process(tmp_path / "pmap", parallel="pmap", **still), expected)
    back = together(up_to(3, tmp_path / "pmap", tmp_path / "back"), plain(2), parallel="jit(fsdp=2)", **still)
    assert_same_run(back, expected)


@pytest.mark.slow
@pytest.mark.parametrize("told", [[0], [1], [0, 1]])
def test_sigterm_to_any_of_them_stops_all_after_the_same_step(tmp_path, told):
    changes = {"steps": 200, "eval_every": 100, "checkpoint.every": 50}
    expected = in_this_process(tmp_path / "undisturbed", **changes)
    processes = start([tmp_path / "run"] * 2, plain(2), **changes)
    wait_for_steps(processes, tmp_path / "run")
    for index in told:
        processes[index].send_signal(signal.SIGTERM)
    results = results_of(processes)
    assert [code for code, _, _ in results] == [0, 0], results[0][2] + results[1][2]
    stopped = re.search(r"SIGTERM: stopped after step (\d+) of 200, saved in", results[0][1])
    assert stopped, results[0][1]
    assert (tmp_path / "run/checkpoints" / stopped[1]).is_dir()
    assert 0 < int(stopped[1]) < 200
    assert_same_run(together(tmp_path / "run", plain(2), **changes), expected)


@pytest.mark.slow
def test_sigterm_before_the_first_step_of_a_resumed_run_stops_all(alone, tmp_path):
    workdir = up_to(3, alone[0], tmp_path / "resumed")
    processes = start([workdir] * 2, plain(2), steps=1_000_000)
    for line in processes[0].stdout:
        if "from step 3" in line:  # before it compiles
            break
    processes[1].send_signal(signal.SIGTERM)
    results = results_of(processes)
    assert [code for code, _, _ in results] == [0, 0], results[0][2] + results[1][2]
    assert "SIGTERM: stopped after step 4 of 1000000" in results[0][1]


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_disk_that_fails_one_process_ends_all_and_says_why(tmp_path, failing):
    many = {"steps": 1_000_000, "eval_every": 1_000_000, "checkpoint.every": 10, "parallel": "jit(fsdp=2)"}
    processes = start([tmp_path] * 2, plain(2), **many)
    wait_for_steps(processes, tmp_path)
    resource.prlimit(processes[failing].pid, resource.RLIMIT_FSIZE, (30_000, 30_000))
    results = results_of(processes)
    assert all(code not in (0, None) for code, _, _ in results)
    said = results[failing][2]
    assert f"error: process {failing} of 2: cannot write checkpoint" in said
    assert "File too large" in said
    assert "give the same command again to all" in said


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_the_death_of_one_ends_the_other_with_a_message(tmp_path, killed):
    processes = start([tmp_path] * 2, plain(2), steps=1_000_000, eval_every=1_000_000)
    wait_for_steps(processes, tmp_path)
    processes[killed].send_signal(signal.SIGKILL)
    code, _, said = results_of(processes)[1 - killed]  # by itself, and not for the time limit
    assert code not in (0, -signal.SIGKILL)
    # Ours, or that of JAX, which watches process 0 closely.
    assert "another one ended, or cannot be reached" in said or "another task died" in said


@pytest.mark.slow
def test_a_bad_image_that_one_process_reads_ends_both(tmp_path):
    for i in range(16):
        for label in ("cat", "dog"):
            write_image(tmp_path / f"data/train/{label}/{i}.png", i, (8, 8))
            write_image(tmp_path / f"data/test/{label}/{i}.png", i, (8, 8))
    bad = tmp_path / "data/train/dog/3.png"
    Image.effect_noise((8, 8), 50).save(bad)
    bad.write_bytes(bad.read_bytes()[:100])
    changes = {"data.source": f"folder:{tmp_path / 'data'}", "batch_size": 8}
    results = results_of(start([tmp_path / "run"] * 2, plain(2), **changes))
    assert all(code == 1 for code, _, _ in results)
    said = "".join(errors for _, _, errors in results)
    assert "Traceback" not in said
    assert str(bad) in said
    assert "another one ended, or cannot be reached" in said


@pytest.mark.slow
def test_workdirs_that_differ_are_told_by_all(tmp_path):
    results = results_of(start([tmp_path / "a", tmp_path / "b"], plain(2)))
    for p, (code, _, said) in enumerate(results):
        assert code == 1
        assert re.search(f"^error: process {p} of 2: the workdir .* is not one folder: process 1 does not", said, re.M)


@pytest.mark.slow
def test_configs_that_differ_are_told_by_all(tmp_path):
    variables = plain(2)
    processes = [*start([tmp_path], variables[:1]), *start([tmp_path], variables[1:], seed=1)]
    for p, (code, _, said) in enumerate(results_of(processes)):
        assert code == 1
        assert f"error: process {p} of 2: the config of process 1 is not that of process 0; start all with" in said


def python(code, **env):
    """Run a piece of Python with these variables."""
    env = environment() | env
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("index", [0, 1])
def test_the_others_are_not_waited_for_forever(index):
    code = "import os; from vit_jax_mixer import distributed as d; d._join(d.arguments(os.environ), seconds=1)"
    result = python(code, **plain(2)[index])
    assert result.returncode == 1
    assert result.stderr.startswith("error: waited 1 s for the other processes of the run at 127.0.0.1:")
    assert len(result.stderr.splitlines()) == 1


ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


@pytest.mark.parametrize(
    ("environ", "wanted", "expected"),
    [
        ({}, None, None),
        ({}, True, {}),
        (
            {ADDRESS: "host:1", COUNT: "2", INDEX: "1"},
            None,
            {"coordinator_address": "host:1", "num_processes": 2, "process_id": 1},
        ),
        ({ADDRESS: "host:1", COUNT: "2", INDEX: "1"}, False, None),
        # Two tasks on one node have a device each; one task a node has all of its devices.
        ({"SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1"}, None, {}),
        (
            {"SLURM_STEP_NODELIST": "a[1-2]", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "2"},
            None,
            {"local_device_ids": []},
        ),
        ({"SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "1", "SLURM_STEP_NUM_NODES": "1"}, None, None),
        ({"SLURM_NTASKS": "8"}, None, None),  # in the batch script itself, outside of srun
        ({"TPU_WORKER_HOSTNAMES": "t-0,t-1"}, None, {}),
        ({"TPU_WORKER_HOSTNAMES": "t-0"}, None, None),
    ],
)
def test_the_environment_says_who_the_others_are(environ, wanted, expected):
    assert distributed.arguments(environ, wanted) == expected


@pytest.mark.parametrize(
    ("environ", "parts"),
    [
        ({COUNT: "2"}, [f"{COUNT} set, but not {ADDRESS} and {INDEX}", "set all three"]),
        ({ADDRESS: "host:1", COUNT: "2"}, [f"but not {INDEX};"]),
        ({ADDRESS: "host", COUNT: "2", INDEX: "0"}, [f"{ADDRESS} is 'host'; it must be HOST:PORT"]),
        ({ADDRESS: "host:99999", COUNT: "2", INDEX: "0"}, ["it must be HOST:PORT"]),
        ({ADDRESS: "host:1", COUNT: "two", INDEX: "0"}, [f"{INDEX} is '0' of {COUNT} 'two'"]),
        ({ADDRESS: "host:1", COUNT: "2", INDEX: "2"}, [f"{INDEX} is '2' of {COUNT} '2'", "less than the second"]),
    ],
)
def test_an_environment_that_makes_no_sense_is_one_sentence(environ, parts):
    with pytest.raises(UserError) as error:
        distributed.arguments(environ)
    for part in parts:
        assert part in str(error.value)


def test_a_port_that_is_taken_is_one_sentence():
    with socket.create_server(("", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        found = distributed.arguments({ADDRESS: address, COUNT: "2", INDEX: "0"})
        with pytest.raises(UserError, match=f"{address}, but process 0 cannot take its port"):
            distributed._join(found)


def test_no_launcher_is_one_sentence():
    result = python("from vit_jax_mixer import distributed\nwith distributed.processes(True): pass")
    assert "UserError: cannot join the other processes of the run" in result.stderr
    assert f"set {ADDRESS}, {COUNT}, {INDEX}, or pass --nodistributed" in result.stderr
