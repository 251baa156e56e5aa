"""Tasks of others, as files in the folder of tasks, and what holds for all of them."""

import dataclasses
import json
import re
import sys

import jax
import pytest

from tests.helpers import ROOT, assert_same
from tests.test_plan import target
from tests.test_train import lines, small
from vit_jax_mixer import plugins, tasks
from vit_jax_mixer.config import Config
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.plan.compiled import Planned
from vit_jax_mixer.run.assemble import open_run
from vit_jax_mixer.train import train_and_evaluate
from vit_jax_mixer.trained import open_model

TAUGHT = """
import jax
import jax.numpy as jnp

from vit_jax_mixer.tasks import Task, classification


class Taught(classification.Classification):
    load = Task.load  # it begins anew

    def frozen(self):
        raise AssertionError("the teacher's weights are read")


class WithShapes(Taught):
    def frozen_shapes(self):
        return {"kernel": jax.ShapeDtypeStruct((7,), jnp.float32)}


def create(run, says_shapes=True, **fields):
    task = classification.create(run, **fields)
    task.__class__ = WithShapes if says_shapes else Taught
    return task
"""


@pytest.fixture
def taught(tmp_path, monkeypatch):
    """A run of a task that has frozen weights, and reads none to begin with."""
    (tmp_path / "taught.py").write_text(TAUGHT)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    yield Config.of(small(task__name="taught", model__num_blocks=1))
    sys.modules.pop("vit_jax_mixer.tasks.taught", None)


def test_weights_to_begin_with_that_a_task_does_not_read_are_told(taught):
    assert tasks.create(taught).frozen_shapes()
    with pytest.raises(UserError, match=r"^config.init_from is 'w.npz', which the task taught does not read; set it"):
        tasks.create(dataclasses.replace(taught, init_from="w.npz"))


def test_a_plan_reads_no_frozen_weights(taught):
    planned = Planned(taught, target("cpu"))
    state = planned.compile(taught.batch_size).memory
    assert state.other_state == 4 + 7 * 4  # the step and the teacher
    silent = dataclasses.replace(taught, task={**taught.task, "says_shapes": False})
    with pytest.raises(NotImplementedError, match="Taught has `frozen`, and must say its shapes"):
        Planned(silent, target("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["distillation", "dino"])
def test_the_examples_of_the_docs_learn(digits_run, tmp_path, monkeypatch, name):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/adding_a_task.md").read_text(), re.DOTALL)
    code = dict(zip(("distillation", "dino"), [one for one in blocks if "def create(run, " in one][-2:], strict=True))
    (tmp_path / f"documented_{name}.py").write_text(code[name])
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setattr(plugins, "_allowed", set())
    model = json.loads((digits_run / "model.json").read_text())["model"]
    config = small(steps=12, eval_every=2, batch_size=8, model__num_blocks=1, checkpoint__best="", log_every=12)
    ops = "decode(1)|random_shift(1)|resize({0})|value_range(-1, 1)"
    teacher = {field: value for field, value in model.items() if field != "num_classes"}
    fields = {
        "distillation": dict(teacher=str(digits_run), teacher_model=teacher),
        "dino": dict(small_ops=ops.format(4), prototypes=6),
    }
    with config.unlocked():
        config.data.train_ops = ops.format(8)
        config.task = dict(name=f"documented_{name}", **fields[name])
    train_and_evaluate(config, tmp_path / "run")
    found = lines(tmp_path / "run")
    trained = open_model(str(tmp_path / "run"))
    state = open_run(tmp_path / "run").state
    if name == "distillation":
        assert [line["step"] for line in found if "test/accuracy" in line] == [2, 4, 6, 8, 10, 12]
        assert 0 < found[-1]["test/accuracy"] <= 1
        assert 0 <= next(line["train/agreement"] for line in found if "train/agreement" in line) <= 1
        assert_same(jax.device_get(state.frozen), open_model(str(digits_run)).params)
        assert_same(trained.params, jax.device_get(state.params))
    else:  # its bank is due in the fifth evaluation and in the last
        assert [line["step"] for line in found if "test/knn_20" in line] == [10, 12]
        assert 0.2 < found[-1]["test/knn_20"] <= 1
        assert_same(trained.params, jax.device_get(state.extra["teacher"]["backbone"]))
        assert trained.about.lack()
