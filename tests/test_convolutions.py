"""Convolutional blocks and stems: those of the original implementations, in any layout of the parameters."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import DATA, assert_close
from vit_jax_mixer import models
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import convolutions, layers, stacked
from vit_jax_mixer.models.convolutions import Inception
from vit_jax_mixer.pretrained import resize
from vit_jax_mixer.pretrained.shapes import infer

IMAGES = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)
ROWS = np.random.default_rng(1).normal(size=(3, 10)).astype(np.float32)
MIXER = dict(num_blocks=3, patch_size=4, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=8)
IDEAS = {
    "MlpMixer": dict(
        **MIXER,
        stem="inception(one=4, reduce3=2, three=3, reduce5=2, five=2, pool=2, relu=True)",
        conv_blocks=(2, 0, 1),
        conv_block="convnext(kernel_size=3, layer_scale=0.5)",
        token_mixer="lambda_layer(dim_k=4, heads=2, dim_u=2)",
    ),
    "TabularMixer": dict(
        num_blocks=2,
        patch_size=3,
        hidden_dim=16,
        stem="inception(one=4, reduce3=2, three=3, reduce5=2, five=2, pool=2)",
        conv_blocks=(1, 1),
        conv_block="inception_next(band=5, layer_scale=0)",
        token_mixer="lambda_layer(dim_k=4, heads=2, window=3)",
    ),
}


def channels_last(x):
    return np.moveaxis(x, 1, -1)


def kernel(weight):
    """From a PyTorch convolution's (out, in, ...) to (..., in, out)."""
    return np.moveaxis(weight, (0, 1), (-1, -2))


@pytest.fixture(scope="module")
def convnext():
    return np.load(DATA / "convnext_block_reference.npz")


@pytest.fixture(scope="module")
def inception():
    return np.load(DATA / "inception_reference.npz")


def convnext_tree(file, prefix="param/", one_axis=False):
    get = lambda name: file[prefix + name]
    dwconv = get("dwconv.weight")[:, :, 3] if one_axis else get("dwconv.weight")
    return {
        "gamma": get("gamma"),
        "dwconv": {"kernel": kernel(dwconv), "bias": get("dwconv.bias")},
        "norm": {"scale": get("norm.weight"), "bias": get("norm.bias")},
        **{n: {"kernel": get(f"{n}.weight").T, "bias": get(f"{n}.bias")} for n in ("pwconv1", "pwconv2")},
    }


def test_a_convnext_block_and_its_gradients_are_those_of_the_original(convnext):
    block = convolutions.convnext()(grid=(9, 8))
    tokens = lambda name: channels_last(convnext[f"two_d/{name}"]).reshape(2, 72, 6)

    @jax.jit
    def results(params, x, cotangent):
        found, pull = jax.vjp(lambda params, x: block.apply({"params": params}, x), params, x)
        return found, *pull(cotangent)

    found, of_params, of_input = results(convnext_tree(convnext), *map(tokens, ("input_nchw", "cotangent")))
    assert_close(found, tokens("output_nchw"))
    assert_close(of_input, tokens("grad_input"))
    assert_close(of_params, convnext_tree(convnext, "two_d/grad/"))


def test_on_a_line_it_is_the_same_block(convnext):
    x = channels_last(convnext["one_d/input_ncl"])
    params = convnext_tree(convnext, one_axis=True)
    found = jax.jit(convolutions.convnext()(grid=(14,)).apply)({"params": params}, x)
    assert_close(found, channels_last(convnext["one_d/output_ncl"]))


def test_layer_scale_starts_at_its_value_and_may_be_left_out():
    x = jnp.ones((1, 4, 3))
    start = jax.jit(convolutions.convnext(1, layer_scale=0.25)(grid=(4,)).init)(jax.random.key(0), x)["params"]
    np.testing.assert_array_equal(start["gamma"], np.full(3, 0.25, np.float32))
    without = convolutions.convnext(layer_scale=0)(grid=(4,))
    assert "gamma" not in jax.eval_shape(without.init, jax.random.key(0), x)["params"]


