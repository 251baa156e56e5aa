"""The training step against the original's, on one and two devices, under jit and pmap."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers import DATA, assert_close, nested
from vit_jax_mixer.data.pipeline import IS_EXAMPLE
from vit_jax_mixer.models.mixer import MlpMixer
from vit_jax_mixer.run import optim, parallel, step
from vit_jax_mixer.tasks import Aux, Task

MODEL = dict(num_blocks=2, patch_size=8, hidden_dim=24, tokens_mlp_dim=10, channels_mlp_dim=36)
SGD = "sgd(momentum=0.9, accumulator_dtype='bfloat16')"


class Reference(Task):
    """The tiny Mixer of the reference files, with a running mean of its logits as extra state."""

    def __init__(self, **rates):
        self.model = MlpMixer(num_classes=7, **MODEL, **rates)

    def init(self, key):
        return nested(np.load(DATA / "mixer_tiny_params.npz")), {
            "centre": jnp.zeros(7),
            "ema": jnp.zeros(7),
            "count": jnp.int32(0),
            "still": jax.random.normal(key, (1000,)),
        }

    def loss(self, params, state, batch, key):
        logits = self.model.apply({"params": params}, batch["image"], train=True, rngs={"dropout": key})
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        return loss, Aux({"accuracy": jnp.mean(logits.argmax(-1) == batch["label"])}, stats=logits.mean(0))

    def after_update(self, state, aux):
        return {
            "centre": 0.9 * state.extra["centre"] + 0.1 * aux.stats,
            "ema": 0.5 * state.extra["ema"] + 0.5 * state.params["head"]["bias"],
            "count": state.extra["count"] + 1,
            "still": state.extra["still"],
        }

    def eval_step(self, state, batch):
        return {"logits": self.model.apply({"params": state.params}, batch["image"])}

    def evaluate(self, outputs):
        raise NotImplementedError


@pytest.fixture(scope="module")
def reference():
    return np.load(DATA / "mixer_tiny_reference.npz")


def train(reference, steps=4, accum_steps=2, devices=None, task=None):
    """Train on the reference's batch; return the last state as saved, and the metrics by step."""
    task, devices = task or Reference(), devices or parallel.create("jit")
    optimizer, rate = optim.create(
        optimizer=SGD, learning_rate=0.03, schedule="cosine", warmup_steps=2, clip_norm=1.0, steps=4
    )
    run = devices.train_step(partial(step.train_step, task, optimizer, rate, 0, accum_steps))
    state = devices.put_state(step.new_state(optimizer, *task.init(step.init_key(0))))
    batch = {"image": reference["images"], "label": reference["labels"].astype(np.int32)}
    metrics = []
    for _ in range(steps):
        state, values = run(state, devices.put_batch(batch))
        metrics.append(jax.device_get(values))
    return devices.saved_form(state), metrics


@pytest.mark.parametrize("name", ["jit", "pmap"])
def test_four_updates_are_those_of_the_original(reference, name):
    assert jax.device_count() == 2
    state, metrics = train(reference, devices=parallel.create(name))
    assert_close(jax.device_get(state.params), nested(reference, "after/"))
    np.testing.assert_allclose([m["loss"] for m in metrics], reference["losses"], rtol=1e-5)
    assert metrics[0]["learning_rate"] == 0
    assert int(state.step) == 4


def test_jit_and_pmap_agree_in_state_and_metrics(reference):
    (jit, first), (pmap, second) = (train(reference, devices=parallel.create(name)) for name in ("jit", "pmap"))
    assert_close(jax.device_get(jit.params), pmap.params)
    assert_close(jax.device_get(jit.extra), pmap.extra)
    assert_close(first[3], second[3])


def test_accumulation_changes_nothing_but_rounding(reference):
    (whole, first), (parts, second) = (train(reference, accum_steps=n) for n in (1, 4))
    assert_close(jax.device_get(parts.params), jax.device_get(whole.params))
    assert_close(jax.device_get(parts.extra), jax.device_get(whole.extra))
    assert_close(second[3], first[3])


