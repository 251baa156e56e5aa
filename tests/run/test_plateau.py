"""A learning rate that follows the evaluations, and does so again when a run goes on."""

import json
import signal
import subprocess
import time

import numpy as np
import optax
import pytest

from tests.helpers import ROOT, assert_same, environment
from tests.processes import assert_same_run, in_this_process, plain, together, up_to
from tests.test_train import command_line, lines, logged, saved_part, small
from vit_jax_mixer import specs
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run.plateau import Plateau, scaled
from vit_jax_mixer.train import train_and_evaluate


def lowered(values, metric="test/loss", **fields):
    name = metric.rpartition(" ")[2]
    scores = {10 * (i + 1): {name: value} if value is not None else {} for i, value in enumerate(values)}
    return Plateau(metric, **fields).lowered(scores)


def test_it_is_lowered_after_so_many_evaluations_without_improvement():
    assert lowered([3, 2, 1], patience=1) == []
    assert lowered([3, 3, 3, 3, 3, 2, 2, 2], patience=2) == [30, 50, 80]
    assert lowered([3, None, 3, None, 3], patience=2) == [50]
    assert lowered([3, 2.9, 2.8, 2.7], patience=2, min_delta=0.25) == [30]
    assert lowered([3, 2, 1], metric="max test/loss", patience=1) == [20, 30]
    assert Plateau("").lowered({10: {"test/loss": 1.0}}) == []
    scores = {10: {"test/loss": 1.0}, 15: {"test/loss": 2.0}, 20: {"test/loss": 0.5}}
    assert Plateau("test/loss", patience=1).lowered(scores, every=10) == []  # 15 was the end of a shorter run


def test_updates_are_multiplied_with_the_state_s_number():
    optimizer = scaled(optax.sgd(0.5))
    params = {"w": np.ones(3, np.float32)}
    state = optimizer.init(params)
    whole, state = optimizer.update(params, state, params)
    less, _ = optimizer.update(params, optax.tree.set(state, plateau_scale=np.float32(0.25)), params)
    np.testing.assert_array_equal(whole["w"], -0.5)
    np.testing.assert_array_equal(less["w"], -0.125)


def test_what_makes_no_sense_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"config.plateau: factor is 1.5; it must be from"):
        specs.call(Plateau, {"factor": 1.5}, "config.plateau")
    with pytest.raises(UserError, match=r"config.plateau.metric: 'tset/loss' is no metric of this run"):
        train_and_evaluate(small(plateau__metric="tset/loss"), tmp_path)
    with pytest.raises(UserError, match=r"config.plateau decides by all evaluations.*config.plateau.metric=''"):
        Plateau("test/loss").check({}, 20, 10)


# No evaluation but the first is better by so much: the rate falls after steps 4, 6, 8 and 10.
FIELDS = {
    "plateau__metric": "loss",
    "plateau__patience": 1,
    "plateau__min_delta": 100.0,
    "plateau__factor": 0.5,
    "optim__schedule": "constant",
    "optim__warmup_steps": 0,
    "eval_every": 2,
}


def rates(workdir):
    return [line["train/learning_rate"] for line in lines(workdir) if "train/loss" in line]


def test_the_rate_falls_and_does_so_in_a_run_that_goes_on(tmp_path):
    for steps in (5, 7):
        train_and_evaluate(small(steps=steps, **FIELDS), tmp_path)
    np.testing.assert_allclose(rates(tmp_path), 0.003 * 0.5 ** np.array([0, 0, 0, 0, 1, 1, 2]), rtol=1e-6)


@pytest.mark.slow
def test_a_run_that_is_stopped_or_killed_has_the_same_bits(tmp_path):
    expected = saved_part(train_and_evaluate(small(**FIELDS), tmp_path / "whole"))
    # Another step than the evaluations', that of an evaluation, and the end.
    for steps in (5, 8, 12):
        state = train_and_evaluate(small(steps=steps, **FIELDS), tmp_path / "parts")
    assert_same(saved_part(state), expected)

    # As if it had been killed between the evaluation after step 6 and its checkpoint.
    config = small(steps=5, **FIELDS)
    train_and_evaluate(config, tmp_path / "killed")
    log = tmp_path / "killed/metrics.jsonl"
    after = [line for line in lines(tmp_path / "whole") if line["step"] == 6]
    assert any("test/loss" in line for line in after)
    log.write_text(log.read_text() + "".join(json.dumps(line) + "\n" for line in after))
    assert_same(saved_part(train_and_evaluate(small(**FIELDS), tmp_path / "killed")), expected)
    np.testing.assert_allclose(rates(tmp_path / "killed"), 0.003 * 0.5 ** np.repeat([0, 0, 1, 2, 3, 4], 2), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_a_killed_command_has_the_same_rates(tmp_path, parallel):
    fields = {**FIELDS, "parallel": parallel}
    expected = saved_part(train_and_evaluate(small(**fields), tmp_path / "whole"))
    log = tmp_path / "parts/metrics.jsonl"
    line = command_line(tmp_path / "parts", **fields)
    with subprocess.Popen(line, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL) as process:
        begun = time.monotonic()
        while not log.exists() or log.read_text().count("test/loss") < 3:  # its checkpoint comes after it
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() - begun < 120
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert_same(saved_part(train_and_evaluate(small(**fields), tmp_path / "parts")), expected)
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_are_one_run_with_balanced_classes_too(tmp_path):
    """And one of them goes on from what both have saved."""
    fields = {name.replace("__", "."): value for name, value in FIELDS.items()}
    fields |= {"data.balance": "classes", "optim.learning_rate": 0.1, "checkpoint.every": 2}
    expected = in_this_process(tmp_path / "one", **fields)
    assert_same_run(together(tmp_path / "two", plain(2), **fields), expected)
    assert_same_run(in_this_process(up_to(4, tmp_path / "two", tmp_path / "on"), **fields), expected)
    np.testing.assert_allclose(rates(tmp_path / "on"), [0.1, 0.1, 0.1, 0.1, 0.05, 0.05], rtol=1e-6)
