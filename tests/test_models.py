import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from tests.helpers import DATA, assert_close, command, nested
from vit_jax_mixer import models
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import layers
from vit_jax_mixer.models.mixer import MixerBlock, MlpBlock, MlpMixer

TINY = dict(num_blocks=2, patch_size=8, hidden_dim=24, tokens_mlp_dim=10, channels_mlp_dim=36)
PUBLISHED = json.loads((DATA / "mixer_param_shapes.json").read_text())


@pytest.fixture(scope="module")
def reference():
    return np.load(DATA / "mixer_tiny_reference.npz")


@pytest.fixture(scope="module")
def params():
    return nested(np.load(DATA / "mixer_tiny_params.npz"))


def test_logits_and_gradients_are_those_of_the_original(reference, params):
    model = MlpMixer(num_classes=7, **TINY)

    def loss(params):
        logits = model.apply({"params": params}, reference["images"], train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, reference["labels"]).mean(), logits

    grads, logits = jax.grad(loss, has_aux=True)(params)
    assert logits.dtype == jnp.float32
    assert_close(logits, reference["logits"])
    assert_close(grads, nested(reference, "grad/"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_published_checkpoints(name):
    model = models.create(name.replace("_", "/"), num_classes=1000)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
    flat = {key: list(value.shape) for key, value in traverse_util.flatten_dict(shapes, sep="/").items()}
    assert flat == PUBLISHED[name]["shapes"]
    assert sum(np.prod(shape) for shape in flat.values()) == PUBLISHED[name]["params"]


def test_the_registry_lists_all_published_sizes():
    assert {name.replace("_", "/") for name in PUBLISHED} <= set(models.list_models())


def test_without_classes_the_features_are_what_the_head_reads(reference, params):
    features = MlpMixer(num_classes=0, **TINY).apply({"params": params}, reference["images"])
    assert features.shape == (8, 24)
    head = params["head"]
    assert_close(features @ head["kernel"] + head["bias"][None], reference["logits"])


def test_each_block_offers_its_tokens(reference, params):
    model = MlpMixer(num_classes=7, **TINY)
    _, state = model.apply({"params": params}, reference["images"], mutable=["intermediates"])
    found = state["intermediates"]
    assert set(found) == {"block_0", "block_1", "tokens", "pre_logits"}
    assert found["block_1"].shape == (8, 16, 24)
    block = MixerBlock(10, 36).apply({"params": params["MixerBlock_1"]}, found["block_0"])
    assert_close(block, found["block_1"])


def test_a_patch_may_be_a_rectangle():
    model = MlpMixer(num_classes=3, **{**TINY, "patch_size": (8, 4)})
    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert variables["params"]["stem"]["kernel"].shape == (8, 4, 3, 24)
    assert variables["params"]["MixerBlock_0"]["token_mixing"]["Dense_0"]["kernel"].shape == (32, 10)


def test_a_patch_that_does_not_divide_the_image_is_an_error():
    with pytest.raises(UserError, match="30x32 pixels cannot be cut into patches of 8x8"):
        MlpMixer(num_classes=3, **TINY).init(jax.random.key(0), jnp.zeros((1, 30, 32, 3)))


def test_stochastic_depth_skips_a_branch_of_an_example_or_rescales_it(params):
    x = jax.random.normal(jax.random.key(1), (256, 16, 24))
    block = params["MixerBlock_0"]
    # Without channel mixing, a block is x + token mixing.
    silent = {**block, "channel_mixing": jax.tree.map(np.zeros_like, block["channel_mixing"])}
    module = MixerBlock(10, 36, stochastic_depth_rate=0.25)
    branch = module.apply({"params": silent}, x, train=False) - x
    dropped = module.apply({"params": silent}, x, train=True, rngs={"dropout": jax.random.key(2)}) - x
    scale = np.einsum("bnc,bnc->b", dropped, branch) / np.einsum("bnc,bnc->b", branch, branch)
    skipped = np.abs(scale) < 1e-3
    np.testing.assert_allclose(scale[~skipped], 1 / 0.75, rtol=1e-3)
    assert 0.15 < skipped.mean() < 0.35
    assert_close(dropped[~skipped], np.asarray(branch)[~skipped] / 0.75, 1e-4)


def test_stochastic_depth_grows_linearly_from_zero_to_the_last_block():
    rates = []

    def note(next_function, args, kwargs, context):
        if isinstance(context.module, MixerBlock) and context.method_name == "__call__":
            rates.append(context.module.stochastic_depth_rate)
        return next_function(*args, **kwargs)

    model = MlpMixer(num_classes=3, **{**TINY, "num_blocks": 5}, stochastic_depth_rate=0.2)
    with models.mixer.nn.intercept_methods(note):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    np.testing.assert_allclose(rates, [0, 0.05, 0.1, 0.15, 0.2])


def test_dropout_is_on_in_training_alone(reference, params):
    model = MlpMixer(num_classes=7, dropout_rate=0.3, **TINY)
    apply = lambda seed: model.apply(
        {"params": params}, reference["images"], train=True, rngs={"dropout": jax.random.key(seed)}
    )
    assert_close(model.apply({"params": params}, reference["images"], train=False), reference["logits"])
    assert np.abs(apply(0) - reference["logits"]).max() > 1e-2
    assert np.abs(apply(0) - apply(1)).max() > 1e-2
    np.testing.assert_array_equal(apply(0), apply(0))


def test_bfloat16_computes_roughly_the_same_with_float32_parameters(reference, params):
    model = MlpMixer(num_classes=7, dtype="bfloat16", **TINY)
    logits = model.apply({"params": params}, reference["images"])
    assert logits.dtype == jnp.float32
    assert_close(logits, reference["logits"], 0.05)
    fresh = model.init(jax.random.key(0), reference["images"])
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("name", "fields", "shape"),
    [
        ("MlpMixer", TINY, (16, 16, 3)),
        ("TabularMixer", dict(num_blocks=2, patch_size=3, hidden_dim=8), (12,)),
        ("ResMlp", dict(num_blocks=2, patch_size=8, hidden_dim=8, layerscale_init=0.1), (16, 16, 3)),
        ("GMlp", dict(num_blocks=2, patch_size=8, hidden_dim=8), (16, 16, 3)),
    ],
)
def test_all_activations_of_a_model_are_the_one_that_is_asked_for(name, fields, shape):
    x = np.zeros((1, *shape), np.float32)

    def program(**more):
        model = models.create(name, num_classes=3, **fields, **more)
        variables = jax.eval_shape(model.init, jax.random.key(0), x)
        return str(jax.make_jaxpr(model.apply)(variables, x))

    assert program(activation="gelu") == program()
    used = re.findall(r"= (erf|erfc|tanh|logistic)\b", program(activation="silu"))
    assert {*used} == {"logistic"}  # no GELU is left
    with pytest.raises(UserError, match=r"config\.model\.activation: 'sine' is not known"):
        program(activation="sine")


def test_activations_are_what_their_names_say(params):
    x = np.linspace(-3, 3, 13, dtype=np.float32)
    sigmoid = 1 / (1 + np.exp(-x))
    erf = np.vectorize(math.erf)(x / math.sqrt(2))
    expected = {"tanh": np.tanh(x), "relu": np.maximum(x, 0), "silu": x * sigmoid, "gelu": x * (1 + erf) / 2}
    for name, values in expected.items():
        assert_close(layers.activation(name)(x), values, 1e-6)
    block = params["MixerBlock_0"]["channel_mixing"]
    tokens = np.random.default_rng(0).normal(size=(2, 24)).astype(np.float32)
    hidden = np.tanh(tokens @ block["Dense_0"]["kernel"] + block["Dense_0"]["bias"])
    found = MlpBlock(36, activation="tanh").apply({"params": block}, tokens)
    assert_close(found, hidden @ block["Dense_1"]["kernel"] + block["Dense_1"]["bias"], 1e-5)


def test_a_new_head_starts_at_zero_with_the_bias_asked_for():
    model = MlpMixer(num_classes=3, head_bias_init=-6.9, **TINY)
    head = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]["head"]
    assert not head["kernel"].any()
    np.testing.assert_allclose(head["bias"], -6.9)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("Mixer-B/61", {}, "did you mean 'Mixer-B/16'"),
        (
            "Mixer-B/16",
            {"droput_rate": 0.1},
            "model Mixer-B/16 has no field 'droput_rate'; did you mean 'dropout_rate'",
        ),
        ("MlpMixer", {"num_blocks": 2}, "model MlpMixer lacks the field"),
        ("Mixer-B/16", {"dropout_rate": 1.5}, "dropout_rate is 1.5; it must be from 0 to 0.999999"),
        ("Mixer-B/16", {"dtype": "bfloat"}, "dtype is 'bfloat'; choose from float32, bfloat16, float16"),
        ("Mixer-B/16", {"dtype": "int8"}, "dtype is 'int8'"),
        ("Mixer-B/16", {"dtype": "float64"}, "dtype is 'float64'"),
        ("Mixer-B/16", {"dtype": None}, "dtype is None"),
        ("Mixer-B/16", {"num_blocks": 0}, "num_blocks is 0; it must be from 1"),
        ("gMLP-S16", {"num_blocks": -3}, "num_blocks is -3; it must be from 1"),
        ("ResMLP-S12", {"num_blocks": 10**9}, "num_blocks is 1000000000; it must be from 1"),
        ("MnistMixer", {"hidden_dim": 0}, "hidden_dim is 0; it must be from 1"),
        ("Mixer-B/16", {"tokens_mlp_dim": 2.5}, "tokens_mlp_dim is 2.5; it must be of type int"),
        ("Mixer-B/16", {"channels_mlp_dim": 10**5000}, "channels_mlp_dim is an integer of 16610 bits"),
        ("Mixer-B/16", {"stochastic_depth_rate": -0.1}, "stochastic_depth_rate is -0.1; it must be from 0"),
        ("gMLP-S16", {"stochastic_depth_rate": 1}, "stochastic_depth_rate is 1; it must be from 0"),
        ("Mixer-B/16", {"dropout_rate": "0.1"}, "dropout_rate is '0.1'; it must be of type float"),
        ("Mixer-B/16", {"head_bias_init": float("nan")}, "head_bias_init is nan; it must be a finite number"),
        ("ResMLP-S12", {"layerscale_init": -1}, "layerscale_init is -1; it must be from 0"),
        ("Mixer-B/16", {"patch_size": 0}, "patch_size is 0; it must be a number of pixels, or"),
        ("MnistMixer", {"patch_size": (7, 7, 7)}, r"patch_size is \(7, 7, 7\); it must be"),
        ("ResMLP-S12", {"patch_size": "16"}, "patch_size is 16; it must be"),
        ("Mixer-B/16", {"patch_size": (4, -4)}, r"patch_size is \(4, -4\); it must be"),
    ],
)
def test_unknown_names_suggest_the_nearest(name, fields, message):
    with pytest.raises(UserError, match=message):
        models.create(name, num_classes=2, **fields)


