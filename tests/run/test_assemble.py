"""The parts of a run from its config, and runs that are opened to be looked at."""

import os
import shutil

import jax
import pytest

from tests.helpers import assert_same
from tests.test_train import lines, saved_part, small
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run import parallel
from vit_jax_mixer.run.assemble import assemble, open_run
from vit_jax_mixer.run.evaluation import Evaluator
from vit_jax_mixer.run.workdir import opened
from vit_jax_mixer.train import train_and_evaluate

CHANGES = dict(parallel="jit(fsdp=2)", ema_decay=0.9, model__scan=True, checkpoint__keep=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run: its last state and its workdir."""
    workdir = tmp_path_factory.mktemp("run")
    return jax.device_get(train_and_evaluate(small(**CHANGES), workdir)), workdir


def content(folder):
    """Return all that a folder holds, and when it was changed."""
    stats = ((path, path.lstat()) for path in sorted(folder.rglob("*")))
    return [(path, stat.st_mtime_ns, stat.st_size, stat.st_mode) for path, stat in stats]


def test_an_opened_run_has_the_state_that_was_trained(run):
    state, workdir = run
    config, task, found = open_run(workdir)
    assert (config.steps, config.parallel) == (12, "jit(fsdp=2)")
    assert_same(jax.device_get(found), state)
    assert int(open_run(workdir, step=6).state.step) == 6
    devices = parallel.create("jit")
    loader = assemble(config).loader
    scores = Evaluator(config, task, devices, loader, lambda *bad: None)(12, devices.put_state(found))
    logged = lines(workdir)[-1]
    assert scores == {name: pytest.approx(logged[name], rel=1e-6) for name in scores}


def test_opening_a_run_changes_nothing_and_waits_for_nobody(run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run[1], workdir)
    (workdir / ".lock0").unlink()
    (workdir / "checkpoints/7.orbax-checkpoint-tmp").mkdir()  # as a save that is under way
    for path in (workdir, *workdir.rglob("*")):
        path.chmod(0o500 if path.is_dir() else 0o400)
    before = content(workdir)
    assert_same(saved_part(open_run(workdir).state), saved_part(run[0]))
    assert content(workdir) == before
    for path in (workdir, *(path for path in workdir.rglob("*") if path.is_dir())):
        path.chmod(0o700)
    with opened(workdir):  # while it trains
        open_run(workdir)


@pytest.mark.parametrize(
    ("damage", "step", "message"),
    [
        (lambda path: shutil.rmtree(path / "checkpoints"), None, "is no workdir with a config.json and a checkpoint"),
        (lambda path: (path / "config.json").unlink(), None, "is no workdir with a config.json and a checkpoint"),
        (lambda path: None, 11, "has no checkpoint of step 11, but of 6, 10, 12; name one"),
        (lambda path: os.truncate(next((path / "checkpoints/12").rglob("_METADATA")), 3), None, "12 in .* is damaged"),
        (lambda path: (path / "config.json").write_text("{}"), None, r"config.json"),
    ],
)
def test_what_is_no_run_is_one_sentence(run, tmp_path, damage, step, message):
    shutil.copytree(run[1], tmp_path / "run")
    damage(tmp_path / "run")
    before = content(tmp_path)
    with pytest.raises(UserError, match=message):
        open_run(tmp_path / "run", step)
    assert content(tmp_path) == before


def test_the_parts_say_what_is_wrong_with_their_config():
    from vit_jax_mixer.config import Config

    with pytest.raises(UserError, match=r"config.batch_size is 63, which is no multiple of the 2 devices"):
        assemble(Config.of(small(batch_size=63)))
    assert assemble(Config.of(small(batch_size=63)), jax.devices()[:1]).run.batch_size == 63
