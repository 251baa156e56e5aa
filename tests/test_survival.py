"""Runs that are asked to stop, meet numbers that are not finite, keep a running mean, or are traced."""

import dataclasses
import json
import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import DATA, assert_close, assert_same, nested
from tests.run.test_step import Reference
from tests.test_train import lines, logged, saved_part, small
from vit_jax_mixer import config as config_lib
from vit_jax_mixer import pretrained, tasks
from vit_jax_mixer.checkpoints import best
from vit_jax_mixer.data.pipeline import indices_of
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run import optim, parallel, step
from vit_jax_mixer.tasks.classification import Classification
from vit_jax_mixer.tasks.images import Pictures
from vit_jax_mixer.train import train_and_evaluate


def send_at_step(workdir, number, signals):
    """Send signals to this process once the metrics have a line of that step."""

    def watch():
        path = workdir / "metrics.jsonl"
        while not path.exists() or f'"step": {number}' not in path.read_text():
            time.sleep(0.01)
        for sent in signals:
            os.kill(os.getpid(), sent)

    threading.Thread(target=watch, daemon=True).start()


@pytest.mark.parametrize("sent", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_to_the_same_end(tmp_path, capsys, sent):
    config = small(steps=60, eval_every=60, checkpoint__every=60)
    undisturbed = saved_part(train_and_evaluate(config, tmp_path / "whole"))

    before = signal.getsignal(sent)
    send_at_step(tmp_path / "stopped", 20, [sent])
    state = train_and_evaluate(config, tmp_path / "stopped")
    assert 20 <= int(state.step) < 60
    assert f"{sent.name}: stopped after step {int(state.step)} of 60" in capsys.readouterr().out
    assert signal.getsignal(sent) is before

    assert_same(saved_part(train_and_evaluate(config, tmp_path / "stopped")), undisturbed)
    assert logged(tmp_path / "stopped") == logged(tmp_path / "whole")


def test_an_evaluation_is_left_and_made_up_for(tmp_path, capsys):
    # Batches of 2 make the evaluation long; its step is saved before it is done.
    config = small(steps=12, eval_batch_size=2)
    send_at_step(tmp_path, 6, [signal.SIGTERM])
    state = train_and_evaluate(config, tmp_path)
    assert int(state.step) == 6
    assert evaluated(tmp_path) == []
    send_on_start(tmp_path)  # in the evaluation that is made up for, which is left again
    state = train_and_evaluate(config, tmp_path)
    assert int(state.step) == 6
    assert evaluated(tmp_path) == []
    send_at_step(tmp_path, 12, [signal.SIGTERM])  # in the last one
    train_and_evaluate(config, tmp_path)
    assert evaluated(tmp_path) == [6]
    assert "stopped after step 12 of 12" in capsys.readouterr().out
    train_and_evaluate(config, tmp_path)
    assert evaluated(tmp_path) == [6, 12]
    scores = best.read(tmp_path / "checkpoints/12")
    assert scores == {name: value for name, value in lines(tmp_path)[-1].items() if name in scores}
    assert "test/accuracy" in scores


def evaluated(workdir):
    return [line["step"] for line in lines(workdir) if "test/accuracy" in line]


def send_on_start(workdir):
    """Send SIGTERM to this process once the run in a workdir has begun again."""
    old = (workdir / "metrics.jsonl").stat().st_ino

    def watch():
        while (workdir / "metrics.jsonl").stat().st_ino == old:
            time.sleep(0.001)
        while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def test_skips_and_a_running_mean_can_be_switched_on_and_off_in_a_run(tmp_path):
    before = jax.device_get(train_and_evaluate(small(steps=3), tmp_path).params)
    config = small(steps=4, on_not_finite="skip(3)", ema_decay=0.9)
    state = train_and_evaluate(config, tmp_path, change_config=True)
    assert (int(state.step), int(state.skipped)) == (4, 0)
    decay = min(0.9, (1 + 3) / (10 + 3))
    # It began with the parameters of step 3, and has taken one step towards those of step 4.
    mean = jax.tree.map(lambda p, q: decay * p + (1 - decay) * q, before, jax.device_get(state.params))
    assert_close(jax.device_get(state.ema), mean, 1e-6)
    state = train_and_evaluate(small(steps=5), tmp_path, change_config=True)
    assert (state.ema, state.skipped, int(state.step)) == ((), (), 5)


class NotFiniteAt(Reference):
    """The reference, with one step whose gradient is not finite."""

    def __init__(self, bad_step):
        super().__init__()
        self.bad_step = bad_step

    def loss(self, params, state, batch, key):
        loss, aux = super().loss(params, state, batch, key)
        factor = jnp.where(state.step == self.bad_step, jnp.inf, 1.0)
        return loss * factor, aux


def take_steps(task, count, devices, start=None, **how):
    optimizer, rate = optim.create(
        optimizer="adam()", learning_rate=0.01, schedule="linear", warmup_steps=0, clip_norm=1.0, steps=9
    )
    run = devices.train_step(lambda *args: step.train_step(task, optimizer, rate, 0, 1, *args, **how))
    fresh = step.new_state(
        optimizer, *task.init(step.init_key(0)), ema="ema_decay" in how, skips=how.get("skips", False)
    )
    state = devices.put_state(start or fresh)
    reference = np.load(DATA / "mixer_tiny_reference.npz")
    batch = {"image": reference["images"], "label": reference["labels"].astype(np.int32)}
    states = []
    for _ in range(count):
        state, metrics = run(state, devices.put_batch(batch))
        states.append((jax.device_get(devices.saved_form(state)), jax.device_get(metrics)))
    return states


@pytest.mark.parametrize("name", ["jit", "pmap"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_counts(name):
    devices = parallel.create(name)
    (_, _), (before, _), (after, metrics), (later, later_metrics) = take_steps(
        NotFiniteAt(2), 4, devices, skips=True, ema_decay=0.9
    )
    assert not np.isfinite(metrics["loss"])
    unlike = dict(step=before.step, skipped=before.skipped)
    assert_same(dataclasses.replace(after, **unlike), before)
    assert (int(after.step), int(after.skipped), int(before.skipped)) == (3, 1, 0)
    # And the run goes on from there as if that batch had not been.
    assert int(later.skipped) == 1
    expected, expected_metrics = take_steps(Reference(), 3, devices, skips=True, ema_decay=0.9)[-1]
    assert_close(later.params, expected.params)
    assert later_metrics["learning_rate"] == expected_metrics["learning_rate"]


@pytest.mark.slow
def test_skips_that_are_not_needed_change_nothing():
    devices = parallel.create("jit")
    with_skips, without = (take_steps(Reference(), 3, devices, **how)[-1][0] for how in ({"skips": True}, {}))
    assert_close(with_skips.params, without.params, 1e-6)


def test_too_many_steps_that_are_not_finite_end_the_run_and_name_their_examples(tmp_path, capsys):
    config = small(on_not_finite="skip(2)", optim__learning_rate=1e18, optim__clip_norm=0.0)
    with pytest.raises(UserError, match=r"so the run stops after 2 steps that were skipped") as caught:
        train_and_evaluate(config, tmp_path)
    assert "the step is skipped, number 2 of at most 2" in capsys.readouterr().out
    files = sorted(tmp_path.glob("not_finite_step_*.json"))
    assert len(files) == 3
    assert str(files[-1]) in str(caught.value)
    found = json.loads(files[0].read_text())
    data = tasks.create(config_lib.Config.of(config)).train_data
    expected = indices_of(data, seed=config.seed, batch_size=config.batch_size, step=found["step"] - 1)
    assert [example["index"] for example in found["examples"]] == expected
    assert found["examples"][0]["where"] == data.source.where(expected[0])


@pytest.mark.parametrize("wrong", ["skip", "skip(-1)", "skip('many')", "leave"])
def test_what_to_do_with_them_is_checked_first(tmp_path, wrong):
    with pytest.raises(UserError, match=r"config\.on_not_finite"):
        train_and_evaluate(small(on_not_finite=wrong), tmp_path)


def test_the_running_mean_is_that_of_its_formula():
    states = take_steps(Reference(), 5, parallel.create("jit"), ema_decay=0.5)
    mean = nested(np.load(DATA / "mixer_tiny_params.npz"))
    for number, (state, _) in enumerate(states):
        decay = min(0.5, (1 + number) / (10 + number))
        mean = jax.tree.map(lambda m, p, d=decay: d * m + (1 - d) * p, mean, state.params)
        assert_close(state.ema, mean)


@pytest.mark.slow
def test_the_running_mean_is_evaluated_saved_resumed_and_what_the_workdir_gives(tmp_path):
    config = small(ema_decay=0.9, checkpoint__best="test/accuracy_ema")
    whole = train_and_evaluate(config, tmp_path / "whole")
    last = lines(tmp_path / "whole")[-1]
    assert last.keys() >= {"test/accuracy", "test/accuracy_ema", "test/loss_ema"}
    assert last["test/loss"] != last["test/loss_ema"]

    first = small(ema_decay=0.9, checkpoint__best="test/accuracy_ema", steps=12)
    send_at_step(tmp_path / "parts", 4, [signal.SIGTERM])
    train_and_evaluate(first, tmp_path / "parts")
    again = train_and_evaluate(config, tmp_path / "parts")
    assert_same(jax.device_get(again.ema), jax.device_get(whole.ema))
    newest = tmp_path / "whole/checkpoints/12"
    assert_same(pretrained.load(newest), jax.device_get(whole.ema))


def test_a_mean_needs_a_decay_below_one(tmp_path):
    with pytest.raises(UserError, match=r"config: ema_decay is 1\.0"):
        train_and_evaluate(small(ema_decay=1.0), tmp_path)


def test_steps_are_traced(tmp_path, capsys):
    train_and_evaluate(small(profile="3:4"), tmp_path)
    assert "traced steps 3 to 4" in capsys.readouterr().out
    assert list((tmp_path / "profile").rglob("perfetto_trace.json.gz"))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    train_and_evaluate(small(profile="3:4"), tmp_path)  # complete, so that nothing is left to trace
    assert "config.profile: no step from 3 to 4 is left" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["3", "4:3", "0:2", "a:b"])
def test_the_steps_to_trace_are_checked_first(tmp_path, wrong):
    with pytest.raises(UserError, match=r"config\.profile"):
        train_and_evaluate(small(profile=wrong), tmp_path)


def test_each_line_tells_how_fast_it_goes(tmp_path):
    train_and_evaluate(small(), tmp_path)
    speed = [line for line in lines(tmp_path) if "perf/step_seconds" in line]
    assert len(speed) == 12
    for line in speed:
        assert line["perf/images_per_second"] * line["perf/step_seconds"] == pytest.approx(64)
        assert 0 <= line["perf/data_wait"] <= 1


@pytest.mark.slow
def test_the_first_nan_is_found_where_it_is_made(tmp_path):
    with pytest.raises(FloatingPointError, match="nan"):
        train_and_evaluate(small(debug_nans=True, optim__optimizer="adam(eps_root=-1.0)"), tmp_path)


def test_any_error_in_an_example_loses_nothing_that_was_trained(tmp_path, monkeypatch):
    found = Pictures.__call__
    seen = []

    def fails(self, example, rng):
        seen.append(example)
        if len(seen) > 64 * 8:  # a step or more after the first
            raise ZeroDivisionError("a bug in an operation")
        return found(self, example, rng)

    config = small(loader__threads=0, loader__prefetch=0, checkpoint__every=100, eval_every=100)
    whole = saved_part(train_and_evaluate(config, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(Pictures, "__call__", fails)
        with pytest.raises(ZeroDivisionError, match="a bug in an operation"):
            train_and_evaluate(config, tmp_path / "run")
    steps = [int(path.name) for path in (tmp_path / "run/checkpoints").iterdir() if path.name.isdecimal()]
    assert [step for step in steps if 1 <= step < 12]
    assert_same(saved_part(train_and_evaluate(config, tmp_path / "run")), whole)


def test_an_error_in_an_evaluation_loses_nothing_that_was_trained(tmp_path, monkeypatch):
    def fails(self, outputs):
        raise ZeroDivisionError("a bug in a metric")

    with monkeypatch.context() as patch:
        patch.setattr(Classification, "evaluate", fails)
        with pytest.raises(ZeroDivisionError, match="a bug in a metric"):
            train_and_evaluate(small(), tmp_path)
    assert (tmp_path / "checkpoints/6").is_dir()
    assert int(train_and_evaluate(small(), tmp_path).step) == 12
    assert evaluated(tmp_path) == [6, 12]


def test_a_workdir_that_is_removed_ends_the_run_in_one_sentence(tmp_path):
    workdir = tmp_path / "run"

    def watch():
        path = workdir / "metrics.jsonl"
        while not path.exists() or '"step": 3,' not in path.read_text():
            time.sleep(0.001)
        workdir.rename(tmp_path / "moved")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    with pytest.raises(UserError, match=r"the workdir .*run was removed or moved while this run wrote to it"):
        train_and_evaluate(small(steps=100_000, eval_every=100_000, checkpoint__every=50), workdir)
    thread.join()