@pytest.mark.parametrize("name", ["jit", "pmap"])
def test_extra_state_that_the_task_leaves_alone_stays_to_the_bit(reference, name):
    state, _ = train(reference, accum_steps=4, devices=parallel.create(name))
    np.testing.assert_array_equal(state.extra["still"], Reference().init(step.init_key(0))[1]["still"])
    assert state.extra["count"].dtype == jnp.int32
    assert int(state.extra["count"]) == 4


def test_a_state_whose_parts_share_memory_can_be_trained(reference):
    class Sharing(Reference):
        def init(self, key):
            params, extra = super().init(key)
            params = jax.tree.map(jnp.asarray, params)
            return params, {**extra, "still": params}

    state, _ = train(reference, task=Sharing())
    assert_close(jax.device_get(state.params), nested(reference, "after/"))
    assert_close(jax.device_get(state.extra["still"]), nested(np.load(DATA / "mixer_tiny_params.npz")))


def test_extra_state_follows_the_batch_and_the_new_parameters(reference):
    state, metrics = train(reference, steps=1)
    assert_close(jax.device_get(state.extra["centre"]), 0.1 * reference["logits"].mean(0))
    assert_close(jax.device_get(state.extra["ema"]), 0.5 * jax.device_get(state.params["head"]["bias"]))
    assert 0 <= metrics[0]["accuracy"] <= 1
    norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(nested(reference, "grad/"))))
    np.testing.assert_allclose(metrics[0]["grad_norm"], norm, rtol=1e-5)


def test_the_randomness_of_a_step_is_its_own(reference):
    task = Reference(dropout_rate=0.3, stochastic_depth_rate=0.3)
    (_, first), (_, again) = (train(reference, task=task, accum_steps=1) for _ in range(2))
    assert [m["loss"] for m in first] == [m["loss"] for m in again]
    # The first update has rate 0, so steps 1 and 2 differ in their randomness alone.
    assert abs(first[0]["loss"] - first[1]["loss"]) > 1e-3


class Queue(Task):
    """A line through a point, with the examples of the last batch as extra state."""

    def __init__(self, width=1):
        self.width = width

    def init(self, key):
        return {"rate": jnp.zeros((1, 1))}, {"queue": jnp.zeros((16, 3), jnp.int32), "centre": jnp.zeros(3)}

    def loss(self, params, state, batch, key):
        x = batch["x"]
        rows = {"queue": jnp.repeat(x, self.width, 0)}
        return jnp.mean((params["rate"] - x) ** 2), Aux({}, stats=x.mean(0, dtype=jnp.float32), rows=rows)

    def after_update(self, state, aux):
        return {"queue": aux.rows["queue"], "centre": aux.stats}

    def eval_step(self, state, batch):
        raise NotImplementedError

    def evaluate(self, outputs):
        raise NotImplementedError


def queue_after(task, how, accum_steps):
    devices = parallel.create(how)
    run = devices.train_step(partial(step.train_step, task, optax.sgd(0.1), lambda step: 0.1, 0, accum_steps))
    batch = devices.put_batch({"x": np.arange(48, dtype=np.int32).reshape(16, 3)})
    state, _ = run(devices.put_state(step.new_state(optax.sgd(0.1), *task.init(step.init_key(0)))), batch)
    return jax.device_get(devices.saved_form(state).extra)


@pytest.mark.parametrize("accum_steps", [1, 4])
@pytest.mark.parametrize("how", ["jit", "pmap", "jit(fsdp=2)"])
def test_rows_come_whole_and_in_the_order_of_the_batch(how, accum_steps):
    extra = queue_after(Queue(), how, accum_steps)
    np.testing.assert_array_equal(extra["queue"], np.arange(48).reshape(16, 3))
    np.testing.assert_allclose(extra["centre"], np.arange(48).reshape(16, 3).mean(0))


def test_rows_that_are_not_one_an_example_are_a_defect():
    with pytest.raises(ValueError, match=r"Aux.rows\['queue'\] has shape \(8, 3\), which is not one row for each of 4"):
        queue_after(Queue(width=2), "jit", 4)


