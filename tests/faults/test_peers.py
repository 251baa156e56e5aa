"""What one of several processes can meet: a signal, a full disk, a kill, a bad image. All end, with the reason."""

import re
import resource
import signal

import pytest
from PIL import Image

from tests.processes import (
    assert_same_run,
    in_this_process,
    plain,
    results_of,
    start,
    together,
    up_to,
    wait_for_steps,
)
from tests.test_sources import write_image


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The workdir of the run in one process."""
    workdir = tmp_path_factory.mktemp("alone")
    in_this_process(workdir)
    return workdir


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
    workdir = up_to(3, alone, tmp_path / "resumed")
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