def test_an_inception_next_block_is_that_of_timm(inception):
    file = {name.removeprefix("inception_next/"): inception[name] for name in inception.files}
    get = lambda name: file["param/" + name]
    params = {
        "gamma": get("gamma"),
        "norm": {"scale": get("norm.weight"), "bias": get("norm.bias")},
        **{
            f"pwconv{i}": {"kernel": get(f"mlp.fc{i}.weight")[..., 0, 0].T, "bias": get(f"mlp.fc{i}.bias")}
            for i in (1, 2)
        },
        **{
            name: {
                k: kernel(v) if v.ndim > 1 else v
                for k, v in (("kernel", get(f"token_mixer.{name}.weight")), ("bias", get(f"token_mixer.{name}.bias")))
            }
            for name in ("dwconv_hw", "dwconv_w", "dwconv_h")
        },
    }
    stats = {"norm": {"mean": get("norm.running_mean"), "var": get("norm.running_var")}}
    norm = partial(nn.BatchNorm, use_running_average=True, epsilon=1e-5)
    block = convolutions.inception_next()(grid=(7, 9), norm=norm)
    x = channels_last(file["input_nchw"]).reshape(2, 63, 16)
    found = jax.jit(block.apply)({"params": params, "batch_stats": stats}, x)
    assert_close(found, channels_last(file["output_nchw"]).reshape(2, 63, 16))


def branch(file, prefix, epsilon=1e-3):
    """Return a branch's convolution, its BatchNorm with given statistics folded into it."""
    if f"{prefix}.weight" in file:
        return {"kernel": kernel(file[f"{prefix}.weight"]), "bias": file[f"{prefix}.bias"]}
    get = lambda name: file[f"{prefix}.bn.{name}"]
    scale = get("weight") / np.sqrt(get("running_var") + epsilon)
    weight = file[f"{prefix}.conv.weight"] * scale[:, None, None, None]
    return {"kernel": kernel(weight), "bias": get("bias") - get("running_mean") * scale}


@pytest.mark.parametrize(("kind", "fields"), [("figure", {}), ("torchvision", dict(relu=True, kernel_size=3))])
def test_an_inception_block_is_the_figures_or_torchvisions(inception, kind, fields):
    file = {name: inception[name] for name in inception.files}
    names = ("branch1", "branch2.0", "branch2.1", "branch3.0", "branch3.1", "branch4.1")
    params = {name.replace("4.1", "4").replace(".", "_"): branch(file, f"{kind}/param/{name}") for name in names}
    module = Inception(one=4, reduce3=3, three=5, reduce5=2, five=3, pool=2, **fields)
    found = jax.jit(module.apply)({"params": params}, channels_last(file[f"{kind}/input_nchw"]))
    assert_close(found, channels_last(file[f"{kind}/output_nchw"]))
    if kind == "figure":  # and the patches after it
        stem = {"kernel": kernel(file["figure/param/patch.weight"]), "bias": file["figure/param/patch.bias"]}

        class Patches(nn.Module):
            @nn.compact
            def __call__(self, images):
                x = convolutions.before_patches(images, "inception(4, 3, 5, 2, 3, 2)", jnp.float32)
                return layers.embed_patches(x, 4, 10, jnp.float32)

        found = jax.jit(Patches().apply)(
            {"params": {"inception": params, "stem": stem}}, channels_last(file["figure/input_nchw"])
        )
        assert_close(found, channels_last(file["figure/patches_nchw"]).reshape(2, 9, 10))


@pytest.mark.slow
@pytest.mark.parametrize("name", IDEAS)
def test_logits_and_gradients_do_not_depend_on_scan_and_remat(name):
    x = IMAGES if name == "MlpMixer" else ROWS

    def results(**way):
        model = models.create(name, 3, **IDEAS[name], **way)
        params = jax.jit(partial(stacked.init, model))(jax.random.key(0), x)
        params["head"]["kernel"] = jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)

        def loss(params):
            logits, state = model.apply({"params": params}, x, train=True, mutable=["intermediates"])
            return jnp.sum(logits**2), state["intermediates"]

        (value, tokens), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return {"loss": value, **tokens, **stacked.unstack(grads)}

    expected = results()
    assert {"block_0", "block_1", "inception", "ConvBlock_0", "ConvBlock_1"} <= set(expected)
    assert_close(results(scan=True, remat=True), expected, 1e-4)


def test_blocks_come_before_the_mixer_blocks_that_they_are_counted_for():
    model, x = models.create("MlpMixer", 3, **IDEAS["MlpMixer"]), IMAGES
    order = []

    def note(next_function, args, kwargs, context):
        if context.method_name == "__call__" and "Block" in type(context.module).__name__:
            order.append(context.module.name)
        return next_function(*args, **kwargs)

    with nn.intercept_methods(note):
        params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    names = [name for name in order if name.startswith(("Conv", "MixerB"))]
    assert names == ["ConvBlock_0", "ConvBlock_1", "MixerBlock_0", "MixerBlock_1", "ConvBlock_2", "MixerBlock_2"]
    assert params["ConvBlock_0"]["dwconv"]["kernel"].shape == (3, 3, 1, 16)


