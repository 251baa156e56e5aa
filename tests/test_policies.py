import collections

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from vit_jax_mixer import specs
from vit_jax_mixer.data.images import augment, policies


def build(spec):
    return specs.build(augment.AUGMENT_OPS, spec, "here")


def noise(*shape, seed=0, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, shape, dtype=np.uint8)


def smooth(height, width, channels=3):
    """A picture without edges, not symmetric in any way."""
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([128 + 90 * np.sin(x / 25), 128 + 90 * np.cos(y / 20 + x / 50), 60 + y + x / 2], -1)
    return picture.clip(0, 255).astype(np.uint8)[..., :channels].copy()


def difference(found, picture):
    """The absolute difference from a Pillow image, i64[H, W, C]."""
    return np.abs(found.astype(int) - np.asarray(picture).reshape(found.shape))


# --- Levels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "level", "expected"),
    [
        (
            policies.RANDAUGMENT,
            15,
            dict(Rotate=45, Posterize=6, Solarize=128, SolarizeAdd=165, Color=2.8, ContrastAboutCount=2.8)
            | dict(Brightness=2.8, Sharpness=2.8, ShearX=0.45, ShearY=0.45, TranslateX=150, TranslateY=150, Cutout=120),
        ),
        (policies.RANDAUGMENT, 5, dict(Rotate=15, Posterize=2, Solarize=128, SolarizeAdd=55, Color=1.0, Cutout=40)),
        (policies.RANDAUGMENT, 30, dict(Posterize=8)),
        (
            policies.TIMM,
            9,
            dict(Rotate=27, Posterize=3, Solarize=230, SolarizeAdd=99, Color=1.72, Contrast=1.72, Brightness=1.72)
            | dict(Sharpness=1.72, ShearX=0.27, ShearY=0.27, TranslateXRel=0.405, TranslateYRel=0.405),
        ),
        (policies.TIMM, 10, dict(Posterize=4, Solarize=256, SolarizeAdd=110)),
        (policies.TIMM_INCREASING, 9, dict(Rotate=27, Posterize=1, Solarize=26, Color=1.81, Contrast=1.81)),
        (policies.TIMM_INCREASING, -10, dict(Brightness=0.1, Sharpness=0.1, ShearX=-0.3)),
        (policies.AUTOAUGMENT_CIFAR10, 7, dict(Posterize=2, Solarize=77, ShearY=0.21, TranslateXRel=7 / 32)),
        (policies.AUTOAUGMENT_CIFAR10, 9, dict(Brightness=1.72, TranslateYRel=9 / 32)),
    ],
)
def test_amounts_at_levels(scale, level, expected):
    assert {name: scale.amounts[name](level / 10) for name in expected} == pytest.approx(expected)


def test_the_transforms_of_each_policy():
    common = {"AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color"}
    common |= {"Brightness", "Sharpness", "ShearX", "ShearY"}
    assert set(policies.RANDAUGMENT.amounts) == common | {"ContrastAboutCount", "TranslateX", "TranslateY", "Cutout"}
    assert set(policies.TIMM.amounts) == common | {"Contrast", "TranslateXRel", "TranslateYRel"}
    assert set(policies.TIMM_INCREASING.amounts) == set(policies.TIMM.amounts)
    assert len(policies.CIFAR10_PAIRS) == 25
    assert {name for pair in policies.CIFAR10_PAIRS for name, _, _ in pair} <= set(policies.AUTOAUGMENT_CIFAR10.amounts)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("Posterize", lambda p: ImageOps.posterize(p, 6)),
        ("Solarize", lambda p: ImageOps.solarize(p, 128)),
        ("Color", lambda p: ImageEnhance.Color(p).enhance(2.8)),
        ("Brightness", lambda p: ImageEnhance.Brightness(p).enhance(2.8)),
        ("Sharpness", lambda p: ImageEnhance.Sharpness(p).enhance(2.8)),
        ("ContrastAboutCount", lambda p: Image.blend(Image.new("RGB", p.size, (196,) * 3), p, 2.8)),
    ],
)
def test_randaugment_at_15_on_224_pixels(name, theirs):
    picture = smooth(224, 224)
    found = policies.RANDAUGMENT.distort(picture, name, 15, np.random.default_rng(0))
    assert difference(found, theirs(Image.fromarray(picture))).max() <= 1


