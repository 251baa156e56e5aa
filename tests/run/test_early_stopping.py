import pytest

from tests.helpers import assert_same
from tests.test_train import lines, saved_part, small
from vit_jax_mixer import specs
from vit_jax_mixer.checkpoints import best as best_lib
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run.early_stopping import EarlyStopping
from vit_jax_mixer.train import train_and_evaluate


def ends(values, metric="test/accuracy", **fields):
    """Return the first evaluation that ends the run; they come every 10 steps."""
    name, rule = best_lib.metric(metric), EarlyStopping(metric, **fields)
    scores = {10 * (i + 1): {name: value} if value is not None else {} for i, value in enumerate(values)}
    for step in scores:
        if rule.reason({s: scores[s] for s in scores if s <= step}):
            return step
    return None


def test_it_ends_at_the_last_of_so_many_evaluations_without_improvement():
    assert ends([1, 2, 2, 1, 3, 3, 3], patience=3) is None
    assert ends([1, 2, 2, 1, 2, 9], patience=3) == 50
    assert ends([5, 4, 3, 3.5, 9], metric="test/loss", patience=2) == 50  # less of a loss is better
    assert ends([5, 4, 3, 3.5, 9], metric="max test/loss", patience=2) == 30
    assert ends([1, 1.05, 1.09, 1.2], patience=2, min_delta=0.1) == 30
    assert ends([1, None, None, 0], patience=2) is None  # of evaluations that the metric is not due in
    assert ends([float("nan"), float("nan")], patience=2) == 20
    assert ends([1, 1, 1], metric="", patience=1) is None
    said = EarlyStopping("test/loss", 1).reason({5: {"test/loss": 2.0}, 9: {"test/loss": 2.5}})
    assert said == "stopped early after step 9: test/loss has not improved since step 5, when it was 2 (1 evaluations)"


def test_what_makes_no_sense_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"config.early_stopping: patience is 0; it must be from 1"):
        specs.call(EarlyStopping, {"metric": "test/loss", "patience": 0}, "config.early_stopping")
    with pytest.raises(UserError, match=r"config.early_stopping.metric: 'tset/loss' is no metric of this run"):
        train_and_evaluate(small(early_stopping__metric="tset/loss"), tmp_path)
    with pytest.raises(UserError, match=r"metrics.jsonl has none of those until step 20; restore that file"):
        EarlyStopping("test/loss").check({}, 20, 10)


@pytest.mark.slow
def test_a_run_that_goes_on_ends_at_the_same_step_and_stays_complete(tmp_path, capsys):
    # Nothing is learnt at this rate: the second and third evaluations are no improvement by so much.
    fields = dict(early_stopping__metric="loss", early_stopping__patience=2, early_stopping__min_delta=0.5)
    fields |= dict(eval_every=3, optim__schedule="constant", optim__learning_rate=1e-9)
    expected = saved_part(train_and_evaluate(small(**fields), tmp_path / "whole"))
    assert expected[0] == 9
    for steps in (5, 12, 12):  # stopped by its steps; ended early; complete
        state = train_and_evaluate(small(steps=steps, **fields), tmp_path / "parts")
    assert_same(saved_part(state), expected)
    assert [line for line in lines(tmp_path / "parts") if "test/loss" in line][-1]["step"] == 9
    said = capsys.readouterr().out
    assert said.count("stopped early after step 9: test/loss has not improved since step 3") == 3
    assert said.count("done: ") == 4
