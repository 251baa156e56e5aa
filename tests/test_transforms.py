"""The elementary transforms, colour and warp, against Pillow as the independent implementation."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vit_jax_mixer.data.images import colour, warp


def noise(*shape, seed=0, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, shape, dtype=np.uint8)


def smooth(height, width, channels=3):
    """A picture without edges, not symmetric in any way."""
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([128 + 90 * np.sin(x / 25), 128 + 90 * np.cos(y / 20 + x / 50), 60 + y + x / 2], -1)
    return picture.clip(0, 255).astype(np.uint8)[..., :channels].copy()


def pillow(image):
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def difference(found, picture):
    """The absolute difference from a Pillow image, i64[H, W, C]."""
    return np.abs(found.astype(int) - np.asarray(picture).reshape(found.shape))


FACTORS = (0.0, 0.1, 0.55, 1.0, 1.36, 1.9, 2.8)
COLOURS = [
    (colour.autocontrast, ImageOps.autocontrast, [()], 0),
    (colour.equalize, ImageOps.equalize, [()], 0),
    (colour.invert, ImageOps.invert, [()], 0),
    (colour.posterize, ImageOps.posterize, [(bits,) for bits in range(1, 9)], 0),
    (colour.solarize, ImageOps.solarize, [(t,) for t in (0, 1, 100, 128, 255, 256, 384)], 0),
    (colour.brightness, lambda p, f: ImageEnhance.Brightness(p).enhance(f), [(f,) for f in FACTORS], 0),
    (colour.contrast, lambda p, f: ImageEnhance.Contrast(p).enhance(f), [(f,) for f in FACTORS], 0),
    (colour.saturation, lambda p, f: ImageEnhance.Color(p).enhance(f), [(f,) for f in FACTORS], 1),
    (colour.sharpness, lambda p, f: ImageEnhance.Sharpness(p).enhance(f), [(f,) for f in FACTORS], 1),
]


@pytest.mark.parametrize(("ours", "theirs", "arguments", "bound"), COLOURS, ids=[c[0].__name__ for c in COLOURS])
@pytest.mark.parametrize("channels", [1, 3])
def test_colours_agree_with_pillow(ours, theirs, arguments, bound, channels):
    pictures = [
        noise(64, 49, channels),
        noise(31, 200, channels, low=60, high=130),
        smooth(120, 100, channels),
        np.full((20, 20, channels), 77, np.uint8),
        noise(1, 1, channels),
        noise(2, 9, channels),
        noise(3, 3, channels, low=5, high=8),
    ]
    for picture in pictures:
        for given in arguments:
            apart = difference(ours(picture, *given), theirs(pillow(picture), *given))
            assert apart.max() <= bound, given
            assert apart.mean() < 0.02, given  # cut off, not rounded


def test_grey_agrees_with_pillow_on_every_hundredth_colour():
    colours = np.stack(np.unravel_index(np.arange(0, 2**24, 97), (256,) * 3), -1).astype(np.uint8)[None]
    np.testing.assert_array_equal(colour.grey(colours), np.asarray(Image.fromarray(colours).convert("L")))


def test_posterize_to_no_bits_is_black_and_solarize_add_stops_at_255():
    assert not colour.posterize(noise(5, 5, 3), 0).any()
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    found = colour.solarize_add(values, 165).ravel()
    np.testing.assert_array_equal(found, [min(255, v + 165) if v < 128 else v for v in range(256)])


def test_hue_turns_as_pillows_hsv_does():
    picture = smooth(60, 70)
    for turn in (-0.5, -0.1, 0.25, 1 / 3):
        hsv = np.array(Image.fromarray(picture).convert("HSV"))
        hsv[..., 0] += np.uint8(round(turn * 256) % 256)
        bands = [Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(hsv, -1, 0)]
        expected = Image.merge("HSV", bands).convert("RGB")
        assert difference(colour.hue(picture, turn), expected).mean() < 2
    red = np.full((1, 1, 3), (200, 0, 0), np.uint8)
    assert np.abs(colour.hue(red, 1 / 3).astype(int) - (0, 200, 0)).max() <= 4  # 256 is not a multiple of 3


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_gaussian_blur_is_pillows(sigma):
    picture = noise(60, 60, 3)
    expected = pillow(picture).filter(ImageFilter.GaussianBlur(sigma))  # itself an approximation
    assert difference(colour.gaussian_blur(picture, sigma), expected)[10:-10, 10:-10].mean() < 2
    assert difference(picture, expected)[10:-10, 10:-10].mean() > 20


INTERPOLATIONS = {
    cv2.INTER_NEAREST: Image.Resampling.NEAREST,
    cv2.INTER_LINEAR: Image.Resampling.BILINEAR,
    cv2.INTER_CUBIC: Image.Resampling.BICUBIC,
}
FILL = (124, 116, 104)


def affine(picture, matrix, resample):
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=FILL)


WARPS = [
    (warp.rotation, 17.0, lambda p, a, r: p.rotate(a, resample=r, fillcolor=FILL)),
    (warp.rotation, -30.0, lambda p, a, r: p.rotate(a, resample=r, fillcolor=FILL)),
    (warp.shear_x, 0.3, lambda p, a, r: affine(p, (1, a, 0, 0, 1, 0), r)),
    (warp.shear_y, -0.17, lambda p, a, r: affine(p, (1, 0, 0, a, 1, 0), r)),
    (warp.translate_x, 20.0, lambda p, a, r: affine(p, (1, 0, a, 0, 1, 0), r)),
    (warp.translate_x, -13.3, lambda p, a, r: affine(p, (1, 0, a, 0, 1, 0), r)),
    (warp.translate_y, 7.6, lambda p, a, r: affine(p, (1, 0, 0, 0, 1, a), r)),
    (warp.translate_x_rel, 0.2, lambda p, a, r: affine(p, (1, 0, a * p.width, 0, 1, 0), r)),
    (warp.translate_y_rel, -0.2, lambda p, a, r: affine(p, (1, 0, 0, 0, 1, a * p.height), r)),
]


@pytest.mark.parametrize(("matrix", "amount", "theirs"), WARPS)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("shape", [(100, 140), (91, 75)])
def test_warps_agree_with_pillow(matrix, amount, theirs, interpolation, shape):
    picture = smooth(*shape)
    found = warp.warp(picture, matrix(amount, *shape), FILL, interpolation)
    apart = difference(found, theirs(Image.fromarray(picture), amount, INTERPOLATIONS[interpolation]))
    # Half a pixel off would be 1 to 2 on average; the wrong direction tens.
    assert apart[30:-30, 30:-30].mean() < 0.75
    assert (apart.max(-1) > 3).mean() < 0.06  # only where the fill begins


def test_warps_go_the_way_that_pillow_goes():
    dot = np.zeros((21, 31, 1), np.uint8)
    dot[4, 20] = 255

    def place(matrix):
        return tuple(int(i) for i in np.argwhere(warp.warp(dot, matrix, (0,), cv2.INTER_NEAREST))[0][:2])

    assert place(warp.translate_x(3, 21, 31)) == (4, 17)
    assert place(warp.translate_y(-2, 21, 31)) == (6, 20)
    assert place(warp.translate_x_rel(5 / 31, 21, 31)) == (4, 15)
    assert place(warp.translate_y_rel(1 / 21, 21, 31)) == (3, 20)
    # From the middle, (10, 15), it lies 6 up and 5 to the right; counter-clockwise: 5 up and 6 to the left.
    assert place(warp.rotation(90, 21, 31)) == (5, 9)
    assert place(warp.shear_x(2 / 3, 21, 31)) == (4, 17)
    assert place(warp.shear_y(-0.5, 21, 31)) == (14, 20)
