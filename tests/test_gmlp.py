import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file

from tests.helpers import DATA, assert_close
from vit_jax_mixer import models
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models.gmlp import GMlp, GMlpBlock
from vit_jax_mixer.pretrained import names

TINY = dict(num_blocks=2, patch_size=8, hidden_dim=24)


@pytest.fixture(scope="module")
def reference():
    return np.load(DATA / "gmlp_tiny_reference.npz")


@pytest.fixture(scope="module")
def images(reference):
    return reference["images_nchw"].transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def params():
    return names.to_ours(load_file(DATA / "gmlp_tiny_timm.safetensors"), "timm_gmlp", "gmlp_tiny")


def test_logits_are_those_of_timm(reference, images, params):
    logits = jax.jit(GMlp(num_classes=7, **TINY).apply)({"params": params}, images)
    assert logits.dtype == jnp.float32
    assert_close(logits, reference["logits"])


def test_without_classes_the_features_are_what_the_head_reads(reference, images, params):
    features = GMlp(num_classes=0, **TINY).apply({"params": params}, images)
    assert features.shape == (6, 24)
    assert_close(features @ params["head"]["kernel"] + params["head"]["bias"][None], reference["logits"])


def test_each_block_offers_its_tokens(images, params):
    _, state = GMlp(num_classes=7, **TINY).apply({"params": params}, images, mutable=["intermediates"])
    found = state["intermediates"]
    assert set(found) == {"block_0", "block_1", "tokens", "pre_logits"}
    block = GMlpBlock(144).apply({"params": params["GMlpBlock_1"]}, found["block_0"])
    assert_close(block, found["block_1"])


def test_every_parameter_has_a_gradient(images, params):
    loss = lambda params: jnp.square(GMlp(num_classes=7, **TINY).apply({"params": params}, images)).mean()
    for name, grad in traverse_util.flatten_dict(jax.jit(jax.grad(loss))(params), sep="/").items():
        assert np.isfinite(grad).all(), name
        assert grad.any(), name


@pytest.mark.parametrize(
    ("name", "millions", "parameters"),
    # The paper's table 1; timm's card of gmlp_s16_224.ra3_in1k says 19.4 million.
    [("gMLP-Ti16", 6, 5_867_328), ("gMLP-S16", 20, 19_422_656), ("gMLP-B16", 73, 73_075_392)],
)
def test_the_named_sizes_are_those_of_the_paper(name, millions, parameters):
    model = models.create(name, num_classes=1000)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    found = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert found == parameters
    assert round(found, -6) / 1e6 == pytest.approx(millions, abs=1)


def test_a_block_starts_as_a_plain_mlp():
    x = jax.random.normal(jax.random.key(1), (2, 16, 24))
    block = GMlpBlock(144)
    params = block.init(jax.random.key(0), x)["params"]
    gate = params["spatial_gating"]["token_mixing"]
    np.testing.assert_array_equal(gate["bias"], 1)
    assert 0 < np.abs(gate["kernel"]).max() < 1e-5
    y = block.apply({"params": params}, x)
    # Examples do not meet in an MLP, nor do tokens yet: the first does not see the second.
    changed = block.apply({"params": params}, x.at[:, 1].add(1.0))
    assert np.abs(changed[:, 1] - y[:, 1]).max() > 0.1
    np.testing.assert_allclose(changed[:, 0], y[:, 0], atol=1e-4)


def test_a_new_head_starts_at_zero(images):
    head = GMlp(num_classes=3, **{**TINY, "num_blocks": 0}).init(jax.random.key(0), images)["params"]["head"]
    assert not head["kernel"].any()
    assert not head["bias"].any()


def test_stochastic_depth_skips_a_block_of_an_example_or_rescales_it(params):
    x = jax.random.normal(jax.random.key(1), (256, 16, 24))
    module = GMlpBlock(144, stochastic_depth_rate=0.25)
    block = {"params": params["GMlpBlock_0"]}
    branch = module.apply(block, x, train=False) - x
    dropped = module.apply(block, x, train=True, rngs={"dropout": jax.random.key(2)}) - x
    skipped = np.abs(dropped).max(axis=(1, 2)) == 0
    assert 0.15 < skipped.mean() < 0.35
    assert_close(dropped[~skipped], np.asarray(branch)[~skipped] / 0.75, 1e-4)


def test_bfloat16_computes_roughly_the_same_with_float32_parameters(reference, images, params):
    model = GMlp(num_classes=7, dtype="bfloat16", **TINY)
    logits = model.apply({"params": params}, images)
    assert logits.dtype == jnp.float32
    assert_close(logits, reference["logits"], 0.05)
    fresh = jax.eval_shape(model.init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 5}, "32x32 pixels cannot be cut into patches of 5x5"),
        ({"hidden_dim": 5, "mlp_ratio": 3}, "mlp_ratio 3 of 5 channels is 15; choose an mlp_ratio that makes it even"),
    ],
)
def test_sizes_that_do_not_work_out_are_errors(images, fields, message):
    with pytest.raises(UserError, match=message):
        GMlp(num_classes=3, **{**TINY, **fields}).init(jax.random.key(0), images)
