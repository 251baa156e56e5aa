import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vit_jax_mixer.data import images
from vit_jax_mixer.errors import UserError


@pytest.fixture
def photo():
    """A smooth picture, u8[60, 80, 3]."""
    y, x = np.mgrid[0:60, 0:80]
    return np.stack([3 * y, 2 * x, 100 + y - x], -1).astype(np.uint8)


def run(spec, image, seed=0):
    return images.parse(spec, "here")(image, np.random.default_rng(seed))


def encoded(image, kind="PNG"):
    data = io.BytesIO()
    Image.fromarray(image).save(data, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return data.getvalue()


def test_decode_gives_the_channels_asked_for(photo):
    np.testing.assert_array_equal(run("decode(3)", encoded(photo)), photo)
    assert np.abs(run("decode(3)", encoded(photo, "JPEG")).astype(int) - photo).mean() < 2
    grey = run("decode(1)", encoded(photo))
    assert grey.shape == (60, 80, 1)
    luma = photo @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey[..., 0] - luma).max() <= 1
    np.testing.assert_array_equal(run("decode(3)", encoded(grey[..., 0])), np.repeat(grey, 3, -1))
    np.testing.assert_array_equal(run("decode(1)", grey), grey)


def test_sixteen_bit_pixels_are_refused():
    deep = encoded(np.full((4, 4), 40_000, np.uint16))
    with pytest.raises(UserError, match="not 8 bits a channel"):
        run("decode(1)", deep)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_image_is_refused_unless_no_pixel_is_missing(photo, kind):
    data = encoded(photo, kind)
    for end in np.linspace(0, len(data) - 40, 20).astype(int):
        with pytest.raises(UserError, match="cannot be decoded"):
            run("decode(3)", data[:end])


def test_resize_averages_what_it_shrinks(photo):
    small = run("decode(3)|resize(15, 20)", photo)
    assert small.shape == (15, 20, 3)
    means = photo.reshape(15, 4, 20, 4, 3).mean((1, 3))
    assert np.abs(small[1:-1, 1:-1] - means[1:-1, 1:-1]).max() <= 1
    assert run("resize(9)", photo).shape == (9, 9, 3)


def test_resize_small_keeps_the_aspect_ratio_and_center_crop_takes_the_middle(photo):
    assert run("resize_small(30)", photo).shape == (30, 40, 3)
    assert run("resize_small(30)", photo.transpose(1, 0, 2)).shape == (40, 30, 3)
    np.testing.assert_array_equal(run("center_crop(40)", photo), photo[10:50, 20:60])
    with pytest.raises(UserError, match=r"center_crop\(61\) of 60x80 pixels"):
        run("center_crop(61)", photo)


def test_inception_crop_takes_parts_of_the_areas_asked_for():
    # Each pixel says where it is, so the corners of the result say what was taken.
    y, x = np.mgrid[0:200, 0:240]
    picture = np.stack([y, x, 0 * x], -1).astype(np.uint8)
    areas, tops = [], set()
    for seed in range(200):
        crop = run("inception_crop(100)", picture, seed).astype(float)
        height, width = (crop[-1, 0, 0] - crop[0, 0, 0]) * 1.01, (crop[0, -1, 1] - crop[0, 0, 1]) * 1.01
        areas.append(height * width / (200 * 240))
        tops.add(crop[0, 0, 0])
        assert 0.7 < width / height < 1.4 or areas[-1] > 0.95
    assert 0.03 < min(areas) < 0.12
    assert max(areas) > 0.8
    assert len(tops) > 40


def test_flip_lr_flips_one_half(photo):
    flipped = [not np.array_equal(run("flip_lr", photo, seed), photo) for seed in range(200)]
    assert 70 < sum(flipped) < 130
    seed = flipped.index(True)
    np.testing.assert_array_equal(run("flip_lr", photo, seed), photo[:, ::-1])


def test_random_shift_moves_within_its_bound_and_brings_in_black():
    dot = np.zeros((9, 9, 1), np.uint8)
    dot[4, 4] = 255
    found = {tuple(np.argwhere(run("random_shift(2)", dot, seed))[0][:2]) for seed in range(400)}
    assert found == {(y, x) for y in range(2, 7) for x in range(2, 7)}
    assert {run("random_shift(2)", np.full((9, 9, 1), 255, np.uint8), seed).min() for seed in range(50)} == {0, 255}


def test_value_range_runs_on_the_device_as_the_last(photo):
    ops = images.parse("decode(3)|value_range(-1, 1)", "here")
    assert ops(photo, np.random.default_rng(0)).dtype == np.uint8
    found = ops.on_device(jnp.asarray([[0, 255, 51]], jnp.uint8))
    np.testing.assert_allclose(found, [[-1, 1, -0.6]], rtol=1e-6)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("decode(3)|flip", "here: 'flip' is not known; did you mean 'flip_lr'.*Known: center_crop"),
        ("decode(4)", "decode: channels: '4' is not known.*Known: 1, 3"),
        ("value_range(0, 1)|flip_lr", "'flip_lr' comes after a device operation"),
        ("resize(size=3)", "has no field 'size'.*Known: height, width"),
        ("resize", "lacks the field 'height'"),
        ("resize(1, 2, 3)", "has too many arguments; resize takes height, width"),
        ("resize(1, height=2)", "has too many arguments"),
        ("random_shift('a')", "pixels is 'a'; it must be of type int"),
        ("random_shift(-1)", "pixels must be 0 or more"),
        ("resize(__import__('os'))", "with literal arguments"),
        ("decode(3)||flip_lr", "not of the form"),
    ],
)
def test_a_misspelt_operation_is_one_sentence(spec, message):
    with pytest.raises(UserError, match=message):
        images.parse(spec, "here")
