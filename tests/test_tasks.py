"""Tasks of others, as files in the folder of tasks, and what holds for all of them."""

import dataclasses
import sys

import pytest

from tests.test_plan import target
from tests.test_train import small
from vit_jax_mixer import tasks
from vit_jax_mixer.config import Config
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.plan.compiled import Planned

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
