"""What lies in a folder of checkpoints, and what a disk does to it."""

import json
import os
import random
import shutil

import jax
import numpy as np
import pytest

from tests.run.test_checkpoint import abstract, devices_sharding, open_checkpoints, save, state
from vit_jax_mixer.checkpoints import checksums, keeping
from vit_jax_mixer.errors import UserError


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two")
    checkpoints = open_checkpoints(workdir, keep=2)
    save(checkpoints, 1, {"test/accuracy": 0.5})
    save(checkpoints, 2, {"test/accuracy": 0.25})
    checkpoints.close()
    return workdir


@pytest.fixture
def run(two, tmp_path):
    return shutil.copytree(two, tmp_path / "run")


@pytest.mark.parametrize("name", ["runs [v2]", "a*b?", "{x} 100%41", "~t", "end.", " ünï #1"])
def test_a_folder_may_have_any_name(tmp_path, name):
    checkpoints = open_checkpoints(tmp_path / name)
    save(checkpoints, 3)
    checkpoints.close()
    again = open_checkpoints(tmp_path / name)
    found = again.restore(again.latest(), abstract(state()), devices_sharding())
    np.testing.assert_array_equal(jax.device_get(found.params["Dense_0"]["kernel"]), 3.0)
    again.close()


@pytest.mark.parametrize("name", ["back\\slash", os.fsdecode(b"caf\xe9"), "gs:"])
def test_names_that_cannot_be_opened_are_one_sentence(tmp_path, name):
    with pytest.raises(UserError, match="rename it"):
        open_checkpoints(tmp_path / name)


def test_what_is_no_checkpoint_is_passed_over_or_set_aside(run):
    folder = run / "checkpoints"
    for name in ("007", "1e3", " 5", "1٣", "٣", "1" * 23, "5\n"):
        shutil.copytree(folder / "2", folder / name)
    (folder / "999").mkdir()
    (folder / "998").write_text("")
    (folder / "notes.txt").write_text("")
    checkpoints = open_checkpoints(run, keep=2)
    assert checkpoints.latest() == 2
    assert "checkpoint 999 is damaged (it holds no checkpoint)" in checkpoints.set_aside
    assert "going on from step 2" in checkpoints.set_aside
    save(checkpoints, 999)
    checkpoints.close()
    keeping.check(folder / "999")
    assert (folder / "007").is_dir()


DAMAGED = ["[" * 100_000, "[]", "{", "\0", '{"default/_METADATA": 1}', '{"default/_METADATA": [0, 0]}']
DAMAGED += ['{"default/_METADATA": [-1, true]}', '{"../../x": [1, 1]}', '{"default/_METADATA": [1000000000, 1]}']


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_list_of_checksums_is_one_sentence_and_the_next_whole_checkpoint_is_taken(run, text):
    (run / "checkpoints/2/checksums.json").write_text(text)
    checkpoints = open_checkpoints(run, keep=2)
    assert "checkpoint 2 is damaged" in checkpoints.set_aside
    assert checkpoints.latest() == 1
    checkpoints.close()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
@pytest.mark.parametrize("name", ["checksums.json", "scores.json", "default/_METADATA"])
def test_a_pipe_is_not_waited_for(run, name):
    (run / "checkpoints/2" / name).unlink()
    os.mkfifo(run / "checkpoints/2" / name)
    with pytest.raises(checksums.DamageError, match=r"cannot be read|is not what was written"):
        keeping.check(run / "checkpoints/2")


def test_the_best_is_looked_at_as_well_as_the_newest(run):
    (run / "checkpoints/1/default/manifest.ocdbt").unlink()
    checkpoints = open_checkpoints(run, keep=2)
    assert "checkpoint 1 is damaged (default/manifest.ocdbt is missing)" in checkpoints.set_aside
    checkpoints.close()


@pytest.mark.parametrize("lost", ["default/manifest.ocdbt", "default/d"])
def test_half_a_checkpoint_without_checksums_is_noticed(run, lost):
    step = run / "checkpoints/2"
    (step / "checksums.json").unlink()
    keeping.check(step)
    shutil.rmtree(step / lost) if (step / lost).is_dir() else (step / lost).unlink()
    with pytest.raises(checksums.DamageError):
        keeping.check(step)


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_a_flipped_bit_in_any_file_of_a_checkpoint_is_noticed_or_changes_nothing(run, count):
    draws, step = random.Random(0), run / "checkpoints/2"
    files = sorted(path for path in step.rglob("*") if path.is_file() and path.stat().st_size)
    expected = {name: json.loads((step / name).read_text()) for name in ("checksums.json", "scores.json")}
    for number in range(count):
        path = files[number % len(files)]
        whole = path.read_bytes()
        changed = bytearray(whole)
        changed[draws.randrange(len(whole))] ^= 1 << draws.randrange(8)
        path.write_bytes(changed)
        try:
            keeping.check(step)
        except checksums.DamageError:
            pass
        else:
            harmless = path.name in ("commit_success.txt", "_CHECKPOINT_METADATA")
            assert harmless or json.loads(path.read_text()) == expected[path.name], path
        path.write_bytes(whole)
    keeping.check(step)


def test_nothing_to_seal_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing to seal"):
        checksums.seal(tmp_path)
