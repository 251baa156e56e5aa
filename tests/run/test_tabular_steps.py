"""Three training steps of the tabular Mixer's document, as they were meant, by our own step."""

from functools import partial

import jax
import numpy as np
import optax
import pytest

from tests.helpers import DATA, assert_close
from tests.test_tabular_mixer import TINY, ours
from vit_jax_mixer.models.tabular import TabularMixer
from vit_jax_mixer.run import optim, parallel, step
from vit_jax_mixer.tasks import Aux, Task


class Rows(Task):
    """Binary cross-entropy of one logit."""

    model = TabularMixer(num_classes=1, **TINY)

    def loss(self, params, state, batch, key):
        logits = self.model.apply({"params": params}, batch["rows"], train=True)
        return optax.sigmoid_binary_cross_entropy(logits, batch["label"]).mean(), Aux({})

    def init(self, key):
        raise NotImplementedError

    def eval_step(self, state, batch):
        raise NotImplementedError

    def evaluate(self, outputs):
        raise NotImplementedError


def test_three_steps_are_those_of_the_document():
    reference = np.load(DATA / "tabular_steps_reference.npz")
    optimizer, rate = optim.create(
        optimizer="adam(b2=0.99)", learning_rate=0.01, schedule="constant", warmup_steps=0, clip_norm=0.1, steps=3
    )
    devices = parallel.create("jit")
    run = devices.train_step(partial(step.train_step, Rows(), optimizer, rate, 0, 1))
    state = devices.put_state(step.new_state(optimizer, ours(reference), ()))
    for number in range(3):
        batch = {"rows": reference[f"features/{number}"][..., 0], "label": reference[f"labels/{number}"]}
        state, metrics = run(state, devices.put_batch(batch))
        if not number:  # those of later steps belong to the code as it acts
            assert metrics["loss"] == pytest.approx(reference["losses"][0], rel=1e-5)
            assert metrics["grad_norm"] == pytest.approx(reference["gradient_norms"][0], rel=1e-5)
        found, expected = jax.device_get(state.params), ours(reference, f"clipped_once/{number}/")
        for block in ("MixerBlock_0", "MixerBlock_1"):
            # It adds one number to all channels of a token, which every later LayerNorm takes away: its
            # gradient is zero but for rounding, which Adam then makes steps of.
            for tree in (found, expected):
                tree[block]["token_mixing"]["Dense_1"].pop("bias")
        assert_close(found, expected)
