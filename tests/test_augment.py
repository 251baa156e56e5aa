import collections

import numpy as np
import pytest
from PIL import Image, ImageOps

from vit_jax_mixer import specs
from vit_jax_mixer.data.images import augment, colour
from vit_jax_mixer.errors import UserError

EXAMPLES = {
    "randaugment": ["randaugment", "randaugment(2, 15)", "randaugment(3, 0)", "randaugment(4, 30)"],
    "timm_randaugment": ["timm_randaugment", "timm_randaugment('rand-m10-n4-mstd101-inc1-p1')"],
    "autoaugment": ["autoaugment"],
    "color_jitter": ["color_jitter", "color_jitter(2, 2, 2, 0.5)", "color_jitter(0, 0, 0)"],
    "grayscale": ["grayscale(0.5)"],
    "solarize": ["solarize(0.5)", "solarize(0.5, 300)"],
    "gaussian_blur": ["gaussian_blur(0.9)"],
    "cutout": ["cutout(1)", "cutout(8)", "cutout(500)"],
}


def build(spec):
    return specs.build(augment.AUGMENT_OPS, spec, "here")


def noise(*shape, seed=0, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, shape, dtype=np.uint8)


def difference(found, picture):
    """The absolute difference from a Pillow image, i64[H, W, C]."""
    return np.abs(found.astype(int) - np.asarray(picture).reshape(found.shape))


def repeat(spec, times):
    op, rng, image = build(spec), np.random.default_rng(1), noise(4, 4, 3)
    for _ in range(times):
        op(image, rng)


# --- The other operations --------------------------------------------------------------------------


def test_color_jitter_draws_factors_in_their_ranges_and_orders(monkeypatch):
    found = []
    for name in ("brightness", "contrast", "saturation", "hue"):
        monkeypatch.setattr(colour, name, lambda image, x, name=name: found.append((name, x)) or image)
    repeat("color_jitter(0.4, 1.5, 0.2, 0.1)", 1000)
    orders = collections.Counter(tuple(n for n, _ in found[i : i + 4]) for i in range(0, 4000, 4))
    assert len(orders) == 24
    bounds = dict(brightness=(0.6, 1.4), contrast=(0, 2.5), saturation=(0.8, 1.2), hue=(-0.1, 0.1))
    for name, (low, high) in bounds.items():
        drawn = np.array([x for n, x in found if n == name])
        assert low <= drawn.min() < low + 0.02 * (high - low)
        assert high >= drawn.max() > high - 0.02 * (high - low)
    found.clear()
    repeat("color_jitter(0, 0.4, 0)", 5)
    assert [name for name, _ in found] == ["contrast"] * 5


def test_color_jitter_changes_the_picture():
    picture = np.full((5, 5, 3), 100, np.uint8)
    found = [build("color_jitter(0.4, 0, 0)")(picture, np.random.default_rng(s))[0, 0, 0] for s in range(300)]
    assert 60 <= min(found) < 63
    assert 137 < max(found) <= 140


@pytest.mark.parametrize("spec", ["grayscale({})", "solarize({})", "gaussian_blur({})", "gaussian_blur({}, 1, 1)"])
def test_probability_is_honoured(spec):
    picture, rng = noise(12, 12, 3), np.random.default_rng(0)
    for probability, low, high in ((0, 0, 0), (0.2, 50, 110), (1, 400, 400)):
        op = build(spec.format(probability))
        # A sigma below about 0.2 changes nothing, hence the slack for one of them.
        slack = 50 if spec == "gaussian_blur({})" else 0
        assert low - slack <= sum(not np.array_equal(op(picture, rng), picture) for _ in range(400)) <= high


def test_grayscale_and_solarize_do_what_pillow_does():
    picture, rng = noise(30, 40, 3), np.random.default_rng(0)
    grey = Image.fromarray(picture).convert("L").convert("RGB")
    assert difference(build("grayscale(1.0)")(picture, rng), grey).max() == 0
    assert (
        difference(build("solarize(1, 90)")(picture, rng), ImageOps.solarize(Image.fromarray(picture), 90)).max() == 0
    )


