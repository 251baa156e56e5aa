"""Whole runs: what they learn, and that a run is a pure function of (config, seed, step)."""

import collections
import json
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import digits
from tests.helpers import ROOT, assert_same, environment
from vit_jax_mixer import pretrained
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run.checkpoint import Checkpoints
from vit_jax_mixer.run.workdir import opened
from vit_jax_mixer.train import train_and_evaluate

# A digits run of 12 steps with all that is random switched on.
SMALL = {
    "steps": 12,
    "log_every": 1,
    "eval_every": 6,
    "eval_batch_size": 100,
    "checkpoint.every": 5,
    "model.num_blocks": 2,
    "model.dropout_rate": 0.2,
    "model.stochastic_depth_rate": 0.2,
    "task.label_smoothing": 0.1,
    "optim.warmup_steps": 2,
}


def small(**changes):
    config = digits.get_config()
    with config.unlocked():
        config.update_from_flattened_dict({**SMALL, **{k.replace("__", "."): v for k, v in changes.items()}})
    return config


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def logged(workdir):
    """Return all that a run logged, but how fast it was."""
    return [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in lines(workdir)]


def saved_part(state):
    return jax.device_get((state.step, state.params, state.opt_state, state.extra))


COMPILED = (
    collections.Counter()
)  # how often each program was compiled, or read from the cache, in the `undisturbed` run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run in one go: its last state and its workdir."""
    workdir = tmp_path_factory.mktemp("undisturbed")

    def count(event, seconds, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            COMPILED[about["fun_name"]] += 1

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        return saved_part(train_and_evaluate(small(), workdir)), workdir
    finally:
        jax.monitoring.unregister_event_duration_listener(count)


def test_each_program_of_a_run_is_compiled_once(undisturbed):
    """Also with a last batch of an evaluation that is not full."""
    names = ("train_step", "eval_step", "init", "new_state")
    assert [sum(count for name, count in COMPILED.items() if name == f"jit({of})") for of in names] == [1, 1, 1, 1]


@pytest.mark.parametrize(("steps", "least"), [(400, 0.92), pytest.param(1500, 0.97, marks=pytest.mark.slow)])
def test_the_digits_are_learnt(tmp_path, steps, least):
    config = digits.get_config()
    assert config.steps == 1500
    config.steps = steps
    train_and_evaluate(config, tmp_path)
    last = lines(tmp_path)[-1]
    assert last["step"] == steps
    assert last["test/accuracy"] >= least


def test_a_run_writes_its_metrics_config_and_checkpoints(undisturbed):
    _, workdir = undisturbed
    found = logged(workdir)
    assert [line["step"] for line in found if "train/loss" in line] == list(range(1, 13))
    assert [line["step"] for line in found if "test/accuracy" in line] == [6, 12]
    assert set(found[0]) == {
        "step",
        *(f"train/{n}" for n in ("loss", "accuracy", "grad_norm", "param_norm", "learning_rate")),
    }
    assert found[0]["train/learning_rate"] == 0
    assert all(line["perf/images_per_second"] > 0 for line in lines(workdir) if "train/loss" in line)
    assert json.loads((workdir / "config.json").read_text())["model"]["num_blocks"] == 2
    assert (workdir / "checkpoints/12").is_dir()
    assert any(path.name.startswith("events.out.tfevents") for path in workdir.iterdir())
    drawn = {path.name for path in (workdir / "pictures").iterdir()}
    assert drawn == {"first_batch_0.png", "confusion_12.png", "misclassified_12.png"}


def test_two_runs_of_one_config_agree_and_another_seed_does_not(undisturbed, tmp_path):
    state, _ = undisturbed
    assert_same(saved_part(train_and_evaluate(small(), tmp_path / "again")), state)
    other = saved_part(train_and_evaluate(small(seed=1), tmp_path / "other"))
    assert not np.array_equal(other[1]["head"]["kernel"], state[1]["head"]["kernel"])


def command_line(workdir, **changes):
    fields = {**SMALL, **{k.replace("__", "."): v for k, v in changes.items()}}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    return [sys.executable, "-m", "vit_jax_mixer.main", "--config=configs/digits.py", f"--workdir={workdir}", *flags]


# With checkpoints at 5 and 10 and an evaluation at 6: before the first step, as the first save is
# under way, in the evaluation, as the second save is under way.
@pytest.mark.parametrize(
    "after", [pytest.param(0, marks=pytest.mark.slow), 5, 6, pytest.param(10, marks=pytest.mark.slow)]
)
def test_a_killed_run_resumes_to_the_same_bits(undisturbed, tmp_path, after):
    """Kill the command once it has logged step ``after``; run it again; compare with the run in one go."""
    state, workdir = undisturbed
    log = tmp_path / "metrics.jsonl"
    with subprocess.Popen(command_line(tmp_path), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL) as process:
        begun = time.monotonic()
        while not log.exists() or log.read_text().count("train/loss") < after:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() - begun < 120
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "checkpoints/12").exists(), "the run was complete before it was killed"
    resumed = saved_part(train_and_evaluate(small(), tmp_path))
    assert_same(resumed, state)
    assert logged(tmp_path) == logged(workdir)