@pytest.mark.parametrize(
    ("name", "fields", "side", "message"),
    [
        ("Mixer-S/32", {}, 16, "images of 16x16 pixels cannot be cut into patches of 32x32"),
        ("ResMLP-S12", {"mlp_ratio": 0.001}, 16, "mlp_ratio 0.001 of 384 channels leaves no hidden width"),
        ("gMLP-S16", {"mlp_ratio": 0.001}, 16, "mlp_ratio 0.001 of 256 channels leaves no hidden width"),
    ],
)
def test_sizes_that_do_not_go_together_are_one_sentence(name, fields, side, message):
    model = models.create(name, num_classes=2, **fields)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))


@pytest.mark.slow
def test_the_command_prints_parameters_and_cost():
    result = command("models")
    assert result.returncode == 0, result.stderr
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines()[1:]}
    assert rows["Mixer-B/16"][2:4] == ["59,880,472", "25.33"]
    assert rows["MnistMixer"][2] == "1,379,578"


def test_where_no_cpu_can_analyse_a_program_its_flop_are_not_known(monkeypatch):
    def no_cpu(**_):
        raise RuntimeError("Unknown backend cpu")  # as with JAX_PLATFORMS=cuda

    model = models.create("Mixer-S/32", num_classes=10)
    assert models.forward_flop(model, (32, 32, 3)) > 1e7
    monkeypatch.setattr(jax, "local_devices", no_cpu)
    assert models.forward_flop(model, (32, 32, 3)) == 0
