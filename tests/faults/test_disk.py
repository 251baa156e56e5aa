"""What a disk can do to checkpoints: be full for a while, be full for good, change a bit, lose a file."""

import os
import resource
import shutil
import signal
import threading
import time

import pytest

from tests.helpers import assert_same
from tests.test_train import lines, logged, saved_part, small
from vit_jax_mixer import checkpoint
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.train import train_and_evaluate

CONFIG = dict(steps=60, eval_every=60, checkpoint__every=10, checkpoint__best="")


@pytest.fixture
def disk(monkeypatch):
    """Return a function that makes the disk full, or not, once a run's metrics have a line of a step.

    A limit on the size of files stands for the disk: from then on, writing an array fails.
    """
    monkeypatch.setattr(checkpoint, "_PAUSE", 0.05)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails, and nothing is killed
    ended = threading.Event()

    def at(workdir, step, *, full):
        def watch():
            path = workdir / "metrics.jsonl"
            while not ended.is_set() and not (path.exists() and f'"step": {step},' in path.read_text()):
                time.sleep(0.002)
            if not ended.is_set():
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000 if full else soft, hard))

        threading.Thread(target=watch, daemon=True).start()

    yield at
    ended.set()
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    state = saved_part(train_and_evaluate(small(**CONFIG, checkpoint__keep=3), workdir))
    return state, workdir


def steps_in(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())


def test_a_disk_that_is_full_for_a_while_costs_one_checkpoint(tmp_path, capsys, disk, undisturbed):
    disk(tmp_path, 15, full=True)
    disk(tmp_path, 24, full=False)
    state = train_and_evaluate(small(**CONFIG, checkpoint__keep=3), tmp_path)
    said = capsys.readouterr().out
    assert "cannot write checkpoint" in said
    assert "the run goes on until the next fails too" in said
    assert "checkpoints can be written again" in said
    assert_same(saved_part(state), undisturbed[0])
    assert steps_in(tmp_path) == steps_in(undisturbed[1])
    assert logged(tmp_path) == logged(undisturbed[1])


def test_a_disk_that_stays_full_ends_the_run_and_keeps_the_last_checkpoint(tmp_path, disk, undisturbed):
    disk(tmp_path, 15, full=True)
    with pytest.raises(UserError, match="so the run stops; the newest there is of step 10: make room") as caught:
        train_and_evaluate(small(**CONFIG, checkpoint__keep=3), tmp_path)
    assert "File too large" in str(caught.value)
    assert steps_in(tmp_path) == [10]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
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
    for step in steps_in(tmp_path / "run"):
        flip_a_bit(tmp_path / f"run/checkpoints/{step}/default/_METADATA")
    with pytest.raises(UserError, match="there is no other, so start anew"):
        train_and_evaluate(small(**CONFIG, checkpoint__keep=3), tmp_path / "run")


def test_a_checkpoint_without_checksums_is_taken_as_it_is(tmp_path, undisturbed):
    shutil.copytree(undisturbed[1], tmp_path / "run")
    os.remove(tmp_path / "run/checkpoints/60/checksums.json")
    assert_same(saved_part(train_and_evaluate(small(**CONFIG, checkpoint__keep=3), tmp_path / "run")), undisturbed[0])
