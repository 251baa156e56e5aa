"""The lambda layer is that of the original implementation, with the normalisation of that, too."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import DATA, assert_close
from vit_jax_mixer.models.lambda_layer import lambda_layer

CASES = {"global": lambda_layer(4, 2), "global_u2": lambda_layer(4, 2, 2), "local": lambda_layer(4, 2, window=3)}


def tree(file, prefix):
    get = lambda name: file[prefix + name]
    found = {
        **{name: {"kernel": get(f"{name}.weight")[..., 0, 0].T} for name in ("to_q", "to_k", "to_v")},
        **{name: {"scale": get(f"{name}.weight"), "bias": get(f"{name}.bias")} for name in ("norm_q", "norm_v")},
    }
    if prefix + "rel_pos_emb" in file:
        return {**found, "rel_pos_emb": get("rel_pos_emb")}
    kernel = get("pos_conv.weight").transpose(2, 3, 4, 1, 0)
    return {**found, "pos_conv": {"kernel": kernel, "bias": get("pos_conv.bias")}}


@pytest.fixture(scope="module")
def file():
    loaded = np.load(DATA / "lambda_layer_reference.npz")
    return {name: loaded[name] for name in loaded.files}


@pytest.mark.parametrize("case", CASES)
def test_with_batch_norm_it_is_the_original(file, case):
    statistics = {
        norm: {ours: file[f"{case}/buffer/{norm}.running_{ours}"] for ours in ("mean", "var")}
        for norm in ("norm_q", "norm_v")
    }
    tokens = lambda name: file[f"{case}/{name}"].transpose(0, 2, 3, 1).reshape(2, 25, 8)

    def layer(params, x, *, train):
        norm = partial(nn.BatchNorm, use_running_average=not train, epsilon=1e-5)
        variables = {"params": params, "batch_stats": statistics}
        return CASES[case](grid=(5, 5), norm=norm).apply(variables, x, mutable=["batch_stats"])[0]

    @jax.jit
    def results(params, x, cotangent):
        found, pull = jax.vjp(partial(layer, train=False), params, x)
        return found, *pull(cotangent), layer(params, x, train=True)

    params = tree(file, f"{case}/param/")
    found, of_params, of_input, in_training = results(params, *map(tokens, ("input_nchw", "cotangent")))
    assert_close(found, tokens("output_eval_nchw"))
    assert_close(of_input, tokens("grad_input"))
    assert_close(of_params, tree(file, f"{case}/grad/"))
    assert_close(in_training, tokens("output_train_nchw"))


def test_without_it_examples_do_not_depend_on_each_other():
    x = np.random.default_rng(0).normal(size=(2, 6, 8)).astype(np.float32)
    layer = CASES["global"](grid=(2, 3))
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    apply = jax.jit(layer.apply)
    other = np.stack([x[0], -x[1]])
    assert_close(apply(variables, x)[:1], apply(variables, other)[:1])


def test_a_line_of_tokens_knows_how_far_they_are_apart():
    """What another token gives depends on its distance alone, where no norm, key or query tells tokens apart."""
    layer = lambda_layer(1, 1)(grid=(4,), norm=lambda dtype, name: lambda x: x)
    params = {
        "to_q": {"kernel": jnp.ones((1, 1))},
        "to_k": {"kernel": jnp.zeros((1, 1))},
        "to_v": {"kernel": jnp.ones((1, 1))},
        "rel_pos_emb": jnp.arange(7.0).reshape(7, 1, 1),
    }
    x = jnp.array([[1.0], [0.0], [0.0], [0.0]])[None]
    content = 1 / 4  # the mean of the values
    first = jax.jit(layer.apply)({"params": params}, x + 1)[0, :, 0]  # queries of (2, 1, 1, 1)
    distance = np.arange(4)[None] - np.arange(4)[:, None] + 3
    values = np.array([2.0, 1, 1, 1])
    np.testing.assert_allclose(first, values * (content + 1 + distance @ values), rtol=1e-6)
