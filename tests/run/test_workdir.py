"""A run's folder: what a start makes of what lies there, and of what is gone."""

import importlib
import json
import os
import shutil

import pytest

from tests.test_train import small
from vit_jax_mixer.checkpoints import checksums
from vit_jax_mixer.config import as_json
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run import workdir as workdirs

DATA = {"training": {"examples": 2, "classes": ["a", "b"], "fingerprint": "1"}}
FREELY = dict(change_config=True, change_data=True)
STRICTLY = dict(change_config=False, change_data=False)


def begun(path, saved=0):
    """Make the folder of a run of 12 steps that was killed, perhaps after its checkpoint of a step."""
    with workdirs.opened(path) as folder:
        folder.record(0, small(), DATA, None)
        (path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1.0}\n')
        (path / "checkpoints").mkdir()
        if saved:
            (path / "checkpoints" / str(saved)).mkdir()
            workdirs.remember_checkpoint(path, saved)
    return path


def start(path, step=0, steps=12, **how):
    with workdirs.opened(path) as folder:
        folder.check_begin(step, steps, **{"start_anew": False, **how})


def test_a_new_folder_and_a_run_that_saved_nothing_begin(tmp_path):
    start(tmp_path / "new")
    start(begun(tmp_path / "killed"))


@pytest.mark.parametrize("loss", ["emptied", "gone", "moved"])
def test_a_run_that_lost_its_checkpoints_never_begins_anew_by_itself(tmp_path, loss):
    path = begun(tmp_path / "run", saved=5)
    if loss == "moved":
        (path / "checkpoints").rename(path / "aside")
    else:
        shutil.rmtree(path / "checkpoints")
    if loss == "emptied":
        (path / "checkpoints").mkdir()
    for _ in range(2):  # as a launcher tries again
        with pytest.raises(UserError, match=r"holds, or held, a run .*pass --start_anew"):
            start(path)
    with workdirs.opened(path) as folder:
        folder.check_begin(0, 12, start_anew=True)
        folder.record(0, small(), DATA, None)
    start(path)  # killed before its first checkpoint, it begins again by itself


def test_a_kill_just_before_the_first_checkpoint_had_its_name_loses_nothing(tmp_path):
    path = begun(tmp_path / "run", saved=5)
    (path / "checkpoints/5").rename(path / "checkpoints/5.orbax-checkpoint-tmp")
    start(path)
    shutil.rmtree(path / "checkpoints")  # as Orbax tidies up; then there is another kill
    start(path)


def test_a_later_save_that_was_cut_off_is_no_first_one(tmp_path):
    path = begun(tmp_path / "run", saved=5)
    (path / "checkpoints/5").rename(path / "checkpoints/10.orbax-checkpoint-tmp")
    with pytest.raises(UserError, match="--start_anew"):
        start(path)


@pytest.mark.parametrize("name", ["metrics.jsonl", "model.json", "damaged_checkpoints"])
def test_what_was_there_before_there_were_records_counts(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="--start_anew"):
        start(tmp_path)


def test_a_checkpoint_beyond_the_steps_is_told(tmp_path):
    with pytest.raises(UserError, match=r"is of step 20, beyond config\.steps \(12\)"):
        start(tmp_path, step=20)


def is_of(path, config, data=DATA, **how):
    with workdirs.opened(path) as folder:
        return folder.is_of(config, data, **{**STRICTLY, **how})


@pytest.mark.parametrize(
    "changes",
    [
        dict(log_every=7, writers="mine:Writer"),
        dict(profile="3:4"),
        dict(debug_nans=True),
        dict(parallel="pmap"),
        dict(loader__prefetch=3),
    ],
)
def test_what_changes_no_step_may_differ(tmp_path, changes):
    assert is_of(begun(tmp_path / "run"), small(**changes))


def test_steps_may_differ_where_the_rate_is_constant(tmp_path):
    path = begun(tmp_path / "run")
    with pytest.raises(UserError, match=r"steps was 12 and is 20.*--change_config"):
        is_of(path, small(steps=20))
    with workdirs.opened(path) as folder:
        folder.record(0, small(optim__schedule="constant"), DATA, None)
    assert is_of(path, small(steps=20, optim__schedule="constant"))
    with pytest.raises(UserError, match=r"optim\.warmup_steps was 2 and is 3"):
        is_of(path, small(steps=20, optim__schedule="constant", optim__warmup_steps=3))
    with pytest.raises(UserError, match=r"schedule was 'constant' and is 'cosine'; steps was 12 and is 20"):
        is_of(path, small(steps=20))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("examples", 3, "training: 3 examples instead of 2"),
        ("classes", ["b", "a"], "training: the classes stand in another order: number 0 was 'a' and is 'b'"),
        ("classes", ["a", "b", "c"], "training: the classes differ: 'c' is new"),
        ("fingerprint", "2", "training: .*some have another name, label or size"),
    ],
)
def test_data_that_changed_are_told(tmp_path, field, value, said):
    path = begun(tmp_path / "run")
    other = {"training": DATA["training"] | {field: value}}
    with pytest.raises(UserError, match=f"begun with other data: {said}.* pass --change_data"):
        is_of(path, small(), other)
    assert not is_of(path, small(), other, change_data=True)
    assert is_of(path, small(), DATA | {"evaluation on test": DATA["training"]})


