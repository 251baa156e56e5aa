"""Several real processes as one run, over loopback: the same numbers, one voice, and a clear end."""

import re
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.helpers import ROOT, assert_same, environment
from tests.processes import assert_same_run, end_of, in_this_process, plain, results_of, slurm, start, together, up_to
from tests.run.test_step import UNEQUAL, Tokens, sentences, step_on
from tests.test_sources import write_image
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run import processes

# What runs that do not classify images change of `FIELDS`, by their configs.
ANOTHER = {
    "mae": {"checkpoint.best": "min loss"},
    "distil": {"checkpoint.best": "min loss", "task.teacher": "a workdir", "model.dropout_rate": None},
    "dino": {
        "data.source": "tfds:sklearn_digits",
        "data.eval_ops": "decode(1)|resize(28)|value_range(-1, 1)",
        "model.dropout_rate": None,
        "optim.optimizer": "sgd(momentum=0.9)",
        "checkpoint.best": "",
        "task.probe": "",
        "batch_size": 16,
    },
    "translate": {
        "data.source": "numbers:500",
        "data.eval": "test",
        "model.num_blocks": None,
        "eval_batch_size": 128,
    },
    "tabular": {"model.dropout_rate": None, "task.beside": ""},
    "digits": {"data.cache": "device"},
}


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
@pytest.mark.parametrize("name", ANOTHER)
def test_two_processes_of_another_task_are_one_run(name, alone, tmp_path):
    changes = {k: str(alone[0]) if k == "task.teacher" else v for k, v in ANOTHER[name].items()}
    one = in_this_process(tmp_path / "one", name=name, **changes)
    results = results_of(start([tmp_path / "two"] * 2, plain(2), name=name, parallel="jit(fsdp=2)", **changes))
    assert [code for code, _, _ in results] == [0, 0], results[0][2] + results[1][2]
    assert_same_run(end_of(tmp_path / "two"), one)


@pytest.mark.slow
def test_two_processes_that_go_on_end_to_the_same_bits(two, tmp_path):
    expected = end_of(two[0])
    found = together(up_to(3, two[0], tmp_path / "again"), plain(2), parallel="jit(fsdp=2)", profile="4:5")
    assert len(list((tmp_path / "again/profile").rglob("perfetto_trace.json.gz"))) == 1  # of one process
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


