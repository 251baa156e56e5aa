"""A task of a user's own, from outside the package: a teacher that is a running mean, two crops, and no label.

A tiny DINO (Caron et al. 2021, arXiv 2104.14294): the student sees small and large crops, the teacher large ones.
"""

import shutil
import sys

import jax
import numpy as np
import pytest

from tests.helpers import assert_same
from tests.test_train import lines, logged, small
from vit_jax_mixer import tasks
from vit_jax_mixer.config import Config
from vit_jax_mixer.run.assemble import open_run
from vit_jax_mixer.train import train_and_evaluate

TASK = """
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax_mixer import models, specs
from vit_jax_mixer.data import images
from vit_jax_mixer.tasks import Aux, Task
from vit_jax_mixer.tasks.images import Crops, image_data


def create(run, small_ops: str, momentum: float):
    large = Crops(images.parse(run.data["train_ops"], "config.data.train_ops"), 2)
    small = Crops(images.parse(small_ops, "config.task.small_ops"), 3)
    data = image_data(run, labels=False, crops={"large": large, "small": small})
    return Dino(specs.call(models.create, run.model, "config.model", num_classes=6), data, small.ops, momentum)


class Dino(Task):
    def __init__(self, model, data, small_ops, momentum):
        self.model, self.data, self.small_ops, self.momentum = model, data, small_ops, momentum
        self.train_data, self.eval_data = data.train, {"test": data.eval}

    def init(self, key):
        of_head, key = jax.random.split(key)
        params = self.model.init(key, jnp.zeros((1, *self.data.shape)))["params"]
        params["head"]["kernel"] = 0.1 * jax.random.normal(of_head, params["head"]["kernel"].shape)
        return params, {"teacher": params, "centre": jnp.zeros(6)}

    def project(self, params, ops, crops, key=None, **how):
        # u8[B, n, h, w, c] -> f32[B, n, K]
        scaled, _ = ops.on_device(crops.reshape(-1, *crops.shape[2:]), None, key)
        size = (len(scaled), *self.data.shape)
        logits = self.model.apply({"params": params}, jax.image.resize(scaled, size, "linear"), **how)
        return logits.reshape(*crops.shape[:2], -1)

    def loss(self, params, state, batch, key):
        of_teacher, *of_crops, of_dropout = jax.random.split(key, 4)
        how = dict(train=True, rngs={"dropout": of_dropout})
        large = (self.data.train_ops, batch["large"])
        teacher = self.project(state.extra["teacher"], *large, of_teacher)
        targets = jax.nn.softmax((teacher - state.extra["centre"][None, None]) / 0.1)
        student = jnp.concatenate(
            [self.project(params, *large, of_crops[0], **how),
             self.project(params, self.small_ops, batch["small"], of_crops[1], **how)], 1
        )
        entropies = -jnp.einsum("btk,bsk->bts", targets, jax.nn.log_softmax(student))
        other = 1 - jnp.eye(2, student.shape[1])  # no crop is its own target
        loss = jnp.mean(jnp.sum(entropies * other[None], (1, 2)) / other.sum())
        return loss, Aux({}, stats=teacher.mean((0, 1)), rows=batch["large"][:, 0, 0, 0, 0])

    def after_update(self, state, aux):
        assert aux.rows.shape == (8,)
        mean = lambda old, new: self.momentum * old + (1 - self.momentum) * new
        teacher = jax.tree.map(mean, state.extra["teacher"], state.params)
        return {"teacher": teacher, "centre": 0.9 * state.extra["centre"] + 0.1 * aux.stats}

    def eval_step(self, state, batch):
        images = self.data.eval_ops.on_device(batch["image"])[0]
        outputs = jax.nn.softmax(self.model.apply({"params": state.extra["teacher"]}, images))
        return {"entropy": -jnp.sum(outputs * jnp.log(outputs), -1)}

    def evaluate(self, outputs):
        return {"test/teacher_entropy": float(np.mean(np.concatenate([rows["entropy"] for rows in outputs("test")])))}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Return the function that makes a config of it, on the digits."""
    (tmp_path / "tiny_dino.py").write_text(TASK)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])

    def make(**changes):
        made = small(steps=4, eval_every=2, batch_size=8, eval_batch_size=90, checkpoint__every=2, checkpoint__best="")
        with made.unlocked():
            ops = "decode(1)|random_shift(3)|resize({0})|value_range(-1, 1)"
            made.task = dict(name="tiny_dino", small_ops=ops.format(4), momentum=0.9)
            made.data.update(train_ops=ops.format(8))
            made.update_from_flattened_dict({"model.num_blocks": 1, **changes})
        return made

    yield make
    sys.modules.pop("vit_jax_mixer.tasks.tiny_dino", None)


def test_an_example_has_crops_of_two_sizes_and_no_label(config):
    task = tasks.create(Config.of(config()))
    example = task.train_data.get(0, np.random.default_rng(0))
    assert {name: value.shape for name, value in example.items()} == {"large": (2, 8, 8, 1), "small": (3, 4, 4, 1)}
    for crops in example.values():
        assert len(np.unique(crops, axis=0)) == len(crops)  # each has draws of its own
    assert task.eval_data["test"].get(0, np.random.default_rng(0)).keys() == {"image", "label"}


@pytest.mark.slow
def test_a_teacher_learns_from_crops_without_labels_and_resumes_to_the_same_bits(config, tmp_path):
    whole = jax.device_get(train_and_evaluate(config(), tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")  # as if killed after the checkpoint of step 2
    shutil.rmtree(tmp_path / "resumed/checkpoints/4")
    resumed = train_and_evaluate(config(), tmp_path / "resumed")
    assert_same(jax.device_get(resumed), whole)
    assert logged(tmp_path / "resumed") == logged(tmp_path / "whole")
    assert 0 < lines(tmp_path / "whole")[-1]["test/teacher_entropy"] <= np.log(6)

    found, _, state = open_run(tmp_path / "whole")
    assert found.task["momentum"] == 0.9
    assert_same(jax.device_get(state.extra), whole.extra)
    assert not np.array_equal(state.extra["teacher"]["head"]["kernel"], state.params["head"]["kernel"])