def test_a_run_before_there_were_records_has_its_models_classes(tmp_path):
    about = {"model": {"num_classes": 2}, "image_shape": [1, 1, 1], "eval_ops": "", "class_names": ["a", "b"]}
    (tmp_path / "model.json").write_text(json.dumps(about | {"source": "trained"}))
    (tmp_path / "config.json").write_text(json.dumps(as_json(small())))
    assert is_of(tmp_path, small())
    with pytest.raises(UserError, match="number 0 was 'a' and is 'b'"):
        is_of(tmp_path, small(), {"training": DATA["training"] | {"classes": ["b", "a"]}})


def make_pipe(path):
    os.mkfifo(path)


def make_sparse(path):
    path.touch()
    os.truncate(path, 10**9)


DAMAGE = {
    "empty": lambda path: path.write_text(""),
    "cut": lambda path: path.write_text("{"),
    "list": lambda path: path.write_text("[]"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "deep_value": lambda path: path.write_text('{"steps": ' + "[" * 900 + "]" * 900 + ', "training": 3}'),
    "types": lambda path: path.write_text('{"training": {"classes": 3}, "optim": 3, "task": [1]}'),
    "step": lambda path: path.write_text('{"step": "/", "steps": -1}'),
    "pipe": make_pipe,
    "folder": lambda path: path.mkdir(),
    "sparse": make_sparse,
}


@pytest.mark.parametrize("name", ["config.json", "data.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_is_one_sentence_and_replaced_by_the_switch(tmp_path, name, damage):
    path = begun(tmp_path / "run")
    (path / name).unlink()
    DAMAGE[damage](path / name)
    switch = "--change_config" if name == "config.json" else "--change_data"
    with pytest.raises(UserError, match=switch) as caught:
        is_of(path, small())
    assert len(str(caught.value)) < 3000
    assert not is_of(path, small(), **FREELY)
    if damage != "folder":
        with workdirs.opened(path) as folder:
            folder.record(5, small(), DATA, None)
        assert is_of(path, small())


@pytest.mark.parametrize("name", ["config.json", "data.json"])
def test_a_flipped_bit_in_a_record_is_told_or_changes_nothing(tmp_path, name):
    path = begun(tmp_path / "run")
    whole, content = (path / name).read_bytes(), checksums.read_json(path / name)
    assert list(json.loads(whole))[-1] == "crc32"
    for place in range(0, len(whole), 7):
        (path / name).write_bytes(whole[:place] + bytes([whole[place] ^ 2]) + whole[place + 1 :])
        try:
            assert is_of(path, small())
        except UserError:
            continue
        found = checksums.read_json(path / name, may_lack_it=True)
        assert {**found, **content} == found


def test_a_record_may_be_changed_by_hand(tmp_path):
    path = begun(tmp_path / "run")
    fields = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(fields | {"log_every": 7}))
    with pytest.raises(UserError, match="take that field out, or pass --change_config"):
        is_of(path, small())
    del fields["crc32"]
    (path / "config.json").write_text(json.dumps(fields | {"log_every": 7}))
    assert is_of(path, small())


def test_a_flipped_bit_in_the_note_of_checkpoints_begins_nothing_anew(tmp_path):
    path = begun(tmp_path / "run", saved=2)
    (path / "checkpoints/2").rename(path / "checkpoints/6.orbax-checkpoint-tmp")
    note = (path / "saved.json").read_text()
    (path / "saved.json").write_text(note.replace('"step": 2', '"step": 6'))
    with pytest.raises(UserError, match="--start_anew"):
        start(path)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_note_of_checkpoints_is_still_one(tmp_path, damage):
    path = begun(tmp_path / "run")
    DAMAGE[damage](path / "saved.json")
    with pytest.raises(UserError, match="--start_anew"):
        start(path)


def test_a_pipe_in_the_place_of_the_lock_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / ".lock0")
    start(tmp_path)


def test_without_locks_there_are_none(tmp_path, monkeypatch):
    """As on Windows, whose Python has no fcntl."""
    found = importlib.import_module

    def without_fcntl(name):
        if name == "fcntl":
            raise ImportError(name)
        return found(name)

    monkeypatch.setattr(importlib, "import_module", without_fcntl)
    with workdirs.opened(tmp_path):
        pass


@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
def test_a_folder_that_went_during_a_run_is_told(tmp_path, how):
    path = tmp_path / "run"
    with workdirs.opened(path) as folder:
        folder.check_there()
        shutil.rmtree(path) if how == "removed" else path.rename(tmp_path / "other")
        if how == "replaced":
            path.mkdir()
        with pytest.raises(UserError, match=r"the workdir .* was removed or moved"):
            folder.check_there()
