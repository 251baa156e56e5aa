import importlib.resources
import io

import jax
import numpy as np
import pytest
from PIL import Image

from vit_jax_mixer.data import images
from vit_jax_mixer.data.images import decoding, geometry
from vit_jax_mixer.errors import UserError


@pytest.fixture
def photo():
    """A smooth picture, u8[60, 80, 3]."""
    y, x = np.mgrid[0:60, 0:80]
    return np.stack([3 * y, 2 * x, 100 + y - x], -1).astype(np.uint8)


def run(spec, image, seed=0):
    return images.parse(spec, "here")(image, np.random.default_rng(seed))


def encoded(image, kind="PNG", **options):
    data = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(data, kind, **({"quality": 95} if kind == "JPEG" else {}), **options)
    return data.getvalue()


def real_jpegs():
    """The two photographs of 640 x 427 pixels that scikit-learn ships."""
    folder = importlib.resources.files("sklearn.datasets.images")
    return [(folder / name).read_bytes() for name in ("china.jpg", "flower.jpg")]


def pillow_array(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def difference(a, b):
    return np.abs(a.astype(float) - b).mean()


def test_decode_gives_the_channels_asked_for(photo):
    np.testing.assert_array_equal(run("decode(3)", encoded(photo)), photo)
    assert np.abs(run("decode(3)", encoded(photo, "JPEG")).astype(int) - photo).mean() < 2
    grey = run("decode(1)", encoded(photo))
    assert grey.shape == (60, 80, 1)
    luma = photo @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey[..., 0] - luma).max() <= 1
    np.testing.assert_array_equal(run("decode(3)", encoded(grey[..., 0])), np.repeat(grey, 3, -1))
    np.testing.assert_array_equal(run("decode(1)", grey), grey)


