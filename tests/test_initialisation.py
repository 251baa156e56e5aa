import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import assert_same
from vit_jax_mixer import models
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import initialisation, stacked

SMALL = dict(num_blocks=1, patch_size=8, hidden_dim=64)


def fresh(name, sizes):
    model = models.create(name, 7, **sizes)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))["params"]


def drawn(spec, params, seed=0):
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)
    found = jax.jit(initialisation.draw, static_argnums=0)(initialisation.parse(spec), jax.random.key(seed), zeros)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(stacked.unstack(found))
    }


@pytest.mark.parametrize(
    "of",
    [
        ("ResMlp", dict(SMALL, layerscale_init=0.1)),
        ("GMlp", SMALL),
        ("MlpMixer", dict(SMALL, tokens_mlp_dim=32, channels_mlp_dim=64)),
    ],
)
def test_kernels_and_biases_of_any_model_are_uniform_within_the_root_of_fan_in(of):
    found = drawn("kaiming_uniform", fresh(*of))
    assert found["stem/kernel"].shape == (8, 8, 3, 64)
    layers = [name for name in found if f"{name.rpartition('/')[0]}/kernel" in found]
    for name in layers:
        kernel = found[f"{name.rpartition('/')[0]}/kernel"]
        bound = np.prod(kernel.shape[:-1]) ** -0.5
        assert np.abs(found[name]).max() <= bound
        if found[name].size > 60:
            np.testing.assert_allclose(found[name].std(), bound / 3**0.5, rtol=0.2)
            assert abs(found[name].mean()) < 0.3 * bound
    assert not any(found[name].any() for name in found.keys() - layers)  # as norms, which keep what they have
    assert len({float(found[name].flat[0]) for name in layers}) == len(layers)


def test_values_depend_on_seed_and_name_alone():
    dense = {"kernel": jnp.zeros((4, 5)), "bias": jnp.zeros(5)}
    plain = drawn("kaiming_uniform", {"Block_0": {"Dense_0": dense}, "Block_1": {"Dense_0": dense}})
    block = {"Dense_0": jax.tree.map(lambda leaf: jnp.zeros((2, *leaf.shape)), dense)}
    scanned = drawn("kaiming_uniform", {"Block": {stacked.MARK: block}, "head": dense})
    for name in plain:
        np.testing.assert_array_equal(scanned[name], plain[name])
    assert (drawn("kaiming_uniform", {"head": dense}, seed=1)["head/kernel"] != scanned["head/kernel"]).all()


def test_arguments_of_the_spec():
    params = {"head": {"kernel": jnp.zeros((50, 40)), "bias": jnp.zeros(40)}, "stem": {"kernel": jnp.ones((50, 40))}}
    kept = drawn("kaiming_uniform(keep='head')", params)
    assert not kept["head/kernel"].any()
    assert kept["stem/kernel"].any()
    steep = drawn("kaiming_uniform(a=0)", params)
    assert 0.9 * (6 / 50) ** 0.5 < np.abs(steep["head/kernel"]).max() <= (6 / 50) ** 0.5
    assert np.abs(steep["head/bias"]).max() <= 50**-0.5
    # a layer for each of 3 columns: fan_in is of one of them
    columns = drawn("kaiming_uniform", {"kernel": jnp.zeros((3, 4, 50)), "bias": jnp.zeros((3, 50))})
    assert 0.45 < np.abs(columns["kernel"]).max() <= 0.5
    assert_same(initialisation.draw(initialisation.parse(""), jax.random.key(0), params), params)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("kaiming", "config.init: 'kaiming' is not known; did you mean 'kaiming_uniform'"),
        ("kaiming_uniform(keep='(')", r"config.init: keep='\(' is no regular expression"),
        ("kaiming_uniform(a=-1)", "a is -1; it must be from 0 to 1,000"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(spec, message):
    with pytest.raises(UserError, match=message):
        initialisation.parse(spec)
