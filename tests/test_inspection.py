"""What `inspection` finds in parameters and tokens that are known."""

import math
from functools import partial

import jax
import numpy as np
import pytest

from vit_jax_mixer import inspection, models, pretrained
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import stacked
from vit_jax_mixer.trained import open_model

MIXER = dict(num_blocks=2, patch_size=4, hidden_dim=8, tokens_mlp_dim=5, channels_mlp_dim=16)
SIZES = {
    "MlpMixer": MIXER,
    "ResMlp": dict(num_blocks=2, patch_size=4, hidden_dim=8, layerscale_init=0.1),
    "GMlp": dict(num_blocks=2, patch_size=4, hidden_dim=8),
}
GRID = (2, 3)


def params_of(name, **changes):
    model = models.create(name, num_classes=3, **{**SIZES[name], **changes})
    like = jax.eval_shape(partial(stacked.init, model), jax.random.key(0), np.zeros((1, 8, 12, 3), np.float32))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda value: rng.normal(size=value.shape).astype(np.float32), like)


def waves(*frequencies):
    """Return horizontal waves over 8x8 tokens, of so many cycles in all."""
    x = np.arange(8) / 8
    return np.stack([np.broadcast_to(np.cos(2 * np.pi * f * x), (8, 8)) for f in frequencies])


@pytest.mark.parametrize("name", SIZES)
def test_the_table_counts_every_parameter(name):
    params = params_of(name)
    rows = inspection.parameter_table(params)
    assert sum(count for *_, count in rows) == sum(value.size for value in jax.tree.leaves(params))
    assert all(count == times * math.prod(shape) for _, shape, times, count in rows)
    assert {times for row, _, times, _ in rows if "Block_*/" in row} == {2}


def test_the_table_of_a_model_that_loops_over_its_blocks_is_the_same():
    assert inspection.parameter_table(params_of("MlpMixer", scan=True)) == inspection.parameter_table(
        params_of("MlpMixer")
    )


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("MlpMixer", "MixerBlock_1/token_mixing/Dense_0/kernel"),
        ("ResMlp", "ResMlpBlock_1/token_mixing/kernel"),
        ("GMlp", "GMlpBlock_1/spatial_gating/token_mixing/kernel"),
    ],
)
def test_a_map_has_the_weights_of_a_unit_where_the_patches_lie(name, kernel):
    params = params_of(name)
    weights = np.asarray(pretrained.flatten(params)[kernel])
    maps = inspection.token_mixing_maps(params, GRID, block=1)
    assert maps.shape == (weights.shape[1], *GRID)
    for token in range(6):
        np.testing.assert_array_equal(maps[:, token // 3, token % 3], weights[token])


def test_a_block_or_a_grid_that_is_not_there_is_told():
    params = params_of("MlpMixer")
    with pytest.raises(UserError, match="block 2"):
        inspection.token_mixing_maps(params, GRID, block=2)
    with pytest.raises(UserError, match="6 tokens, a grid of 3x3"):
        inspection.token_mixing_maps(params, (3, 3), block=0)


def test_frequencies_are_those_of_waves():
    found = inspection.frequencies(np.concatenate([waves(0, 1, 4), waves(4) * waves(4).swapaxes(1, 2)]))
    np.testing.assert_allclose(found, [0, 1 / 8, 1 / 2, math.sqrt(1 / 2)], atol=1e-12)


def test_opposites_stand_together_in_the_order_of_their_frequency():
    low, high, middle = waves(1, 3, 2)
    order = inspection.opposite_pairs(np.stack([high, low, middle, -2 * low, -high, -3 * middle]))
    assert [set(pair) for pair in order.reshape(3, 2).tolist()] == [{1, 3}, {2, 5}, {0, 4}]
    odd = inspection.opposite_pairs(np.stack([low, high, -low]))
    assert odd.tolist() == [0, 2, 1]


def test_a_contact_sheet_shows_each_map_by_its_own_scale():
    maps = np.arange(1, 6)[:, None, None] * np.array([[1.0, -0.5]])  # 5 maps of 1x2
    sheet = inspection.contact_sheet(maps, columns=3)
    gap = np.nan
    first, last = [1, -0.5, gap, 1, -0.5, gap, 1, -0.5], [1, -0.5, gap, 1, -0.5, gap, gap, gap]
    np.testing.assert_array_equal(sheet, [first, [gap] * 8, last])
    wide = inspection.contact_sheet(maps, columns=4, group=2)
    np.testing.assert_array_equal(wide[0], [1, -0.5, gap, 1, -0.5, gap, gap, 1, -0.5, gap, 1, -0.5])


def test_the_tokens_of_the_last_block_are_pooled_to_the_features(digits_run):
    trained = open_model(str(digits_run))
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    tokens = inspection.block_tokens(trained, images)
    assert inspection.grid_of(trained) == (4, 4)
    assert [block.shape for block in tokens] == [(3, 16, 64)] * 2
    last = tokens[-1].astype(np.float64)
    norm = jax.device_get(trained.params["pre_head_layer_norm"])
    scaled = (last - last.mean(-1, keepdims=True)) / np.sqrt(last.var(-1, keepdims=True) + 1e-6)
    features = (scaled * norm["scale"] + norm["bias"]).mean(1)
    found = jax.device_get(jax.jit(trained.outputs)(trained.params, images))["features"]
    np.testing.assert_allclose(found, features, atol=1e-4)


@pytest.mark.parametrize("channels", [2, 7])
def test_colours_follow_what_varies_most(channels):
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(4, 6, channels)) * ([9, 1] + [0.1] * (channels - 2))
    colours = inspection.principal_colours(tokens, GRID)
    assert colours.shape == (4, *GRID, 3)
    assert colours.min() >= 0
    assert colours.max() <= 1
    red = np.corrcoef(colours[..., 0].ravel(), tokens[..., 0].ravel())[0, 1]
    assert abs(red) > 0.98


def test_similarity_knows_no_rotation_scale_or_shift():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 500, 10, 4))
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    found = inspection.similarities([one, 3 * one @ rotation + 5, other, np.concatenate([one, other], -1)])
    np.testing.assert_allclose(found, found.T)
    np.testing.assert_allclose(np.diag(found), 1)
    assert found[0, 1] == pytest.approx(1, abs=1e-5)
    assert found[0, 2] < 0.01
    # Half of its variance is shared: 1 / sqrt(2)
    assert found[0, 3] == pytest.approx(math.sqrt(0.5), abs=0.02)
