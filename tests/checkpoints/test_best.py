import json
import math

import pytest

from vit_jax_mixer.checkpoints import best
from vit_jax_mixer.errors import UserError


@pytest.mark.parametrize(
    "name",
    [
        *("test/loss", "val/loss_ema", "a/log_loss", "test/rmse", "x/mae", "y/top1_error", "test/error_rate_ema"),
        *("test/perplexity", "all[90%:]/cross_entropy", "min test/skill", "min  test/accuracy", "test/RMSE"),
    ],
)
def test_losses_errors_and_their_like_are_lowered(name):
    assert best.is_lowered(name)


@pytest.mark.parametrize(
    "name",
    ["test/accuracy", "loss/accuracy", "test/r2", "test/bleu", "test/power", "test/lossless", "max test/loss", ""],
)
def test_all_others_are_raised(name):
    assert not best.is_lowered(name)


def test_a_direction_is_no_part_of_the_metric():
    assert best.metric("min all[90%:]/my skill") == "all[90%:]/my skill"
    assert best.metric("minimum/x") == "minimum/x"
    assert best.value({"a": 2.0}, "min a") == -2.0


def test_the_best_is_the_newest_of_equals_and_has_a_finite_score():
    scores = {1: {"a": 2.0}, 2: {"a": 3.0}, 3: {"a": 3.0}, 4: {"a": math.inf}, 5: {"b": 9.0}, 6: {}}
    assert best.step(scores, "a") == 3
    assert best.step(scores, "min a") == 1
    assert best.step(scores, "c") is None
    assert best.step(scores, "") is None


def test_scores_come_back_and_a_changed_digit_is_noticed(tmp_path):
    scores = {"test/loss": 0.1, "test/accuracy": 1 / 3, "nan": math.nan}
    best.write(tmp_path, scores)
    assert str(best.read(tmp_path)) == str(scores)
    path = tmp_path / best.FILE
    path.write_text(path.read_text().replace("0.1", "0.3"))
    with pytest.raises(UserError, match=r"scores\.json is damaged"):
        best.read(tmp_path)


def test_scores_of_earlier_runs_are_read(tmp_path):
    assert best.read(tmp_path) == {}
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics/metrics").write_text(json.dumps({"test/loss": 0.5}))
    assert best.read(tmp_path) == {"test/loss": 0.5}


@pytest.mark.parametrize("text", ["[1]", '{"a": "b"}', "[" * 100_000, "{", "\0"])
def test_damaged_scores_are_one_sentence(tmp_path, text):
    (tmp_path / best.FILE).write_text(text)
    with pytest.raises(UserError, match="damaged"):
        best.read(tmp_path)


def test_only_the_names_of_checkpoints_are_steps(tmp_path):
    for name in (
        "0",
        "12",
        "007",
        "1e3",
        " 5",
        "٣",
        "1٣",
        "5\n",
        "1" * 23,
        "3.orbax-checkpoint-tmp",
        "-1",
        "+1",
        "1_0",
    ):
        (tmp_path / name / "default").mkdir(parents=True)
    (tmp_path / "13").mkdir()
    (tmp_path / "14").write_text("")
    assert best.steps(tmp_path) == [0, 12]