@pytest.mark.parametrize("size", [1, 4, 7])
def test_cutout_is_a_square_about_any_pixel(size):
    picture, areas, middles = np.full((20, 30, 3), 9, np.uint8), set(), collections.Counter()
    op, rng = build(f"cutout({size})"), np.random.default_rng(0)
    for _ in range(2000):
        rows, columns = np.nonzero(op(picture, rng)[..., 0] == 0)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == height * width
        areas.add(len(rows))
        middles[rows[0] + size // 2, columns[0] + size // 2] += 1
    assert max(areas) == size**2
    assert size == 1 or min(areas) == ((size + 1) // 2) ** 2  # about a corner
    assert len(middles) > 0.7 * (20 - size) * (30 - size)
    assert (picture == 9).all()


# --- All operations --------------------------------------------------------------------------------

ALL = [spec for examples in EXAMPLES.values() for spec in examples]


def test_every_operation_has_an_example():
    assert set(EXAMPLES) == set(augment.AUGMENT_OPS)


@pytest.mark.parametrize("spec", ALL)
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_works_and_the_image_is_left_alone(spec, channels):
    op, rng = build(spec), np.random.default_rng(0)
    for height, width in ((1, 1), (1, 30), (30, 1), (2, 2), (33, 47)):
        picture = noise(height, width + 1, channels)[:, :0:-1]  # as flip_lr leaves it, not contiguous
        picture.flags.writeable = False
        before = picture.copy()
        for _ in range(40):
            found = op(picture, rng)
            assert (found.shape, found.dtype) == (picture.shape, np.uint8)
            assert found.flags.c_contiguous
        np.testing.assert_array_equal(picture, before)


@pytest.mark.parametrize("spec", ALL)
def test_the_seed_decides(spec):
    picture, op = noise(24, 24, 3), build(spec)
    first, second = ([op(picture, np.random.default_rng(s)) for s in range(8)] for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("randaugment(0)", "num_layers is 0; it must be from 1 to 100"),
        ("randaugment(2, -1)", "magnitude is -1; it must be from 0 to 100"),
        ("randaugment(2, 1.5)", "magnitude is 1.5; it must be of type int"),
        ("timm_randaugment('m9')", "'m9' must begin with 'rand'"),
        ("timm_randaugment('rand-m9-w0')", "'w0' is not known; known: m9, n2, mstd0.5, inc0, inc1, p0.5"),
        ("timm_randaugment('rand-m')", "'m' is not known"),
        ("timm_randaugment('rand--m9')", "'' is not known"),
        ("timm_randaugment('rand-m9.5')", "m must be a whole number, not 9.5"),
        ("timm_randaugment('rand-inc2')", "inc must be 0 or 1"),
        ("timm_randaugment('rand-n0')", "n must be from 1 to 100"),
        ("timm_randaugment('rand-p2')", "p must be 1 or less"),
        ("autoaugment('cifar')", "autoaugment: policy: 'cifar' is not known.*Known: cifar10"),
        ("color_jitter(-1)", "brightness is -1; it must be from 0 to 100"),
        ("color_jitter(hue=0.6)", "hue is 0.6; it must be from 0 to 0.5"),
        ("grayscale(1.1)", "probability is 1.1; it must be from 0 to 1"),
        ("solarize", "lacks the field 'probability'"),
        ("gaussian_blur(0.5, 0)", "min_sigma must be more than 0"),
        ("gaussian_blur(0.5, 2, 1)", "at most max_sigma"),
        ("cutout(0)", "size is 0; it must be from 1 to 8,192"),
    ],
)
def test_a_wrong_argument_is_one_sentence(spec, message):
    with pytest.raises(UserError, match=message):
        build(spec)