def test_a_run_that_is_complete_stays_as_it_is(undisturbed, tmp_path):
    state, workdir = undisturbed
    before = logged(workdir)
    assert_same(saved_part(train_and_evaluate(small(), workdir)), state)
    assert logged(workdir) == before


def test_a_changed_config_stops_a_resume_unless_told_otherwise(tmp_path):
    train_and_evaluate(small(), tmp_path)
    changed = small(steps=14, optim__learning_rate=0.1)
    with pytest.raises(UserError, match=r"optim\.learning_rate was 0.003 and is 0.1; steps was 12 and is 14"):
        train_and_evaluate(changed, tmp_path)
    state = train_and_evaluate(changed, tmp_path, change_config=True)
    assert int(state.step) == 14
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 14


def test_other_shapes_stop_a_resume_whatever_it_is_told(tmp_path):
    train_and_evaluate(small(steps=3), tmp_path)
    with pytest.raises(UserError, match=r"checkpoint 3: params/.* has shape \(128,\), the config needs \(32,\)"):
        train_and_evaluate(small(steps=4, model__channels_mlp_dim=32), tmp_path, change_config=True)
    assert (tmp_path / "checkpoints/3").is_dir()
    assert json.loads((tmp_path / "config.json").read_text())["model"]["channels_mlp_dim"] == 128


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path):
    diverging = small(optim__learning_rate=1e18, optim__optimizer="sgd", optim__clip_norm=0.0, checkpoint__every=1)
    with pytest.raises(UserError, match=r"step [2-4]: \w+ is (nan|inf).*lower config.optim.learning_rate"):
        train_and_evaluate(diverging, tmp_path)
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert steps
    assert steps[-1] == lines(tmp_path)[-1]["step"] < 4
    assert all(np.isfinite(line["train/loss"]) for line in lines(tmp_path))
    checkpoints = Checkpoints(tmp_path, every=1, keep=1, best="")
    saved = checkpoints._manager.restore(steps[-1], args=ocp.args.StandardRestore())
    checkpoints.close()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved["params"]))


def test_an_unknown_best_metric_is_told_and_loses_nothing(tmp_path):
    with pytest.raises(UserError, match=r"config\.checkpoint.best.*'test/acuracy'.*did you mean 'test/accuracy'"):
        train_and_evaluate(small(checkpoint__best="test/acuracy"), tmp_path / "late")
    assert (tmp_path / "late/checkpoints/6").is_dir()
    with pytest.raises(UserError, match=r"'validation/accuracy' is no metric of this run.*test/\.\.\."):
        train_and_evaluate(small(checkpoint__best="validation/accuracy"), tmp_path / "early")
    assert not any((tmp_path / "early/checkpoints").iterdir())