def test_signed_transforms_go_both_ways():
    picture, rng = smooth(50, 50), np.random.default_rng(0)
    scale = policies.AUTOAUGMENT_CIFAR10
    left, right = (
        np.asarray(
            Image.fromarray(picture).transform((50, 50), Image.Transform.AFFINE, (1, 0, x, 0, 1, 0), fillcolor=f)
        )
        for x, f in ((12.5, scale.fill), (-12.5, scale.fill))
    )
    counts = collections.Counter()
    for _ in range(100):
        found = scale.distort(picture, "TranslateXRel", 8, rng).astype(int)
        counts[np.abs(found - left).mean() < np.abs(found - right).mean()] += 1
    assert 30 < counts[True] < 70
    assert tuple(scale.distort(picture, "TranslateYRel", 9, rng)[[0, -1], 7].tolist()).count(list(scale.fill)) == 1


# --- What the policies draw ------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    """The (name, amount) of each transform that is applied from now on; the image does not change."""
    found = []

    def recorder(name):
        return lambda image, amount, scale, rng: found.append((name, amount)) or image

    monkeypatch.setattr(policies, "TRANSFORMS", {name: recorder(name) for name in policies.TRANSFORMS})
    return found


def repeat(spec, times):
    op, rng, image = build(spec), np.random.default_rng(1), noise(4, 4, 3)
    for _ in range(times):
        op(image, rng)


def test_randaugment_draws_uniformly_and_always_applies(drawn):
    repeat("randaugment(2, 10)", 3200)
    assert len(drawn) == 6400
    counts = collections.Counter(name for name, _ in drawn)
    assert set(counts) == set(policies.RANDAUGMENT.amounts)
    assert all(320 < count < 480 for count in counts.values())  # 400, four standard deviations each way
    assert collections.Counter(amount > 0 for name, amount in drawn if name == "Rotate").keys() == {True, False}
    assert {abs(amount) for name, amount in drawn if name == "Rotate"} == {30}


def test_timm_applies_half_at_normal_magnitudes(drawn):
    repeat("timm_randaugment('rand-m5-n3-mstd0.5')", 3000)
    assert 4250 < len(drawn) < 4750
    counts = collections.Counter(name for name, _ in drawn)
    assert set(counts) == set(policies.TIMM.amounts)
    assert max(counts.values()) - min(counts.values()) < 130  # about 300 each
    levels = [abs(amount) / 3 for name, amount in drawn if name == "Rotate"]
    assert np.mean(levels) == pytest.approx(5, abs=0.15)
    assert np.std(levels) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("config", "count", "levels", "most"),
    [
        ("rand-m9-n1-p1", 600, (9, 9), 9),
        ("rand-p1", 1200, (10, 10), 10),
        ("rand-m15-n1-p1.0", 600, (10, 10), 10),  # clipped, as in timm
        ("rand-m9-n1-mstd1-p1", 600, (8, 10), 10),
        ("rand-m8-n2-mstd101-p1", 1200, (0.5, 7.5), 8),
        ("rand-m9-n1-p0", 0, None, None),
    ],
)
def test_parts_of_the_timm_config(drawn, config, count, levels, most):
    repeat(f"timm_randaugment('{config}')", 600)
    assert len(drawn) == count
    if levels:
        found = [abs(amount) / 3 for name, amount in drawn if name == "Rotate"]
        assert min(found) <= levels[0] + 1e-9
        assert max(found) >= levels[1] - 1e-9
        assert max(found) <= most


@pytest.mark.parametrize(("inc", "expected"), [(0, {1.72}), (1, {0.19, 1.81})])
def test_timm_inc(drawn, inc, expected):
    repeat(f"timm_randaugment('rand-m9-p1-inc{inc}')", 300)
    assert {round(amount, 6) for name, amount in drawn if name in ("Color", "Contrast")} == expected


def test_autoaugment_draws_pairs_with_their_probabilities(drawn):
    op, rng, image = build("autoaugment('cifar10')"), np.random.default_rng(2), noise(4, 4, 3)
    found = collections.Counter()
    for _ in range(10_000):
        drawn.clear()
        op(image, rng)
        assert len(drawn) <= 2
        found.update(name for name, _ in drawn)
    expected = collections.Counter()
    for pair in policies.CIFAR10_PAIRS:
        for name, probability, _ in pair:
            expected[name] += 10_000 / 25 * probability
    for name, count in expected.items():
        assert found[name] == pytest.approx(count, abs=5 * np.sqrt(count))


@pytest.mark.parametrize("name", policies.TRANSFORMS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 30, 3), (224, 224, 3), (224, 223, 1)])
def test_every_transform_takes_any_size(name, shape):
    picture, rng = noise(*shape), np.random.default_rng(0)
    scale = policies.TIMM
    found = policies.TRANSFORMS[name](picture, 3, scale, rng)
    assert (found.shape, found.dtype, found.flags.c_contiguous) == (shape, np.uint8, True)
