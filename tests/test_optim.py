import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax_mixer import optim
from vit_jax_mixer.errors import UserError

FIELDS = dict(optimizer="sgd", learning_rate=0.5, schedule="constant", warmup_steps=0, clip_norm=0.0, steps=10)
PARAMS = {"Dense_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "LayerNorm_0": {"scale": jnp.ones(2)}}


def rates(**fields):
    _, rate = optim.create(**{**FIELDS, **fields})
    return np.array([rate(step) for step in range(fields.get("steps", 10) + 1)])


def updates(grads, **fields):
    optimizer, _ = optim.create(**{**FIELDS, **fields})
    return optimizer.update(grads, optimizer.init(PARAMS), PARAMS)[0]


def test_schedules_follow_their_formulas_after_the_warm_up():
    steps = np.arange(11)
    np.testing.assert_allclose(rates(), 0.5)
    np.testing.assert_allclose(rates(schedule="linear"), 0.5 * (1 - steps / 10), rtol=1e-6)
    np.testing.assert_allclose(rates(schedule="cosine"), 0.25 * (1 + np.cos(np.pi * steps / 10)), atol=1e-7)
    warm = rates(schedule="cosine", warmup_steps=4)
    np.testing.assert_allclose(warm[:5], [0, 0.125, 0.25, 0.375, 0.5])
    np.testing.assert_allclose(warm[4:], 0.25 * (1 + np.cos(np.pi * np.arange(7) / 6)), atol=1e-7)


def test_the_global_norm_is_clipped():
    grads = {
        "Dense_0": {"kernel": 3 * jnp.ones((2, 2)), "bias": 4 * jnp.ones(2)},
        "LayerNorm_0": {"scale": jnp.zeros(2)},
    }
    norm = np.sqrt(4 * 9 + 2 * 16)
    np.testing.assert_allclose(updates(grads, clip_norm=1.0)["Dense_0"]["bias"], -0.5 * 4 / norm, rtol=1e-6)
    np.testing.assert_allclose(updates(grads)["Dense_0"]["bias"], -2.0)


def test_decay_is_decoupled_and_spares_biases_and_scales():
    zero = {"Dense_0": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}, "LayerNorm_0": {"scale": jnp.zeros(2)}}
    found = updates(zero, optimizer="adamw(weight_decay=0.1)")
    np.testing.assert_allclose(found["Dense_0"]["kernel"], -0.5 * 0.1, rtol=1e-6)
    assert not found["Dense_0"]["bias"].any()
    assert not found["LayerNorm_0"]["scale"].any()
    everything = updates(zero, optimizer="adamw(weight_decay=0.1, no_decay='')")
    np.testing.assert_allclose(everything["LayerNorm_0"]["scale"], -0.05, rtol=1e-6)


def test_adam_takes_a_first_step_of_the_rate_in_the_gradients_direction():
    grads = {"Dense_0": {"kernel": 2 * jnp.ones((2, 2)), "bias": -jnp.ones(2)}, "LayerNorm_0": {"scale": jnp.ones(2)}}
    found = updates(grads, optimizer="adam(b1=0.8)")
    np.testing.assert_allclose(found["Dense_0"]["kernel"], -0.5, rtol=1e-5)
    np.testing.assert_allclose(found["Dense_0"]["bias"], 0.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": "adamw"}, "adamw lacks the field 'weight_decay'"),
        ({"optimizer": "sgd(momentun=0.9)"}, "has no field 'momentun'; did you mean 'momentum'"),
        ({"optimizer": "adamw(weight_decay='0.1')"}, "weight_decay is '0.1'; it must be of type float"),
        ({"optimizer": "adamw(weight_decay=0.1, no_decay='(')"}, "does not work"),
        ({"optimizer": "sgd(momentum=0.9, accumulator_dtype='bf16')"}, "does not work"),
        ({"optimizer": "sdg"}, "config.optim.optimizer: 'sdg' is not known; did you mean 'sgd'"),
        ({"schedule": "cosin"}, "config.optim.schedule: 'cosin' is not known; did you mean 'cosine'"),
        ({"warmup_steps": 10}, "warmup_steps is 10; it must be from 0 to config.steps - 1 = 9"),
    ],
)
def test_a_misspelt_field_is_one_sentence(fields, message):
    with pytest.raises(UserError, match=message):
        optim.create(**{**FIELDS, **fields})
