import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers import assert_same
from vit_jax_mixer.checkpoints import best
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run import parallel, step
from vit_jax_mixer.run.checkpoint import Checkpoints

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, 0.9, accumulator_dtype=jnp.bfloat16))


def state(value=1.0, width=3):
    params = {"Dense_0": {"kernel": jnp.full((2, width), value), "bias": jnp.arange(width) * value}}
    new = step.new_state(OPTIMIZER, params, {"centre": jnp.full(4, value)})
    return dataclasses.replace(new, step=jnp.int32(value), frozen={"teacher": jnp.zeros(1)})


def abstract(value):
    return jax.eval_shape(lambda: value)


def open_checkpoints(workdir, keep=1, best="test/accuracy"):
    return Checkpoints(workdir, every=1, keep=keep, best=best)


def save(checkpoints, number, scores=None):
    checkpoints.save(number, state(float(number)), scores or {})


def kept(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@pytest.mark.parametrize("name", ["jit", "pmap"])
def test_a_state_comes_back_to_the_bit(tmp_path, name):
    devices = parallel.create(name)
    expected = state(5.0)
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(5, devices.saved_form(devices.put_state(expected)), {})
    checkpoints.close()

    again = open_checkpoints(tmp_path)
    assert again.latest() == 5
    found = again.restore(5, abstract(state()), devices.saved_sharding)
    assert_same(jax.device_get(dataclasses.replace(found, frozen=())), dataclasses.replace(expected, frozen=()))
    again.close()


def test_what_is_frozen_is_not_saved(tmp_path):
    checkpoints = open_checkpoints(tmp_path)
    save(checkpoints, 1)
    checkpoints.close()
    checkpoints = open_checkpoints(tmp_path)
    found = checkpoints.restore(1, dataclasses.replace(abstract(state()), frozen="as it was"), devices_sharding())
    assert found.frozen == "as it was"
    checkpoints.close()


def devices_sharding():
    return parallel.create("jit").saved_sharding


def test_the_newest_and_the_best_stay(tmp_path):
    checkpoints = open_checkpoints(tmp_path, keep=2)
    scores = {1: 0.2, 2: 0.9, 3: None, 4: 0.5, 5: None, 6: None}
    for number, score in scores.items():
        save(checkpoints, number, {} if score is None else {"test/accuracy": score})
    checkpoints.close()
    assert kept(tmp_path) == [2, 5, 6]
    again = open_checkpoints(tmp_path, keep=2)  # a resumed run remembers the scores
    save(again, 7, {"test/accuracy": 0.6})
    save(again, 8, {"test/accuracy": float("nan")})
    save(again, 9)
    again.close()
    assert kept(tmp_path) == [2, 8, 9]
    last = open_checkpoints(tmp_path, keep=2)
    save(last, 10, {"test/accuracy": 0.95})
    save(last, 11)
    save(last, 12)
    last.close()
    assert kept(tmp_path) == [10, 11, 12]


def test_a_score_that_comes_later_counts(tmp_path):
    checkpoints = open_checkpoints(tmp_path)
    save(checkpoints, 1, {"test/accuracy": 0.5})
    save(checkpoints, 2)  # its evaluation was cut off
    checkpoints.close()
    assert kept(tmp_path) == [1, 2]
    again = open_checkpoints(tmp_path)
    again.score(2, {"test/accuracy": 0.9})
    again.close()
    once_more = open_checkpoints(tmp_path)
    for number in (3, 4):
        save(once_more, number, {"test/accuracy": 0.7})
    once_more.close()
    assert kept(tmp_path) == [2, 4]


def test_scores_without_the_one_that_counts_are_told_when_they_are_written(tmp_path):
    checkpoints = open_checkpoints(tmp_path)
    save(checkpoints, 1)
    checkpoints.close()
    checkpoints = open_checkpoints(tmp_path)
    with pytest.raises(UserError, match=r"config\.checkpoint\.best: 'test/accuracy' is no metric"):
        checkpoints.score(1, {"test/acuracy": 0.5})
    checkpoints.close()
    assert best.read(tmp_path / "checkpoints/1") == {"test/acuracy": 0.5}


@pytest.mark.parametrize("name", ["test/rmse", "min test/accuracy"])
def test_of_a_loss_and_its_like_the_lowest_is_the_best(tmp_path, name):
    checkpoints = open_checkpoints(tmp_path, best=name)
    for number, loss in ((1, 0.5), (2, 0.1), (3, 0.9)):
        save(checkpoints, number, {best.metric(name): loss})
    checkpoints.close()
    assert kept(tmp_path) == [2, 3]


def test_without_a_best_the_newest_alone_stay(tmp_path):
    checkpoints = open_checkpoints(tmp_path, best="")
    for number in (1, 2, 3):
        save(checkpoints, number, {"test/accuracy": 1 / number})
    checkpoints.close()
    assert kept(tmp_path) == [3]


def test_a_checkpoint_of_other_shapes_names_the_parameter_and_both_shapes(tmp_path):
    checkpoints = open_checkpoints(tmp_path)
    save(checkpoints, 1)
    checkpoints.close()
    checkpoints = open_checkpoints(tmp_path)
    with pytest.raises(UserError, match=r"checkpoint 1: params/Dense_0/bias has shape \(3,\), the config needs \(4,\)"):
        checkpoints.restore(1, abstract(state(width=4)), devices_sharding())
    other = dataclasses.replace(abstract(state()), extra={})
    with pytest.raises(UserError, match=r"extra/centre has shape .*needs no such array"):
        checkpoints.restore(1, other, devices_sharding())
    checkpoints.close()


def test_a_save_does_not_see_what_comes_after_it(tmp_path):
    """The next step is given the saved state's memory; the file must hold the old values."""
    double = jax.jit(lambda s: jax.tree.map(lambda x: x * 2, s), donate_argnums=0)
    large = dataclasses.replace(state(), extra={"x": jnp.ones((1000, 1000))}, frozen=())
    checkpoints = open_checkpoints(tmp_path)
    current = jax.tree.map(jnp.copy, large)
    checkpoints.save(1, current, {})
    for _ in range(5):
        current = double(current)
    jax.block_until_ready(current)
    checkpoints.close()
    found = open_checkpoints(tmp_path).restore(1, abstract(large), devices_sharding())
    np.testing.assert_array_equal(found.extra["x"], 1)


@pytest.mark.parametrize("fields", [dict(every=0, keep=1), dict(every=1, keep=0)])
def test_senseless_numbers_are_one_sentence(tmp_path, fields):
    with pytest.raises(UserError, match="both must be 1 or more"):
        Checkpoints(tmp_path, best="", **fields)