class Tokens(Task):
    """Sentences of 1 to 4 numbers; the loss is the mean over all numbers of a batch, so sentences weigh unequally.

    Numbers are read through a linear model; stats is their mean, too.
    """

    def init(self, key):
        return {"slope": jnp.linspace(-1, 1, 3)}, {"mean": jnp.zeros(())}

    def loss(self, params, state, batch, key):
        there = jnp.arange(4)[None] < batch["length"][:, None]
        errors = (batch["x"] @ params["slope"] - batch["y"]) ** 2
        mean = lambda x: jnp.sum(jnp.where(there, x, 0)) / there.sum()  # 0 / 0 of a part with no number at all
        loss = mean(errors)
        return loss, Aux({"error": mean(jnp.sqrt(errors))}, stats=mean(batch["y"]), weight=there.sum())

    def after_update(self, state, aux):
        return {"mean": aux.stats}

    def eval_step(self, state, batch):
        raise NotImplementedError

    def evaluate(self, outputs):
        raise NotImplementedError


def sentences(lengths):
    draw = np.random.default_rng(0)
    x, y = (draw.normal(size=shape).astype(np.float32) for shape in ((len(lengths), 4, 3), (len(lengths), 4)))
    return {"x": x, "y": y + x[..., 0], "length": np.asarray(lengths, np.int32)}


# Each device and part has another number of tokens: the first four rows are of the first device.
UNEQUAL = [1, 4, 1, 1, 4, 4, 3, 4]


def step_on(task, how, accum_steps, batch):
    """Return the state's saved form, and the metrics, after a step."""
    devices = parallel.create(how)
    run = devices.train_step(partial(step.train_step, task, optax.sgd(0.1), lambda step: 0.1, 0, accum_steps))
    state = devices.put_state(step.new_state(optax.sgd(0.1), *task.init(step.init_key(0))))
    state, metrics = run(state, devices.put_batch(batch))
    return jax.device_get((devices.saved_form(state), metrics))


@pytest.mark.parametrize("lengths", [UNEQUAL, [0, 0, 0, 0, 4, 1, 2, 3]])
@pytest.mark.parametrize("accum_steps", [1, 2, 4])
@pytest.mark.parametrize("how", ["jit", "pmap", "jit(fsdp=2)"])
def test_parts_of_unequal_weight_have_the_mean_of_the_whole_batch(how, accum_steps, lengths):
    batch, task = sentences(lengths), Tokens()
    params, extra = task.init(step.init_key(0))
    state = step.new_state(optax.sgd(0.1), params, extra)
    loss = lambda params: task.loss(params, state, batch, jax.random.key(0))
    (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(params)
    after, metrics = step_on(task, how, accum_steps, batch)
    close = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
    close(metrics["loss"], value)
    close(metrics["error"], aux.metrics["error"])
    close(metrics["grad_norm"], optax.tree.norm(grads))
    close(after.extra["mean"], aux.stats)
    close(after.params["slope"], params["slope"] - 0.1 * grads["slope"])


def test_a_batch_with_nothing_to_take_the_mean_of_is_not_finite():
    _, metrics = step_on(Tokens(), "jit", 2, sentences([0] * 8))
    assert np.isnan(metrics["loss"])


def test_a_weight_that_is_no_single_number_is_a_defect():
    class ByRow(Tokens):
        def loss(self, params, state, batch, key):
            loss, aux = super().loss(params, state, batch, key)
            return loss, aux.replace(weight=batch["length"])

    with pytest.raises(ValueError, match=r"Aux.weight has shape \(8,\); it is one number"):
        step_on(ByRow(), "jit", 1, sentences(UNEQUAL))


@pytest.mark.parametrize("name", ["jit", "pmap"])
def test_evaluation_returns_each_row_once_on_all_devices(reference, name):
    task, devices = Reference(), parallel.create(name)
    optimizer = optax.identity()
    state = devices.put_state(step.new_state(optimizer, *task.init(step.init_key(0))))
    mask = np.arange(8) < 6
    batch = devices.put_batch({"image": reference["images"], IS_EXAMPLE: mask})
    rows = parallel.rows_of(devices.eval_step(partial(step.eval_step, task))(state, batch))
    assert_close(rows["logits"], reference["logits"][:6])