def test_jpegs_are_decoded_as_by_pillow():
    for data in real_jpegs():
        np.testing.assert_array_equal(run("decode(3)", data), pillow_array(data))
        grey = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
        assert difference(run("decode(1)", data)[..., 0], grey) < 1


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_the_rows_that_are_asked_for_are_those_of_the_whole(options):
    for original in real_jpegs():
        data = encoded(Image.open(io.BytesIO(original)), "JPEG", **options)
        whole = decoding.to_array(data, 3)
        for rows in (1, 100, 201, 400, 426, 427):
            part = decoding.to_array(data, 3, rows=rows)
            np.testing.assert_array_equal(part[:rows], whole[:rows])
            assert len(part) < rows + 64 or "progressive" in options
            half = decoding.to_array(data, 3, reduce=2, rows=rows)
            np.testing.assert_array_equal(half[: rows // 2], decoding.to_array(data, 3, reduce=2)[: rows // 2])


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF", "JPEG"])
def test_every_format_is_decoded(photo, kind):
    data = encoded(photo, kind, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(run("decode(3)", data), pillow_array(data))


def test_sixteen_bits_become_eight():
    values = np.array([[0, 128, 129, 257], [40_000, 65_406, 65_407, 65_535]], np.uint16)
    found = run("decode(1)", encoded(values))[..., 0]
    np.testing.assert_array_equal(found, np.round(values / 257))
    np.testing.assert_array_equal(run("decode(3)", encoded(values)), np.repeat(found[..., None], 3, -1))


def test_cmyk_and_transparency_become_rgb(photo):
    cmyk = encoded(Image.fromarray(photo).convert("CMYK"), "JPEG")
    assert difference(run("decode(3)", cmyk), photo) < 2
    assert difference(run("decode_crop(40, 1.0, 1.0)", cmyk), run("resize(40)", photo)) < 2
    alpha = np.dstack([photo, np.full((60, 80, 1), 7, np.uint8)])
    np.testing.assert_array_equal(run("decode(3)", encoded(alpha)), photo)
    palette = Image.fromarray(photo).quantize(8)
    np.testing.assert_array_equal(
        run("decode(3)", encoded(palette, transparency=bytes([0, 100] * 4))), np.asarray(palette.convert("RGB"))
    )


def test_of_an_animation_the_first_frame_is_taken(photo):
    frames = [Image.fromarray(photo).quantize(), Image.fromarray(photo[::-1].copy()).quantize()]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(run("decode(3)", data), np.asarray(frames[0].convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_sets_the_image_upright(photo, orientation, kind):
    # What a camera that was held otherwise stores: undoing Pillow's transposition gives the photo back.
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = {
        1: photo, 2: photo[:, ::-1], 3: np.rot90(photo, 2), 4: photo[::-1], 5: photo.transpose(1, 0, 2),
        6: np.rot90(photo, 1), 7: np.rot90(photo, 2).transpose(1, 0, 2), 8: np.rot90(photo, -1),
    }[orientation]  # fmt: skip
    data = encoded(np.ascontiguousarray(stored), kind, exif=exif)
    assert difference(run("decode(3)", data), photo) < 2
    assert difference(run("decode_crop(20, 1.0, 1.0)", data), run("resize(20)", photo)) < 2


def test_a_broken_exif_leaves_the_pixels(photo):
    plain = encoded(photo, "JPEG")
    for junk in (b"", b"II*\0", b"MM\0*\0\0\0\x08\xff\xff" + bytes(30), b"XX" * 50, b"II*\0\xff\xff\xff\x7f"):
        body = b"Exif\0\0" + junk
        data = plain[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + plain[2:]
        np.testing.assert_array_equal(run("decode(3)", data), pillow_array(plain))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_image_is_refused_unless_no_pixel_is_missing(photo, kind):
    data = encoded(photo, kind)
    for end in np.linspace(0, len(data) - 40, 20).astype(int):
        for spec in ("decode(3)", "decode_crop(8)"):
            with pytest.raises(UserError, match="cannot be decoded"):
                run(spec, data[:end])


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(100, 150), (427, 300), (300, 640), (500, 700), (37, 41)])
def test_resize_agrees_with_jax_image_resize(method, size):
    image = pillow_array(real_jpegs()[0])
    kind = {"bilinear": "linear", "bicubic": "bicubic"}[method]
    found = run(f"resize({size[0]}, {size[1]}, '{method}')", image)
    # Its bicubic kernel has another constant (a = -0.5, as Pillow's), and neither clips before the end.
    expected = np.clip(jax.image.resize(image.astype(np.float32), (*size, 3), kind, antialias=True), 0, 255)
    assert difference(found, expected) < 1 / 2


@pytest.mark.parametrize("size", [(300, 400), (250, 300), (224, 224), (200, 300), (96, 96), (480, 700)])
def test_the_quick_resize_is_near_the_exact_one(size):
    for data in real_jpegs():
        image = pillow_array(data)
        exact = run(f"resize({size[0]}, {size[1]})", image)
        found = geometry.quick_resize(image, size)
        assert difference(found, exact) < 1.8
        without = np.asarray(jax.image.resize(image.astype(np.float32), (*size, 3), "linear", antialias=False))
        assert size == (480, 700) or difference(found, exact) < 0.6 * difference(without, exact)


@pytest.mark.parametrize(("size", "bound"), [(224, 0.8), (100, 1.4), (50, 2.2)])
def test_decode_crop_takes_the_part_that_inception_crop_takes(size, bound):
    differences = []
    for seed in range(20):
        for data in real_jpegs():
            found = run(f"decode_crop({size})|flip_lr", data, seed)
            exact = run(f"decode(3)|inception_crop({size})|flip_lr", data, seed)
            assert found.shape == (size, size, 3)
            differences.append(difference(found, exact))
    assert np.mean(differences) < bound


@pytest.mark.parametrize(
    ("height", "width", "size", "bound"), [(1290, 129, 8, 5), (2000, 513, 32, 3), (1500, 1025, 64, 3)]
)
def test_decode_crop_of_odd_and_tall_images_takes_that_part_too(height, width, size, bound):
    photo = Image.open(io.BytesIO(real_jpegs()[0])).resize((width, height))
    data = encoded(photo, "JPEG")
    differences = [
        difference(run(f"decode_crop({size})", data, seed), run(f"decode(3)|inception_crop({size})", data, seed))
        for seed in range(20)
    ]
    assert np.mean(differences) < bound


def test_too_many_pixels_are_refused_whatever_part_is_drawn():
    data = encoded(Image.new("RGB", (8300, 8200)), "JPEG")
    for seed in range(8):
        with pytest.raises(UserError, match="8300 x 8200 pixels, more than the 67,108,864"):
            run("decode_crop(8)", data, seed)


def test_the_first_orientation_counts_also_behind_fill_bytes(photo):
    def segment(orientation):
        body = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([orientation, 0, 0, 0]) + bytes(4)
        return b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body

    plain = encoded(photo, "JPEG")
    expected = np.rot90(pillow_array(plain), -1)
    for head in (segment(6), b"\xff\xff" + segment(6), segment(6) + segment(1)):
        np.testing.assert_array_equal(run("decode(3)", plain[:2] + head + plain[2:]), expected)


def test_decode_crop_reads_arrays_and_grey_too(photo):
    assert run("decode_crop(16, channels=1)", encoded(photo, "JPEG")).shape == (16, 16, 1)
    assert run("decode_crop(16)", photo[..., :1]).shape == (16, 16, 3)
    assert difference(run("decode_crop(30)", photo, 3), run("inception_crop(30)", photo, 3)) < 1


def test_encoded_images_must_be_decoded_first(photo):
    for spec in ("flip_lr", "value_range(-1, 1)"):
        with pytest.raises(UserError, match="begin the operations with decode or decode_crop"):
            run(spec, encoded(photo))


def test_sizes_that_would_fill_the_memory_are_refused(photo):
    with pytest.raises(UserError, match="1x30000 pixels would become 256x7680000; crop it"):
        run("resize_small(256)", np.zeros((1, 30_000, 3), np.uint8))


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


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("decode(3)|flip", "here: 'flip' is not known; did you mean 'flip_lr'.*Known: "),
        ("decode(4)", r"here: decode\(4\): channels: '4' is not known.*Known: 1, 3"),
        ("value_range(0, 1)|flip_lr", "'flip_lr' comes after a device operation"),
        ("resize(size=3)", "has no field 'size'.*Known: height, method, width"),
        ("resize", "lacks the field 'height'"),
        ("resize(1, 2, 'bicubic', 3)", "has too many arguments; resize takes height, width, method"),
        ("resize(9, method='cubic')", "method: 'cubic' is not known; did you mean 'bicubic'.*Known: bicubic, bilinear"),
        ("resize(1, height=2)", "has too many arguments"),
        ("random_shift('a')", "pixels is 'a'; it must be of type int"),
        ("random_shift(-1)", "random_shift: pixels is -1; it must be from 0 to 8,192"),
        ("resize(__import__('os'))", "with literal arguments"),
        ("decode(3)||flip_lr", "not of the form"),
        ("decode_crop(0)", "decode_crop: size is 0; it must be from 1 to 8,192"),
        ("resize(5, -1)", "width is -1; it must be from 1 to 8,192"),
        ("center_crop(-4)", "size is -4; it must be from 1"),
        ("decode_crop(8, -1, 1)", "min_area is -1; it must be from 0 to 1"),
        ("inception_crop(8, 0.5, 0.1)", "areas must be above 0"),
        ("value_range(0, 1)|normalize", "normalize would scale the values again"),
        ("mixup(0.5)|random_erase|value_range(-1, 1)", "random_erase fills in values around 0; put it after"),
    ],
)
def test_a_misspelt_operation_is_one_sentence(spec, message):
    with pytest.raises(UserError, match=message):
        images.parse(spec, "here")
