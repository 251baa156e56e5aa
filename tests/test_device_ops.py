"""Operations inside the jitted step: their formulas, and what they draw."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vit_jax_mixer.data import images
from vit_jax_mixer.errors import UserError

BATCH = 6


@functools.cache
def compiled(spec):
    return jax.jit(images.parse(spec, "here").on_device)


def run(spec, pixels, targets=None, seed=0):
    key = None if targets is None else jax.random.key(seed)
    return compiled(spec)(jnp.asarray(pixels), targets, key)


@pytest.fixture
def batch():
    """Images of one value each, u8[B, 32, 24, 3], and one-hot targets."""
    values = np.arange(BATCH, dtype=np.uint8) * 40
    return np.broadcast_to(values[:, None, None, None], (BATCH, 32, 24, 3)), np.eye(BATCH, dtype=np.float32)


def test_value_range_and_normalize_are_their_formulas():
    pixels = np.array([0, 255, 51] * 4, np.uint8).reshape(1, 2, 2, 3)
    np.testing.assert_allclose(run("value_range(-1, 1)", pixels)[0], pixels / 127.5 - 1, atol=1e-6)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(run("normalize", pixels)[0], (pixels / 255 - mean) / std, atol=1e-5)
    grey = run("normalize((0.5,), (0.25,))", pixels[..., :1])[0]
    np.testing.assert_allclose(grey, (pixels[..., :1] / 255 - 0.5) / 0.25, atol=1e-5)


def test_the_host_sends_a_byte_a_value(batch):
    ops = images.parse("decode(3)|flip_lr|value_range(-1, 1)|mixup(0.5)", "here")
    assert ops(batch[0][0], np.random.default_rng(0)).dtype == np.uint8
    floats, _ = jax.eval_shape(ops.on_device, batch[0], batch[1], jax.random.key(0))
    assert floats.size * floats.dtype.itemsize == 4 * batch[0].nbytes


@pytest.mark.parametrize("order", ["mixup(0.5)|value_range(0, 255)", "value_range(0, 255)|mixup(0.5)"])
def test_mixup_mixes_images_and_targets_alike(batch, order):
    shares = []
    for seed in range(60):
        mixed, targets = run(order, *batch, seed=seed)
        share = float(targets[0, 0])
        np.testing.assert_allclose(targets, share * batch[1] + (1 - share) * batch[1][::-1], atol=1e-6)
        floats = batch[0].astype(np.float32)
        np.testing.assert_allclose(mixed, share * floats + (1 - share) * floats[::-1], atol=1e-3)
        shares.append(share)
    assert scipy.stats.kstest(shares, scipy.stats.beta(0.5, 0.5).cdf).pvalue > 0.01


def test_cutmix_replaces_a_rectangle_and_mixes_by_its_area(batch):
    areas, centres = [], []
    for seed in range(80):
        mixed, targets = run("cutmix(1.0)|value_range(0, 255)", *batch, seed=seed)
        replaced = np.asarray(mixed[0, ..., 0]) != batch[0][0, 0, 0, 0]
        for row in range(BATCH):
            expected = np.where(replaced[..., None], batch[0][::-1][row], batch[0][row])
            np.testing.assert_allclose(mixed[row], expected, atol=1e-3)
        rows, columns = np.flatnonzero(replaced.any(1)), np.flatnonzero(replaced.any(0))
        assert replaced.sum() == len(rows) * len(columns)
        if len(rows):
            assert np.ptp(rows) + 1 == len(rows)
            centres.append((rows.mean() / 32, columns.mean() / 24))
        np.testing.assert_allclose(targets[0, 0], 1 - replaced.mean(), atol=1e-6)
        areas.append(replaced.mean())
    # Beta(1, 1) before clipping at the borders, which halves the largest.
    assert 0.15 < np.mean(areas) < 0.45
    np.testing.assert_allclose(np.mean(centres, 0), 0.5, atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "cut", "mixed"),
    [("", 0.5, 0.5), ("switch=0.2", 0.2, 0.8), ("0.8, 0", 0, 1), ("0, 1", 1, 0), ("probability=0.5", 0.25, 0.25)],
)
def test_mixing_switches_between_the_two(batch, arguments, cut, mixed):
    counts = {"cut": 0, "mixed": 0}
    tries = 120
    for seed in range(tries):
        image = np.asarray(run(f"mixup_or_cutmix({arguments})|value_range(0, 255)", *batch, seed=seed)[0][0, ..., 0])
        if np.ptp(image) > 1e-3 or np.abs(image - 200).max() < 1e-3:  # a box may cover all of an image
            counts["cut"] += 1
        elif np.abs(image).max() > 1e-3:
            counts["mixed"] += 1
    # A tiny box can be empty, so cutmix may leave no trace.
    assert abs(counts["cut"] / tries - cut) < 0.15
    assert abs(counts["mixed"] / tries - mixed) < 0.15


@pytest.mark.parametrize("mode", ["noise", "zero"])
def test_random_erase_replaces_a_rectangle_in_its_share_of_images(mode):
    pixels = np.full((400, 40, 30, 3), 255, np.uint8)
    found, targets = run(f"value_range(0, 9)|random_erase(0.25, '{mode}')", pixels, np.zeros((400, 2), np.float32))
    found = np.asarray(found)
    erased = (np.abs(found - 9) > 1e-4).any(-1)
    used = erased.any((1, 2))
    assert 0.17 < used.mean() < 0.33
    areas = erased[used].mean((1, 2))
    assert 0.01 < areas.min() < 0.06
    assert 0.28 < areas.max() < 0.36
    for mask in erased[used]:
        assert mask.sum() == mask.any(0).sum() * mask.any(1).sum()
    values = found[erased]
    if mode == "zero":
        assert not values.any()
    else:
        assert abs(values.mean()) < 0.02
        assert abs(values.std() - 1) < 0.02
    np.testing.assert_array_equal(targets, 0)


def test_two_operations_draw_apart(batch):
    once = run("value_range(0, 1)|mixup(1.0)", *batch)[1]
    twice = run("value_range(0, 1)|mixup(1.0)|mixup(1.0)", *batch)[1]
    share, both = float(once[0, 0]), float(twice[0, 0])
    assert abs(both - (share**2 + (1 - share) ** 2)) > 1e-3


@pytest.mark.parametrize("spec", ["mixup(0.5)", "cutmix(1.0)", "value_range(0, 1)|random_erase"])
def test_evaluation_has_no_random_operation(batch, spec):
    with pytest.raises(UserError, match="for training alone; leave"):
        run(spec, batch[0])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mixup(0)", "alpha must be above 0"),
        ("mixup(1e-320)", "alpha must be above 0"),
        ("value_range(0, 1e-320)", "is no range"),
        ("mixup_or_cutmix(switch=2)", "switch is 2; it must be from 0 to 1"),
        ("value_range(0, 1)|random_erase(mode='blue')", "mode: 'blue' is not known.*Known: noise, zero"),
        ("value_range(0, 1)|random_erase(2)", "probability is 2; it must be from 0 to 1"),
        ("normalize((1, 2), (1,))", "mean and std must be of one length"),
    ],
)
def test_arguments_that_cannot_work_are_one_sentence(spec, message):
    with pytest.raises(UserError, match=message):
        images.parse(spec, "here")


@pytest.mark.parametrize("spec", ["value_range(0, 1)|random_erase(1, 'zero', 1, 1)", "mixup_or_cutmix(1, 1, 1, 0)"])
def test_a_share_may_be_a_whole_number(batch, spec):
    jax.eval_shape(compiled(spec), *map(jnp.asarray, batch), jax.random.key(0))


def test_normalizing_other_channels_is_one_sentence(batch):
    with pytest.raises(UserError, match="3 means for images of 1 channels"):
        run("normalize", batch[0][..., :1])
