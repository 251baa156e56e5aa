"""Masks and their loss are those of the masked autoencoder; a masked token is not seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import DATA, assert_close
from vit_jax_mixer import models
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import stacked
from vit_jax_mixer.tasks import masking

ROWS = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
MIXER = dict(num_blocks=2, patch_size=2, hidden_dim=4)
REFERENCE = np.load(DATA / "mae_reference.npz")


def test_the_mask_is_that_of_the_original():
    np.testing.assert_array_equal(masking.mask_of(REFERENCE["masking/noise"], 12), REFERENCE["masking/mask"])
    mask = masking.random_mask(jax.random.key(0), 200, 15, 0.75)  # 3.75 tokens that stay are 3
    np.testing.assert_array_equal(mask.sum(1), 12)
    assert np.abs(mask.mean(0) - 12 / 15).max() < 0.15


@pytest.mark.parametrize("kind", ["norm_pix_off", "norm_pix_on"])
def test_the_loss_and_its_gradient_are_those_of_the_original(kind):
    target, mask = REFERENCE[f"{kind}/target"], REFERENCE["mask"]
    loss = lambda prediction: masking.mean_loss(prediction, target, mask)
    value, grad = jax.jit(jax.value_and_grad(loss))(REFERENCE["prediction"])
    assert_close(value, REFERENCE[f"{kind}/loss"])
    assert_close(grad, REFERENCE[f"{kind}/grad_prediction"])


def test_a_masked_patch_is_replaced_by_the_learned_token():
    model = models.create("TabularMixer", 1, **MIXER, scan=True)
    params = jax.jit(lambda key: stacked.init(model, key, ROWS))(jax.random.key(0))
    token = jnp.arange(4.0)
    told = jax.jit(lambda rows, mask, token: masking.tokens(model, params, rows, mask, token, train=True))

    mask = jnp.array([[0, 1, 0]] * 3, jnp.float32)
    found = told(ROWS, mask, token)
    assert found.shape == (3, 3, 4)
    hidden, seen = ROWS.copy(), ROWS.copy()
    hidden[:, 2:4] += 1
    seen[:, 0] += 1
    np.testing.assert_array_equal(told(hidden, mask, token), found)
    for other in (told(seen, mask, token), told(ROWS, jnp.zeros_like(mask), token), told(ROWS, mask, token**2)):
        assert np.abs(other - found).max() > 1e-3
    features = model.apply({"params": params}, ROWS, mutable=["intermediates"])[1]["intermediates"]["pre_logits"]
    assert_close(told(ROWS, jnp.zeros_like(mask), token).mean(1), features)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("TabularMixer", dict(MIXER, stem="inception(2, 2, 2, 2, 2, 2)"), "would tell the neighbours of a masked"),
        ("MnistMixer", dict(num_blocks=1, hidden_dim=4), "whose tokens cannot be masked; choose another"),
    ],
)
def test_a_model_that_cannot_be_masked_is_one_sentence(name, fields, message):
    model = models.create(name, 1, **fields)
    inputs, mask = (
        (jnp.zeros((1, 28, 28, 1)), jnp.zeros((1, 16))) if name == "MnistMixer" else (ROWS, jnp.zeros((3, 3)))
    )

    def told(key):
        params = model.init(key, inputs)["params"]
        return masking.tokens(model, params, inputs, mask, jnp.zeros(4))

    with pytest.raises(UserError, match=message):
        jax.eval_shape(told, jax.random.key(0))
