"""The map of a class: its mean is the logit, in every family; and how it is drawn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import DATA
from vit_jax_mixer import models, pretrained
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import resmlp, stacked
from vit_jax_mixer.predictors import class_maps
from vit_jax_mixer.predictors.images import Images

MIXER = dict(num_blocks=2, patch_size=(8, 16), hidden_dim=12, tokens_mlp_dim=5, channels_mlp_dim=16)
FAMILIES = {
    "MlpMixer": MIXER,
    "ResMlp": dict(num_blocks=2, patch_size=8, hidden_dim=12, layerscale_init=0.1),
    "GMlp": dict(num_blocks=2, patch_size=8, hidden_dim=12),
}
IMAGES = np.random.default_rng(0).normal(size=(3, 32, 48, 3)).astype(np.float32)


def model_of(family, **fields):
    """Return a model of 5 classes, all of whose parameters are random."""
    module = models.create(family, 5, **FAMILIES[family], **fields)
    like = jax.eval_shape(lambda: stacked.init(module, jax.random.key(0), IMAGES))
    rng = np.random.default_rng(1)
    return module, jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32), like)


def assert_exact(module, params):
    """Assert that the mean of each class's map is its logit, for every image."""

    def together(k):
        return module.apply({"params": params}, IMAGES), class_maps.of_classes(module, params, IMAGES, k)

    together = jax.jit(together)
    for k in range(5):
        logits, found = together(jnp.full(len(IMAGES), k))
        assert np.ptp(found, (1, 2)).min() > 0.1
        np.testing.assert_allclose(found.mean((1, 2)), logits[:, k], rtol=1e-5, atol=1e-5 * np.abs(logits).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mean_of_a_class_map_is_the_logit(family):
    assert_exact(*model_of(family))


@pytest.mark.parametrize("fields", [{"dtype": "bfloat16"}, {"scan": True}])
def test_it_is_in_other_ways_of_computing(fields):
    assert_exact(*model_of("ResMlp", **fields))


def test_it_is_of_folded_weights():
    module, params = model_of("ResMlp")
    folded = module.clone(folded=True), resmlp.fold(params)
    assert_exact(*folded)
    of = lambda module, params: jax.jit(lambda k: class_maps.of_classes(module, params, IMAGES, k))(jnp.arange(3))
    np.testing.assert_allclose(of(*folded), of(module, params), rtol=1e-4, atol=1e-4)


def test_each_image_may_have_its_own_class_and_tokens_keep_their_places():
    module, params = model_of("MlpMixer")
    maps = jax.jit(lambda params, images, classes: class_maps.of_classes(module, params, images, classes))
    both = maps(params, IMAGES, jnp.array([4, 0, 2]))
    assert both.shape == (3, 4, 3)  # 32 / 8 rows, 48 / 16 columns
    alone = maps(params, IMAGES[1:2], jnp.array([0]))
    np.testing.assert_allclose(both[1:2], alone, rtol=1e-4, atol=1e-5)
    # Without mixing of tokens, a patch is seen in its own place alone.
    still = jax.tree.map_with_path(lambda path, x: 0 * x if "token_mixing" in str(path) else x, params)
    changed = IMAGES.copy()
    changed[:, 8:16, 32:48] += 1
    of = lambda images: np.asarray(maps(still, images, jnp.array([0, 0, 0])))
    assert np.argwhere((of(changed) != of(IMAGES)).any(0)).tolist() == [[1, 2]]


def test_a_predictor_explains_the_likeliest_class():
    params = pretrained.load(DATA / "mixer_tiny_params.npz")
    fields = dict(num_classes=7, num_blocks=2, patch_size=8, hidden_dim=24, tokens_mlp_dim=10, channels_mlp_dim=36)
    about = Images({"name": "MlpMixer", **fields}, (32, 32, 3), "decode(3)|value_range(-1, 1)", (), "here")
    module, images = about.create("x"), about.random_inputs(2)

    @jax.jit
    def both(params):
        return about.explain(module, params, images), about.outputs(module, params, images)["logits"]

    found, logits = jax.device_get(both(params))
    np.testing.assert_allclose(found["map"].mean((1, 2)), logits.max(-1), rtol=1e-5, atol=1e-5)
    assert (found["seen"] == images).all()
    headless = dataclasses.replace(about, model={**about.model, "num_classes": 0})
    with pytest.raises(UserError, match="no class has a map"):
        headless.explain(headless.create("x"), {k: v for k, v in params.items() if k != "head"}, images)


def test_a_model_with_another_head_says_that_it_has_no_maps():
    module = models.create("MnistMixer", 10, num_blocks=1, hidden_dim=4, mlp_dim=4, head_dim=4)

    def of(images):
        params = module.init(jax.random.key(0), images)["params"]
        return class_maps.of_classes(module, params, images, jnp.zeros(1, int))

    with pytest.raises(UserError, match=r"logits of a MnistMixer are not the mean over tokens of a linear head, so"):
        jax.eval_shape(of, np.zeros((1, 28, 28, 1), np.float32))


def test_red_is_above_the_logit_and_blue_below():
    image = np.full((8, 12, 1), 100, np.uint8)
    found = np.array([[9.0, 7.0], [6.0, 6.0]], np.float32)
    picture = np.asarray(class_maps.picture(image, found, "a", "b"))
    times = -(-224 // 12)
    assert (picture[:18] < 255).any(), "no title"
    body = picture[18 : 18 + 8 * times]
    assert (body[:, : 12 * times] == 100).all()
    right = body[:, -12 * times :].astype(int)
    patch = lambda row, column: right[row * 4 * times + 1, column * 6 * times + 1]
    assert patch(0, 0)[0] > patch(0, 0)[2] + 50
    assert patch(0, 1).tolist() == [114, 114, 114]  # the mean, 7
    assert patch(1, 0)[2] > patch(1, 0)[0] + 10
    assert (patch(1, 0) == patch(1, 1)).all()
