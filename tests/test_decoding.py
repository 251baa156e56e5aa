"""Files whose metadata is damaged or which promise too much: what is read of them, and what it may cost."""

import threading

import numpy as np
import pytest
from PIL import Image

from tests import hostile_images
from tests.hostile_images import encoded, exif, jpeg_with, photo, png_with, webp_with
from vit_jax_mixer.data import images
from vit_jax_mixer.data.images import containers, decoding, room
from vit_jax_mixer.errors import UserError


def run(spec, image, seed=0):
    return images.parse(spec, "here")(image, np.random.default_rng(seed))


@pytest.mark.parametrize("name", hostile_images.sound())
def test_sound_pixels_are_read_whatever_the_metadata(name):
    data, plain = hostile_images.sound()[name]
    for spec in ("decode(3)", "decode(1)", "decode_crop(20)"):
        found = run(spec, data)
        if plain is not None:
            np.testing.assert_array_equal(found, run(spec, plain))
    assert decoding.format_of(data).split()[0] in decoding.FORMATS


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("value", "kind"), [*((v, 3) for v in (*range(10), 255, 65_535)), (6, 1), (6, 4), (2**31, 4)])
def test_each_way_of_decoding_reads_the_same_orientation(value, kind, order):
    body = exif(value, kind, order=order)
    jpeg, cmyk = encoded(photo(), "JPEG", quality=95), encoded(photo().convert("CMYK"), "JPEG", quality=95)
    files = [
        jpeg_with(jpeg, (0xE1, b"Exif\0\0" + body)),
        jpeg_with(b"\xff\xd8", (0xFE, b"a")) + b"junk" + jpeg_with(jpeg, (0xE1, b"Exif\0\0" + body))[2:],
        jpeg_with(cmyk, (0xE1, b"Exif\0\0" + body)),
        png_with(encoded(photo(), "PNG"), (b"eXIf", body)),
        png_with(encoded(photo(), "PNG"), (b"eXIf", b"Exif\0\0" + body)),
        webp_with(encoded(photo(), "WEBP", quality=95), (b"EXIF", body)),
    ]
    turned = value if 2 <= value <= 8 else 1
    upright = decoding._UPRIGHT.get(turned, np.array)(np.asarray(photo()))
    for data in files:
        exact = run("decode(3)", data)
        assert exact.shape == upright.shape
        assert np.abs(exact.astype(int) - upright).mean() < 6
        for seed in range(4):
            part, same = run("decode_crop(16)", data, seed), run("decode(3)|inception_crop(16)", data, seed)
            assert np.abs(part.astype(int) - same).mean() < 3


@pytest.mark.parametrize("name", hostile_images.bombs())
@pytest.mark.parametrize("spec", ["decode(3)", "decode_crop(8)"])
def test_more_pixels_than_a_file_can_hold_are_refused_in_one_sentence(name, spec):
    with pytest.raises(UserError) as error:
        run(spec, hostile_images.bombs()[name])
    assert "pixels" in str(error.value)
    assert len(str(error.value)) < 150