class Block(nn.Module):
    """Multiplies by a number of its own and adds one that it draws, or none."""

    stochastic_depth_rate: float = 0.0

    @nn.compact
    def __call__(self, x, *, train, depth_rate=None):
        x = x * self.param("scale", nn.initializers.normal(1.0), (1, 1, 1))
        return x + jax.random.uniform(self.make_rng("dropout"), (1, 1, 1)) if train else x


class Blocks(nn.Module):
    """Four blocks, with others before the first and the third."""

    train: bool = False
    scan: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        before = {0: [Block(name="a")], 2: [Block(name="b"), Block(name="c")]}
        return layers.apply_blocks(self, Block, [0.0] * 4, x, train=self.train, before=before)


def test_a_loop_over_blocks_stops_for_what_precedes_one():
    def results(**way):
        model, x = Blocks(**way), jnp.ones((1, 1, 1))
        params = stacked.init(model, jax.random.key(0), x)
        apply = lambda params: model.apply({"params": params}, x, mutable=["intermediates"])
        value, grads = jax.jit(jax.value_and_grad(lambda params: apply(params)[0].sum()))(params)
        return {"value": value, **apply(params)[1]["intermediates"], **stacked.unstack(grads)}

    expected = results()
    assert {"value", "block_0", "block_3", "Block_3", "a", "c"} <= set(expected)
    assert_close(results(scan=True), expected)
    assert_close(results(scan=True, remat=True), expected)


def test_each_part_of_a_loop_draws_its_own_numbers():
    model, x = Blocks(train=True, scan=True), jnp.zeros((1, 1, 1))
    shapes = jax.eval_shape(model.init, {"params": jax.random.key(0), "dropout": jax.random.key(0)}, x)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), {"params": shapes["params"]})
    _, state = model.apply(zeros, x, rngs={"dropout": jax.random.key(0)}, mutable=["intermediates"])
    drawn = {state["intermediates"][f"block_{i}"].item() for i in range(4)}  # a block multiplies by 0
    assert len(drawn) == 4, drawn


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(conv_blocks=(1, 1, 1, 1)), "conv_blocks is .1, 1, 1, 1.; it must be how many .* at most 3 numbers"),
        (dict(conv_blocks=(-1,)), "conv_blocks is .-1,.; it must be"),
        (dict(conv_blocks=(True,)), "conv_blocks is .True,.; it must be"),
        (dict(conv_blocks=3), "conv_blocks is 3; it must be"),
        (dict(conv_blocks=(1,), conv_block="convnxt"), "conv_block: 'convnxt' is not known; did you mean 'convnext'"),
        (dict(conv_block="convnxt"), "conv_block: 'convnxt' is not known"),
        (dict(conv_blocks=(1,), conv_block="convnext(0)"), "kernel_size is 0; it must be from 1 to 255"),
        (dict(conv_blocks=(1,), conv_block="inception_next(branch_ratio=0.01)"), "branch_ratio 0.01 of 16 channels"),
        (dict(conv_blocks=(1,), conv_block="convnext(expansion=0.01)"), "expansion 0.01 of 16 channels leaves no"),
        (dict(stem="inception(dtype=1)"), "inception has no field 'dtype'"),
        (dict(stem="inceptoin"), "stem: 'inceptoin' is not known; did you mean 'inception'"),
        (dict(token_mixer="lambda_layer(heads=3)"), "3 heads do not divide 16 channels"),
        (dict(token_mixer="lambda(4)"), "is not of the form name"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(fields, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(models.create("MlpMixer", 3, **MIXER, **fields).init, jax.random.key(0), IMAGES)


def test_a_model_with_convolutions_is_brought_to_another_image_size():
    fields = dict(conv_blocks=(1,), stem="inception(2, 2, 2, 2, 2, 2)")
    shapes = lambda side, width: jax.eval_shape(
        models.create("MlpMixer", 3, **{**MIXER, "tokens_mlp_dim": width}, **fields).init,
        jax.random.key(0),
        jnp.zeros((1, side, side, 3)),
    )["params"]
    old = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes(16, 8))
    new = resize.resize(old, shapes(32, 32), "block_diagonal", size=(32, 32), source_size=(16, 16), where="x")
    assert jax.tree.map(np.shape, new) == jax.tree.map(np.shape, shapes(32, 32))
    with pytest.raises(UserError, match="x has ConvBlock_0, a part of which its weights alone do not tell enough"):
        infer(old, "mixer", "x")


def test_a_lambda_layer_is_for_one_image_size():
    model = models.create("MlpMixer", 3, **MIXER, token_mixer="lambda_layer")
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    with pytest.raises(UserError, match="and a lambda layer, are for one size"):
        resize.resize(params, params, "interpolate", size=(16, 16), where="x")
