"""Norms of each layer's gradient: against those of one device and a plain tree, and the word that they vanish."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.test_train import small
from vit_jax_mixer.models import stacked
from vit_jax_mixer.run import gradient_norms, parallel, step
from vit_jax_mixer.run.gradient_norms import Vanishing
from vit_jax_mixer.tasks import Aux, Task
from vit_jax_mixer.train import train_and_evaluate

LAYERS = ("stem", "Block_0", "Block_1", "Block_2", "head")


class Chain(Task):
    """Layers one after another, those in the middle stacked or not."""

    def loss(self, params, state, batch, key):
        blocks = stacked.unstack(params)
        x = batch["x"]
        for name in LAYERS:
            x = jnp.tanh(x @ blocks[name]["kernel"] + blocks[name]["bias"][None])
        return jnp.mean((x - 1) ** 2), Aux({})

    def init(self, key):
        raise NotImplementedError

    def eval_step(self, state, batch):
        raise NotImplementedError

    def evaluate(self, outputs):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("how", "accum_steps", "scan"),
    [("jit", 1, True), ("jit(fsdp=2)", 2, True), ("jit(fsdp=2)", 1, False), ("pmap", 2, True)],
)
def test_they_are_those_of_the_whole_batch_however_it_is_split(how, accum_steps, scan, monkeypatch):
    monkeypatch.setattr(parallel, "SMALLEST_SHARDED", 1)
    rng = np.random.default_rng(0)
    params = {name: {"kernel": rng.normal(size=(4, 4)), "bias": rng.normal(size=4)} for name in LAYERS}
    params = jax.tree.map(jnp.float32, params)
    batch = {"x": rng.normal(size=(8, 4)).astype(np.float32)}
    grads = jax.grad(lambda params: Chain().loss(params, None, batch, None)[0])(params)
    if scan:
        blocks = [params.pop(name) for name in LAYERS[1:4]]
        params["Block"] = {stacked.MARK: jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}

    devices, sgd = parallel.create(how), optax.sgd(0.1)
    one = partial(step.train_step, Chain(), sgd, lambda step: 0.1, 0, accum_steps, by_layer=True)
    state = devices.put_state(step.new_state(sgd, params, ()))
    metrics = jax.device_get(devices.train_step(one)(state, devices.put_batch(batch))[1])
    found = {name: value for name, value in metrics.items() if name.startswith(gradient_norms.PREFIX)}
    assert {*found} == {f"grad_norm/{name}" for name in LAYERS}
    for name in LAYERS:
        np.testing.assert_allclose(found[f"grad_norm/{name}"], optax.tree.norm(grads[name]), rtol=1e-5)
    np.testing.assert_allclose(sum(value**2 for value in found.values()), metrics["grad_norm"] ** 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("stem/kernel", "stem"),
        ("MixerBlock_12/token_mixing/Dense_0/kernel", "MixerBlock_12"),
        ("backbone/MixerBlock_0/LayerNorm_0/scale", "backbone/MixerBlock_0"),
        ("inception/branch1/kernel", "inception/branch1"),
        ("scale", "scale"),
    ],
)
def test_a_layer_is_a_block_or_what_holds_the_parameter(name, layer):
    assert gradient_norms.layer_of(name) == layer


def test_a_gradient_that_vanishes_is_told_once_after_some_lines_in_a_row():
    small, fine = ({"grad_norm/stem": value, "grad_norm/head": 2.0} for value in (1e-6, 1e-5))
    told = Vanishing(20)
    lines = [(20, small), (30, small), (40, small), (50, fine), (60, small), (70, small), (80, small), (90, small)]
    said = {number: told(number, metrics) for number, metrics in lines}
    assert [number for number, line in said.items() if line] == [80]
    assert "its norm is 1e-06 in stem, and 2 in head" in said[80]
    assert not Vanishing(0)(1, {"loss": 0.0})


@pytest.mark.slow
def test_a_run_logs_them_and_trains_as_without(tmp_path):
    fields = dict(steps=3, log_every=1, model__scan=True)
    plain = train_and_evaluate(small(**fields), tmp_path / "plain")
    found = train_and_evaluate(small(**fields, log_gradient_norms=True), tmp_path / "with")
    for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(found.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    line = json.loads((tmp_path / "with" / "metrics.jsonl").read_text().splitlines()[0])
    norms = {name: value for name, value in line.items() if name.startswith("train/grad_norm/")}
    assert {"train/grad_norm/stem", "train/grad_norm/MixerBlock_0", "train/grad_norm/head"} <= norms.keys()
    np.testing.assert_allclose(sum(value**2 for value in norms.values()), line["train/grad_norm"] ** 2, rtol=1e-4)