# A step on this process's rows of the sentences; the state that it ends with goes to a file.
STEP_ON_SENTENCES = """
import sys

import jax
import numpy as np

from tests.run.test_step import Tokens, sentences, step_on
from vit_jax_mixer.run import processes

lengths, how, accum_steps, folder = sys.argv[1:]
with processes.processes(True):
    batch, own, count = sentences(eval(lengths)), jax.process_index(), jax.process_count()
    rows = {name: np.split(values, count)[own] for name, values in batch.items()}
    state, metrics = step_on(Tokens(), how, int(accum_steps), rows)
    np.savez(f"{folder}/{own}.npz", slope=state.params["slope"], mean=state.extra["mean"], **metrics)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "lengths", "accum_steps"),
    [("jit", UNEQUAL, 2), ("jit", [0, 0, 0, 0, 4, 1, 2, 3], 1), ("jit(fsdp=2)", UNEQUAL, 1)],
)
def test_rows_of_unequal_weight_in_two_processes_have_the_update_of_one(tmp_path, how, lengths, accum_steps):
    command = [sys.executable, "-c", STEP_ON_SENTENCES, str(lengths), how, str(accum_steps), str(tmp_path)]
    env = {**environment(), "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    results = results_of([subprocess.Popen(command, cwd=ROOT, env={**env, **own}, **pipes) for own in plain(2)])
    assert [code for code, _, _ in results] == [0, 0], results[0][2] + results[1][2]
    state, metrics = step_on(Tokens(), "jit", 1, sentences(lengths))
    expected = {"slope": state.params["slope"], "mean": state.extra["mean"], **metrics}
    for process in range(2):
        found = np.load(tmp_path / f"{process}.npz")
        assert set(found.files) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-7, err_msg=name)


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
        assert re.search(f"^error: process {p} of 2: the config of process 1 .* is not that of process 0", said, re.M)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "count", "how"),
    [
        (("cat", "eel"), 8, "the classes differ: 'dog' is gone and 'eel' is new"),
        (("cat", "dog"), 7, "14 examples instead of 16"),
    ],
)
def test_data_that_differ_are_told_by_all(tmp_path, classes, count, how):
    for home, names, images in (("a", ("cat", "dog"), 8), ("b", classes, count)):
        for where in [f"{home}/data/{split}/{name}" for split in ("train", "test") for name in names]:
            for i in range(images):
                write_image(tmp_path / where / f"{i}.png", i, (8, 8))
    homes = [own | {"HOME": str(tmp_path / home)} for own, home in zip(plain(2), "ab", strict=True)]
    changes = {"data.source": "folder:~/data", "batch_size": 8}
    for p, (code, _, said) in enumerate(results_of(start([tmp_path / "run"] * 2, homes, **changes))):
        assert code == 1
        who = (
            f"^error: process {p} of 2: the record of the data of process 1 .* is not that of process 0 .*: training: "
        )
        assert re.search(who + how, said, re.M)


def python(code, **env):
    """Run a piece of Python with these variables."""
    env = environment() | env
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("index", [0, 1])
def test_the_others_are_not_waited_for_forever(index):
    code = "import os; from vit_jax_mixer.run import processes as d; d._join(d.arguments(os.environ), seconds=1)"
    result = python(code, **plain(2)[index])
    assert result.returncode == 1
    assert result.stderr.startswith("error: waited 1 s for the other processes of the run at 127.0.0.1:")
    assert len(result.stderr.splitlines()) == 1


STEP = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "a",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
}
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
        (STEP, None, {}),
        ({**STEP, "SLURM_STEP_NUM_NODES": "2"}, None, {"local_device_ids": []}),
        ({**STEP, "SLURM_NTASKS": "1"}, None, None),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "1"}, None, None),  # the shell of a job, whose tasks nobody has started
        ({**STEP, "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "2"}, None, {"num_processes": 2}),
        ({"SLURM_NTASKS": "8"}, None, None),  # in the batch script itself, outside of srun
        ({"TPU_WORKER_HOSTNAMES": "t-0,t-1"}, None, {}),
        ({"TPU_WORKER_HOSTNAMES": "t-0"}, None, None),
        ({"WORLD_SIZE": "1", "OMPI_COMM_WORLD_SIZE": "1", "RANK": "0", "PMIX_RANK": "0"}, None, None),
        ({**STEP, "PMIX_RANK": "1"}, None, {}),
        ({"WORLD_SIZE": "4"}, False, None),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True, {}),  # JAX may find the others
    ],
)
def test_the_environment_says_who_the_others_are(environ, wanted, expected):
    assert processes.arguments(environ, wanted) == expected


@pytest.mark.parametrize(
    ("environ", "parts"),
    [
        ({COUNT: "2"}, [f"{COUNT} set, but not {ADDRESS} and {INDEX}", "set all three", "--nodistributed"]),
        (
            {**STEP, "SLURM_PROCID": ""},
            ["SLURM has started several tasks, but SLURM_PROCID not set", "--nodistributed"],
        ),
        ({**STEP, "SLURM_NTASKS": "two"}, ["SLURM_NTASKS is 'two', not a number", "--nodistributed"]),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, ["OMPI_COMM_WORLD_SIZE is 4", "mpirun", "--distributed", "--nodistributed"]),
        ({"PMI_SIZE": "2"}, ["PMI_SIZE is 2", "--nodistributed"]),
        ({"FLUX_JOB_SIZE": "2"}, ["FLUX_JOB_SIZE is 2", "flux", "--nodistributed"]),
        ({**STEP, "OMPI_COMM_WORLD_SIZE": "8"}, ["OMPI_COMM_WORLD_SIZE is 8", "mpirun"]),  # its daemons are the tasks
        ({**STEP, "SLURM_PROCID": "2"}, ["SLURM_PROCID is 2, but this step has 2 tasks", "--nodistributed"]),
        ({**STEP, "SLURM_STEP_NODELIST": ""}, ["SLURM_STEP_NODELIST not set", "--nodistributed"]),
        ({**STEP, "SLURM_NTASKS": "9" * 5000}, ["SLURM_NTASKS is '999", "not a number"]),
        ({ADDRESS: "host:" + "9" * 5000, COUNT: "2", INDEX: "0"}, ["it must be HOST:PORT"]),
        ({ADDRESS: "host:0", COUNT: "2", INDEX: "0"}, ["it must be HOST:PORT"]),
        ({ADDRESS: "host:1", COUNT: "9" * 5000, INDEX: "0"}, ["they must be numbers"]),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, ["SLURM_STEP_NODELIST not set", "--nodistributed"]),
        ({"OMPI_COMM_WORLD_RANK": "1"}, ["OMPI_COMM_WORLD_RANK is 1", "mpirun", "--nodistributed"]),
        ({"PMIX_RANK": "3"}, ["PMIX_RANK is 3", "--nodistributed"]),
        ({"WORLD_SIZE": "8", "RANK": "0"}, ["WORLD_SIZE is 8", "torchrun", "--nodistributed"]),
        ({ADDRESS: "host:1", COUNT: "2"}, [f"but not {INDEX};"]),
        ({ADDRESS: "host", COUNT: "2", INDEX: "0"}, [f"{ADDRESS} is 'host'; it must be HOST:PORT"]),
        ({ADDRESS: "host:99999", COUNT: "2", INDEX: "0"}, ["it must be HOST:PORT"]),
        ({ADDRESS: "host:1", COUNT: "two", INDEX: "0"}, [f"{INDEX} is '0' of {COUNT} 'two'"]),
        ({ADDRESS: "host:1", COUNT: "2", INDEX: "2"}, [f"{INDEX} is '2' of {COUNT} '2'", "less than the second"]),
    ],
)
def test_an_environment_that_makes_no_sense_is_one_sentence(environ, parts):
    with pytest.raises(UserError) as error:
        processes.arguments(environ)
    for part in parts:
        assert part in str(error.value)


def test_a_port_that_is_taken_is_one_sentence():
    with socket.create_server(("", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        found = processes.arguments({ADDRESS: address, COUNT: "2", INDEX: "0"})
        with pytest.raises(UserError, match=f"{address}, but process 0 cannot take its port"):
            processes._join(found)


def test_no_launcher_is_one_sentence():
    result = python("from vit_jax_mixer.run import processes\nwith processes.processes(True): pass")
    assert "UserError: cannot join the other processes of the run" in result.stderr
    assert f"set {ADDRESS}, {COUNT}, {INDEX}, or pass --nodistributed" in result.stderr
