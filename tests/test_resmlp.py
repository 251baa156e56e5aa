import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from safetensors.numpy import load_file

from tests.helpers import DATA, assert_close
from vit_jax_mixer import models
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models.__main__ import cost
from vit_jax_mixer.models.resmlp import ResMlp, ResMlpBlock, fold
from vit_jax_mixer.pretrained import names
from vit_jax_mixer.run import weight_decay

TINY = dict(num_blocks=2, patch_size=8, hidden_dim=24, layerscale_init=0.1)


@pytest.fixture(scope="module")
def reference():
    return np.load(DATA / "resmlp_tiny_reference.npz")


@pytest.fixture(scope="module")
def images(reference):
    return reference["images_nchw"].transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def params():
    return names.to_ours(load_file(DATA / "resmlp_tiny_timm.safetensors"), "timm_resmlp", "resmlp_tiny")


def start(**fields):
    """Return the initial parameters, flat, of a model wide enough to measure their spread."""
    model = ResMlp(**{**TINY, "num_classes": 1000, "hidden_dim": 128, **fields})
    params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    return traverse_util.flatten_dict(params, sep="/")


def test_logits_features_loss_and_gradients_are_those_of_the_original(reference, images, params):
    def loss(params):
        logits = ResMlp(num_classes=7, **TINY).apply({"params": params}, images, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, reference["labels"]).mean(), logits

    (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert logits.dtype == jnp.float32
    assert_close(logits, reference["logits"])
    assert_close(value, reference["loss"])
    expected = {name.removeprefix("grad/"): reference[name] for name in reference.files if name.startswith("grad/")}
    assert_close(names.from_ours(grads, "official_resmlp"), expected)
    assert_close(ResMlp(num_classes=0, **TINY).apply({"params": params}, images), reference["features"])


@pytest.mark.parametrize(
    ("name", "layerscale_init", "multiply_adds"),
    [
        ("ResMLP-S12", 0.1, 3.0e9),
        ("ResMLP-S24", 1e-5, 6.0e9),
        ("ResMLP-S36", 1e-6, 8.9e9),
        ("ResMLP-B24", 1e-6, 100.2e9),
        ("ResMLP-B24/16", 1e-6, 23.0e9),
    ],
)
def test_the_named_sizes_cost_what_the_paper_says(name, layerscale_init, multiply_adds):
    model = models.create(name, num_classes=1000)
    assert model.layerscale_init == layerscale_init
    parameters, flop = cost(name, models.MODELS[name].image_shape, 1000)
    if name == "ResMLP-B24/16":  # of which no weights are published
        assert round(parameters / 1e6, 1) == 115.7
    # XLA counts GELU, Aff and the sums too: about 4 % on top.
    assert flop / 2 == pytest.approx(multiply_adds, rel=0.06)


def test_each_block_offers_its_tokens(images, params):
    _, state = ResMlp(num_classes=7, **TINY).apply({"params": params}, images, mutable=["intermediates"])
    found = state["intermediates"]
    assert set(found) == {"block_0", "block_1", "tokens", "pre_logits"}
    block = ResMlpBlock(0.1).apply({"params": params["ResMlpBlock_1"]}, found["block_0"])
    assert_close(block, found["block_1"])


def test_parameters_start_as_in_the_authors_code():
    found = start()
    bound = (8 * 8 * 3) ** -0.5
    for name in ("stem/kernel", "stem/bias"):
        assert 0.9 * bound < np.abs(found[name]).max() <= bound
    assert np.std(found["stem/kernel"]) == pytest.approx(bound / np.sqrt(3), rel=0.05)
    for name in ("head/kernel", "ResMlpBlock_0/Dense_0/kernel", "ResMlpBlock_1/Dense_1/kernel"):
        assert np.std(found[name]) == pytest.approx(0.02, rel=0.05)
        assert np.abs(found[name]).max() > 0.06  # not cut at two deviations
    assert np.std(found["ResMlpBlock_0/token_mixing/kernel"]) == pytest.approx(0.02, rel=0.2)
    for name, value in found.items():
        if name.endswith("/scale"):
            np.testing.assert_allclose(value, 0.1 if "LayerScale" in name else 1.0)
        elif name.endswith("/bias") and not name.startswith("stem"):
            assert not value.any(), name


def test_weight_decay_spares_aff_layer_scale_and_biases_by_default():
    decayed = weight_decay.decay_mask("(bias|scale)$")(start())
    assert {name for name, decays in decayed.items() if decays} == {
        name for name in decayed if name.endswith("/kernel")
    }


def test_stochastic_depth_is_the_same_in_every_block():
    rates = []

    def note(next_function, args, kwargs, context):
        if isinstance(context.module, ResMlpBlock) and context.method_name == "__call__":
            rates.append(context.module.stochastic_depth_rate)
        return next_function(*args, **kwargs)

    model = ResMlp(num_classes=3, **{**TINY, "num_blocks": 4}, stochastic_depth_rate=0.05)
    with models.resmlp.nn.intercept_methods(note):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert rates == [0.05] * 4


def test_stochastic_depth_skips_a_branch_of_an_example_or_rescales_it(params):
    x = jax.random.normal(jax.random.key(1), (256, 16, 24))
    block = params["ResMlpBlock_0"]
    # Without its second layer scale, a block is x + token mixing.
    silent = {**block, "LayerScale_1": {"scale": np.zeros(24, np.float32)}}
    module = ResMlpBlock(0.1, stochastic_depth_rate=0.25)
    branch = module.apply({"params": silent}, x, train=False) - x
    dropped = module.apply({"params": silent}, x, train=True, rngs={"dropout": jax.random.key(2)}) - x
    skipped = np.abs(dropped).max(axis=(1, 2)) == 0
    assert 0.15 < skipped.mean() < 0.35
    assert_close(dropped[~skipped], np.asarray(branch)[~skipped] / 0.75, 1e-4)


def test_bfloat16_computes_roughly_the_same_with_float32_parameters(reference, images, params):
    model = ResMlp(num_classes=7, dtype="bfloat16", **TINY)
    logits, state = model.apply({"params": params}, images, mutable=["intermediates"])
    assert logits.dtype == jnp.float32
    assert_close(logits, reference["logits"], 0.05)
    assert state["intermediates"]["block_1"].dtype == jnp.bfloat16
    fresh = jax.eval_shape(model.init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}


def test_another_activation_is_folded_too(images, params):
    model = ResMlp(num_classes=7, activation="tanh", **TINY)
    folded = model.clone(folded=True).apply({"params": fold(params)}, images)
    assert_close(folded, model.apply({"params": params}, images), 1e-5)
    assert np.abs(folded - ResMlp(num_classes=7, **TINY).apply({"params": params}, images)).max() > 1e-3


def test_a_patch_may_be_a_rectangle_and_must_divide_the_image():
    found = jax.eval_shape(lambda: start(patch_size=(8, 4)))
    assert found["stem/kernel"].shape == (8, 4, 3, 128)
    assert found["ResMlpBlock_0/token_mixing/kernel"].shape == (32, 32)
    with pytest.raises(UserError, match="32x32 pixels cannot be cut into patches of 5x5"):
        start(patch_size=5)
    with pytest.raises(UserError, match="patch_size is 0; it must be a number of pixels"):
        start(patch_size=0)
