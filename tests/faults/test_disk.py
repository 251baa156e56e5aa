"""What a disk can do to checkpoints: be full for a while, be full for good, change a bit, lose a file."""

import os
import resource
import shutil
import signal
import threading
import time

import jax
import optax
import pytest

from tests.helpers import assert_same
from tests.test_train import lines, saved_part, small
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run import checkpoint, step
from vit_jax_mixer.run.checkpoint import Checkpoints
from vit_jax_mixer.train import train_and_evaluate

CONFIG = dict(steps=60, eval_every=60, checkpoint__every=10, checkpoint__best="")


# Orbax lets the threads that could not write end with their exceptions.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def disk(monkeypatch):
    """Return a function that makes the disk full, or not: a limit on the size of files stands for it."""
    monkeypatch.setattr(checkpoint, "_PAUSE", 0.05)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails, and nothing is killed
    yield lambda *, full: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000 if full else soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    state = saved_part(train_and_evaluate(small(**CONFIG, checkpoint__keep=3), workdir))
    return state, workdir


def steps_in(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())


def large_state(value):
    return step.new_state(optax.sgd(0.1), {"kernel": jax.random.normal(jax.random.key(value), (100, 100))}, ())


def wait_until_failed(checkpoints):
    while not checkpoints.failed():
        time.sleep(0.01)


def test_a_disk_that_is_full_for_a_while_is_told_and_costs_the_checkpoints_of_that_time(tmp_path, disk):
    checkpoints = Checkpoints(tmp_path, every=1, keep=9, best="")
    assert checkpoints.save(1, large_state(1), {}) == ""
    checkpoints._settle()
    disk(full=True)
    assert checkpoints.save(2, large_state(2), {}) == ""  # it is found later
    wait_until_failed(checkpoints)
    said = checkpoints.save(3, large_state(3), {})
    assert "cannot write checkpoint 3" in said
    assert "File too large" in said
    assert "the run goes on until the next fails too" in said
    assert not checkpoints.failed()
    disk(full=False)
    assert "checkpoints can be written again: that of step 4 is" in checkpoints.save(4, large_state(4), {})
    assert checkpoints.save(5, large_state(5), {}) == ""
    checkpoints.close()
    assert steps_in(tmp_path) == [1, 4, 5]
    again = Checkpoints(tmp_path, every=1, keep=9, best="")
    like = jax.eval_shape(lambda: large_state(0))
    found = again.restore(4, like, lambda x: jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    again.close()
    assert_same(jax.device_get(found.params), jax.device_get(large_state(4).params))


def test_a_checkpoint_that_was_about_to_go_is_still_known_when_its_successor_fails(tmp_path, disk):
    checkpoints = Checkpoints(tmp_path, every=1, keep=1, best="")
    checkpoints.save(1, large_state(1), {})
    checkpoints._settle()
    disk(full=True)
    checkpoints.save(2, large_state(2), {})
    wait_until_failed(checkpoints)
    with pytest.raises(UserError, match=r"the newest there is of step 1: make room"):
        checkpoints.save(3, large_state(3), {}, last=True)
    disk(full=False)
    checkpoints.close()


def test_a_device_without_memory_is_no_full_disk(tmp_path):
    checkpoints = Checkpoints(tmp_path, every=1, keep=1, best="")
    with pytest.raises(jax.errors.JaxRuntimeError, match="out of memory"):
        checkpoints._why(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"))
    assert checkpoints._why(ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left")) == "write: No space left"
    checkpoints.close()


@pytest.mark.slow
def test_a_disk_that_stays_full_ends_the_run_and_keeps_the_last_checkpoint(tmp_path, disk, undisturbed):
    def watch():
        while not (tmp_path / "checkpoints/10").is_dir():
            time.sleep(0.002)
        disk(full=True)

    threading.Thread(target=watch, daemon=True).start()
    with pytest.raises(UserError, match=r"so the run stops; the newest there is of step \d+: make room") as caught:
        train_and_evaluate(small(**CONFIG, checkpoint__keep=3), tmp_path)
    assert "File too large" in str(caught.value)
    assert steps_in(tmp_path)
    assert steps_in(tmp_path)[-1] < 60
    disk(full=False)
    state = train_and_evaluate(small(**CONFIG, checkpoint__keep=3), tmp_path)
    assert_same(saved_part(state), undisturbed[0])


def kinds(folder):
    """Return one file of each kind in a checkpoint, by its path with numbers and hashes left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.stat().st_size:
            parts = path.relative_to(folder).parts
            found.setdefault((parts[:-1], "data" if path.parent.name == "d" else path.name), path)
    return list(found.values())


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1 << 3
    path.write_bytes(content)


@pytest.mark.slow  # a resume for each file; test_keeping has the comparison alone
def test_a_flipped_bit_in_any_file_goes_unnoticed_in_none(tmp_path, capsys, undisturbed):
    expected, source = undisturbed
    names = [path.relative_to(source / "checkpoints/60") for path in kinds(source / "checkpoints/60")]
    assert len(names) >= 8
    for number, name in enumerate(names):
        workdir = tmp_path / str(number)
        shutil.copytree(source, workdir)
        flip_a_bit(workdir / "checkpoints/60" / name)
        capsys.readouterr()
        state = train_and_evaluate(small(**CONFIG, checkpoint__keep=3), workdir)
        said = capsys.readouterr().out
        if len(name.parts) > 1 or name.name == "checksums.json":
            assert "checkpoint 60 is damaged" in said, name
            assert "going on from step 50" in said
            assert (workdir / "damaged_checkpoints/60").is_dir()
            assert lines(workdir)[-1]["step"] == 60
        assert_same(saved_part(state), expected)


@pytest.mark.parametrize("remove", ["default/manifest.ocdbt", "default"])
def test_a_lost_file_is_noticed(tmp_path, capsys, undisturbed, remove):
    shutil.copytree(undisturbed[1], tmp_path / "run")
    path = tmp_path / "run/checkpoints/60" / remove
    shutil.rmtree(path) if path.is_dir() else os.remove(path)
    state = train_and_evaluate(small(**CONFIG, checkpoint__keep=3), tmp_path / "run")
    assert "checkpoint 60 is damaged" in capsys.readouterr().out
    assert_same(saved_part(state), undisturbed[0])


def test_where_all_are_damaged_the_run_says_so(tmp_path, undisturbed):
    shutil.copytree(undisturbed[1], tmp_path / "run")
    for number in steps_in(tmp_path / "run"):
        flip_a_bit(tmp_path / f"run/checkpoints/{number}/default/_METADATA")
    with pytest.raises(UserError, match="there is no other: choose another --workdir, or pass --start_anew"):
        train_and_evaluate(small(**CONFIG, checkpoint__keep=3), tmp_path / "run")


def test_a_checkpoint_without_checksums_is_taken_as_it_is(tmp_path, undisturbed):
    shutil.copytree(undisturbed[1], tmp_path / "run")
    os.remove(tmp_path / "run/checkpoints/60/checksums.json")
    assert_same(saved_part(train_and_evaluate(small(**CONFIG, checkpoint__keep=3), tmp_path / "run")), undisturbed[0])