def test_two_runs_cannot_write_to_one_workdir(tmp_path):
    with opened(tmp_path), pytest.raises(UserError, match="another run writes to"):
        train_and_evaluate(small(), tmp_path)
    with opened(tmp_path):
        pass


def test_fine_tuning_begins_with_the_files_weights_and_a_new_head(undisturbed, tmp_path):
    state, _ = undisturbed
    flat = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves(state[1])}
    np.savez(tmp_path / "weights.npz", **flat)
    # With next to no learning rate, the end of the run is its beginning.
    config = small(steps=3, init_from=str(tmp_path / "weights.npz"), optim__learning_rate=1e-12)
    _, found, _, _ = saved_part(train_and_evaluate(config, tmp_path / "run"))
    expected = pretrained.load(tmp_path / "weights.npz")
    np.testing.assert_allclose(found.pop("head")["kernel"], 0, atol=1e-9)
    expected.pop("head")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), found, expected)
    assert lines(tmp_path / "run")[0]["train/loss"] == pytest.approx(np.log(10), rel=1e-5)


def leaves(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


@pytest.mark.parametrize("changes", [dict(parallel="pmap"), pytest.param(dict(accum_steps=4), marks=pytest.mark.slow)])
def test_the_other_ways_to_run_learn_too(tmp_path, changes):
    quiet = dict(model__dropout_rate=0.0, model__stochastic_depth_rate=0.0, task__label_smoothing=0.0)
    train_and_evaluate(small(steps=100, eval_every=100, log_every=10, **quiet, **changes), tmp_path)
    losses = [line["train/loss"] for line in lines(tmp_path) if "train/loss" in line]
    assert losses[-1] < losses[0]
    assert lines(tmp_path)[-1]["test/accuracy"] > 0.4


def test_evaluation_does_not_depend_on_its_batch_size(undisturbed, tmp_path):
    _, workdir = undisturbed
    train_and_evaluate(small(eval_batch_size=46), tmp_path)
    other, one = (
        [{k: v for k, v in line.items() if k.startswith("test/")} for line in logged(where) if "test/loss" in line]
        for where in (tmp_path, workdir)
    )
    assert [line["test/accuracy"] for line in other] == [line["test/accuracy"] for line in one]
    np.testing.assert_allclose([line["test/loss"] for line in other], [line["test/loss"] for line in one], rtol=1e-6)


def test_a_run_whose_checkpoints_are_all_damaged_never_begins_anew_by_itself(undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[1], workdir)
    before = (workdir / "metrics.jsonl").read_text()
    for path in (workdir / "checkpoints").glob("*/default/_METADATA"):
        path.write_text("{}")
    for _ in range(3):  # as a launcher starts it again
        with pytest.raises(UserError, match="--start_anew"):
            train_and_evaluate(small(), workdir)
    assert (workdir / "metrics.jsonl").read_text() == before
    assert_same(saved_part(train_and_evaluate(small(), workdir, start_anew=True)), undisturbed[0])


def test_other_data_stop_a_resume_unless_told_otherwise(undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[1], workdir)
    model = (workdir / "model.json").read_text()
    record = json.loads((workdir / "data.json").read_text())
    assert record["training"]["examples"] == 1437
    assert record["evaluation on test"]["examples"] == 360
    record["evaluation on test"]["examples"] = 361  # as if one had been there
    del record["crc32"]
    (workdir / "data.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"evaluation on test: 360 examples instead of 361.*--change_data"):
        train_and_evaluate(small(), workdir)
    train_and_evaluate(small(), workdir, change_data=True)  # complete, so that its records stay those of its training
    assert json.loads((workdir / "data.json").read_text()) == record
    assert (workdir / "model.json").read_text() == model