@pytest.mark.parametrize("kind", ["PNG", "GIF", "JPEG", "WEBP", "BMP"])
def test_blank_pictures_of_usual_sizes_are_read(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    for size in ((1, 1), (2048, 2048), (64, 65_500 if kind not in ("WEBP", "GIF") else 4096)):
        assert run("decode(1)", encoded(Image.new("L", size, 9), kind, **options)).shape == (*size[::-1], 1)


def test_a_run_length_picture_is_read():
    rows = b"".join(b"\x20\1\x20\2\0\0" for _ in range(48))
    assert run("decode(3)", hostile_images.runs(64, 48, rows + b"\0\1")).shape == (48, 64, 3)


def test_large_pictures_are_made_in_strips_of_the_same_pixels():
    large = photo(1500, 2000)
    for made in (large, large.convert("LA"), large.quantize(), large.convert("1"), large.convert("L")):
        for channels in (1, 3):
            mode = "L" if channels == 1 else "RGB"
            expected = np.asarray(made.convert(mode)).reshape(1500, 2000, channels)
            np.testing.assert_array_equal(run(f"decode({channels})", encoded(made, "PNG")), expected)


def test_metadata_is_left_out_before_a_decoder_sees_it():
    for name, (data, plain) in hostile_images.sound().items():
        if plain is not None:
            assert len(containers.without_metadata(data)[0]) <= len(plain) + 64, name


def test_threads_share_the_room():
    shared, most, over = room.Room(100 << 20), [0], threading.Lock()
    begun = threading.Barrier(8)

    def work(megabytes):
        begun.wait()
        for _ in range(50):
            shared.take(megabytes << 20)
            with over:
                most[0] = max(most[0], sum(shared._taken.values()))
                assert len(shared._taken) == 1 or sum(shared._taken.values()) <= 100 << 20
            if megabytes % 2:
                shared.take(20 << 20)  # as where a second decoder tries
            shared.give_back()

    threads = [threading.Thread(target=work, args=(size,), daemon=True) for size in (8, 20, 33, 40, 50, 60, 77, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert most[0] >= 300 << 20
    assert not shared._taken


def test_an_image_keeps_its_room_until_all_operations_are_done(monkeypatch):
    taken = []
    data = encoded(photo(1500, 2000), "PNG")
    ops = images.parse("decode(3)|resize(8)", "here")
    look = lambda image, rng: taken.append(sum(room.ROOM._taken.values())) or image
    watched = images.Ops((*ops.host, look), (), decodes=True, scales=False)
    watched(data, np.random.default_rng(0))
    assert taken == [1500 * 2000 * 20]
    assert not room.ROOM._taken
    with pytest.raises(UserError):
        run("decode(3)", data[: len(data) // 2])
    assert not room.ROOM._taken


def test_what_a_decoder_cannot_allocate_is_a_bad_example(monkeypatch):
    class Exhausted(Image.Image):
        def load(self):
            raise MemoryError

        height = width = 9

    monkeypatch.setattr(Image, "open", lambda *args, **options: Exhausted())
    with pytest.raises(UserError, match=r"cannot be decoded as an image \(MemoryError\); restore or remove it"):
        run("decode(3)", encoded(photo(), "PNG"))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((9, 9, 3), np.float32),
        np.zeros((9, 9), np.uint8),
        np.zeros((9, 9, 4), np.uint8),
        np.zeros((0, 9, 3), np.uint8),
        np.zeros((2, 9, 9, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_images_are_one_sentence(array):
    for spec in ("decode(3)", "flip_lr", "resize(4)"):
        with pytest.raises(UserError, match=r"images are uint8\[height, width, 1 or 3\]"):
            run(spec, array)


def test_sides_beyond_a_library_are_one_sentence():
    tall = np.zeros((40_000, 1, 3), np.uint8)
    with pytest.raises(UserError, match="1 x 40000 pixels, too many a side"):
        run("randaugment(100)", tall)
    with pytest.raises(UserError, match="40000x1 pixels would become 5x8000; crop it"):
        run("resize(5, 8000)", tall)


def test_a_defect_in_an_operation_keeps_its_kind():
    def broken(image, rng):
        return image.colour

    ops = images.Ops((images.parse("decode(3)", "here").host[0], broken), (), decodes=True, scales=False)
    with pytest.raises(AttributeError, match="colour"):
        ops(encoded(photo(), "PNG"), np.random.default_rng(0))


@pytest.mark.parametrize(("pixels", "shape"), [(0, (9, 7, 3)), (2, (9, 7, 1)), (9, (9, 7, 3)), (50, (9, 7, 3))])
def test_random_shift_cuts_the_picture_out_of_black(pixels, shape):
    image = np.random.default_rng(1).integers(1, 256, shape, np.uint8)
    for seed in range(40):
        top, left = np.random.default_rng(seed).integers(0, 2 * pixels + 1, 2)
        canvas = np.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)))
        expected = canvas[top : top + shape[0], left : left + shape[1]]
        np.testing.assert_array_equal(run(f"random_shift({pixels})", image, seed), expected)


@pytest.mark.parametrize(
    "spec",
    [
        *("random_shift(100000000)", "random_shift(-1)", "resize(0)", "resize(1000000000)", "resize(8, 10**9)"),
        *("resize(100000)", "resize_small(0)", "resize_small(99999)", "center_crop(-1)", "center_crop(0)"),
        *("decode_crop(1000000)", "decode_crop(0)", "inception_crop(8, 0)", "inception_crop(8, 0.5, 1.5)"),
        *("decode_crop(8, 0.9, 0.1)", "decode(2)", "cutout(-1)", "cutout(100000000)", "randaugment(1000000000)"),
        *("randaugment(2, 100000)", "timm_randaugment('rand-n99999')", "timm_randaugment('rand-m%s')" % ("9" * 5000)),
        *("color_jitter(1e30)", "color_jitter(hue=-0.1)", "grayscale(-0.1)", "grayscale(2)", "solarize(0.5, -1)"),
        *("solarize(2)", "gaussian_blur(1, 0, 0)", "gaussian_blur(1, 1, 1000000)", "gaussian_blur(1, -1, 1)"),
        *("value_range(1, 1)", "value_range(1, -1)", "value_range(0, 1e300)"),
        *("normalize((0.5,), (0,))", "normalize((0.5,), (-1,))", "normalize(5)", "normalize('a', 'b')"),
        *("normalize((), ())", "normalize((0.5,), ('x',))", "normalize((1e400,), (1,))", "normalize(None, None)"),
        *("mixup(-1)", "mixup(0)", "mixup(1e30)", "cutmix(-0.5)", "mixup_or_cutmix(0, 0)"),
        *("mixup_or_cutmix(probability=1.5)", "mixup_or_cutmix(switch=-1)", "value_range(0, 1)|random_erase(-1)"),
        *("value_range(0, 1)|random_erase(0.5, 'zero', 0.5, 0.1)", "value_range(0, 1)|random_erase(min_area=0)"),
    ],
)
def test_numbers_that_make_no_sense_are_told_with_their_field(spec):
    with pytest.raises(UserError, match=r"^config\.data\.train_ops: ") as error:
        images.parse(spec, "config.data.train_ops")
    assert str(error.value).count("config.data.train_ops") == 1
    assert len(str(error.value)) < 300
