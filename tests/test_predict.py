"""`python -m vit_jax_mixer.predict`, and what it is made of."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.helpers import assert_one_sentence, command
from vit_jax_mixer import predictions, pretrained
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.predict import as_json
from vit_jax_mixer.predictions import save_features
from vit_jax_mixer.predictors.classification.prediction import Prediction
from vit_jax_mixer.predictors.image_files import find_images
from vit_jax_mixer.predictors.image_operations import of_any_image
from vit_jax_mixer.pretrained import formats
from vit_jax_mixer.run.inference import even_batches
from vit_jax_mixer.trained import open_model


def predict(trained, paths, **how):
    return predictions.predict(trained, trained.about.open(paths), **how)


def digit(index):
    """Return u8[8, 8, 1], one of the embedded digits."""
    return (load_digits().images[index] * 255 / 16).round().astype(np.uint8)[..., None]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Seven digits in two folders, two files that are no images, and others that are not looked at."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "b/deep").mkdir(parents=True)
    (folder / ".cache").mkdir()
    for i, name in enumerate(["a.png", "b/deep/z.PNG", "b/ä.png", "c1.png", "c10.png", "c2.png", "d.bmp"]):
        Image.fromarray(digit(i)[..., 0]).save(folder / name)
    (folder / "b/empty.jpg").write_bytes(b"")
    (folder / "z.png").write_bytes(b"no image")
    for name in ("b/notes.txt", ".cache/x.png", ".hidden.png"):
        (folder / name).write_bytes(b"")
    return folder


GOOD = ["a.png", "b/deep/z.PNG", "b/ä.png", "c1.png", "c10.png", "c2.png", "d.bmp"]
ALL = ["a.png", "b/deep/z.PNG", "b/empty.jpg", "b/ä.png", "c1.png", "c10.png", "c2.png", "d.bmp", "z.png"]


@pytest.fixture(scope="module")
def trained(digits_run):
    return open_model(str(digits_run))


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_answers_are_those_of_each_image_alone(trained, photos, batch_size):
    paths = [str(photos / name) for name in ALL]
    bad = []
    found = list(predict(trained, paths, top=3, batch_size=batch_size, on_bad=bad.append))
    assert [p.file for p in found] == [str(photos / name) for name in GOOD]
    assert len(bad) == 2
    assert "b/empty.jpg: it cannot be decoded" in bad[0]
    assert "z.png: it cannot be decoded" in bad[1]
    alone = jax.jit(trained.outputs)
    for i, prediction in enumerate(found):
        expected = jax.device_get(alone(trained.params, digit(i)[None]))
        probabilities = expected["probabilities"][0]
        best = np.argsort(-probabilities)[:3]
        assert [number for number, _, _ in prediction.classes] == best.tolist()
        assert [name for _, name, _ in prediction.classes] == [str(k) for k in best]
        np.testing.assert_allclose([p for _, _, p in prediction.classes], probabilities[best], rtol=1e-4)
        np.testing.assert_allclose(prediction.features, expected["features"][0], rtol=1e-4, atol=1e-5)


def test_there_are_no_more_answers_than_classes(trained, photos):
    (found,) = predict(trained, [str(photos / "a.png")], top=99, batch_size=1, on_bad=pytest.fail)
    assert sorted(number for number, _, _ in found.classes) == list(range(10))
    assert sum(p for _, _, p in found.classes) == pytest.approx(1, abs=1e-5)


def test_a_model_without_names_tells_numbers(trained, photos):
    nameless = dataclasses.replace(trained, about=dataclasses.replace(trained.about, class_names=()))
    (found,) = predict(nameless, [str(photos / "a.png")], top=1, batch_size=1, on_bad=pytest.fail)
    assert found.classes[0][:2] == (0, "0")


PLAIN = "decode(1)|value_range(-1, 1)"  # of images that have the model's size


def test_photos_of_any_size_and_mode_are_read(trained, tmp_path):
    assert trained.about.eval_ops == "decode(1)|resize(8)|value_range(-1, 1)"  # though the config needs no resizing
    pixels = np.random.default_rng(0).integers(0, 255, (300, 200, 4), np.uint8)
    photos = {
        "a.png": Image.fromarray(pixels),
        "b.jpg": Image.fromarray(pixels[..., :3]),
        "c.jpg": Image.fromarray(pixels, "CMYK"),
        "d.webp": Image.fromarray(pixels[:1, :1, :3]),
        "e.gif": Image.fromarray(pixels[..., :3]).quantize(16),
        "f.png": Image.fromarray(pixels[..., 0].astype(np.uint16) * 256),
        "g.bmp": Image.fromarray(pixels[..., 0] > 99),
    }
    for name, photo in photos.items():
        photo.save(tmp_path / name)
    found = list(predict(trained, find_images(str(tmp_path)), top=1, batch_size=8, on_bad=pytest.fail))
    assert [os.path.basename(prediction.file) for prediction in found] == list(photos)


@pytest.mark.parametrize(
    ("ops", "shape", "expected"),
    [
        (PLAIN, (8, 8, 1), "decode(1)|resize(8)|value_range(-1, 1)"),
        ("value_range(-1, 1)", (8, 8, 3), "decode(3)|resize(8)|value_range(-1, 1)"),
        ("decode(3)|value_range(0, 1)", (4, 6, 3), "decode(3)|resize(4, 6)|value_range(0, 1)"),
        (
            "decode(3)|resize_small(8)|value_range(0, 1)",
            (8, 8, 3),
            "decode(3)|resize(8)|resize_small(8)|value_range(0, 1)",
        ),
        ("decode(3)|center_crop(8)| value_range(0, 1)", (8, 8, 3), "decode(3)|center_crop(8)| value_range(0, 1)"),
        (
            "decode(3)|resize_small(9)|center_crop(8)|normalize",
            (8, 8, 3),
            "decode(3)|resize_small(9)|center_crop(8)|normalize",
        ),
    ],
)
def test_the_operations_of_a_model_read_any_image(ops, shape, expected):
    assert of_any_image(ops, shape) == expected


def test_an_image_of_another_size_is_told_with_the_operations(digits_run, tmp_path):
    plain = open_model(str(digits_run), eval_ops=PLAIN)
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(tmp_path / "a.png")
    bad = []
    assert not list(predict(plain, [str(tmp_path / "a.png")], top=1, batch_size=1, on_bad=bad.append))
    assert bad[0].startswith(f"{tmp_path}/a.png: the operations '{PLAIN}' give an image of shape (9, 8, 1), the model")
    assert bad[0].endswith("mend them with --ops, as --ops='decode(1)|resize(8)|value_range(-1, 1)'.")


def test_outputs_that_are_not_finite_are_an_error(trained, photos):
    broken = dataclasses.replace(trained, params=jax.tree.map(lambda x: x + np.inf, trained.params))
    with pytest.raises(UserError, match="are not all finite"):
        list(predict(broken, [str(photos / "a.png")], top=1, batch_size=1, on_bad=pytest.fail))


@pytest.mark.parametrize(
    ("count", "most", "devices", "size"),
    [(1, 32, 1, 1), (1, 32, 8, 8), (32, 32, 1, 32), (33, 32, 1, 17), (33, 32, 2, 18), (100, 32, 1, 25), (5, 1, 2, 2)],
)
def test_batches_are_even(count, most, devices, size):
    assert even_batches(count, most, devices) == size


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("a.png", ["a.png"]),
        ("b/notes.txt", ["b/notes.txt"]),  # what is named is tried
        ("", ALL),
        ("b/", ["b/deep/z.PNG", "b/empty.jpg", "b/ä.png"]),
        ("c?.png", ["c1.png", "c2.png"]),
        ("c*.png", ["c1.png", "c10.png", "c2.png"]),
        ("**/*.png", ["a.png", "b/ä.png", "c1.png", "c10.png", "c2.png", "z.png"]),
        ("b*", ["b/deep/z.PNG", "b/empty.jpg", "b/ä.png"]),
        ("b/**", ["b/deep/z.PNG", "b/empty.jpg", "b/notes.txt", "b/ä.png"]),  # each once
    ],
)
def test_files_folders_and_patterns_are_found(photos, argument, expected):
    found = find_images(os.path.join(photos, argument))
    assert [os.path.relpath(path, photos) for path in found] == expected


def test_a_file_with_a_pattern_for_a_name_is_itself(tmp_path):
    (tmp_path / "[1].png").touch()
    (tmp_path / "1.png").touch()
    assert find_images(f"{tmp_path}/[1].png") == [f"{tmp_path}/[1].png"]


def test_a_name_that_is_not_utf8_is_read(trained, photos, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    os.link(photos / "a.png", path)
    found = list(predict(trained, find_images(str(tmp_path)), top=1, batch_size=1, on_bad=pytest.fail))
    assert found[0].file == path
    save_features(tmp_path / "f.npz", found)
    with np.load(tmp_path / "f.npz") as saved:
        assert saved["files"].tolist() == [path]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("x.png", r"there is no file or folder '.*x\.png'"),
        ("*.jpg", r"no image matches '.*\*\.jpg'"),
        (".cache/../b/none", "there is no file or folder"),
    ],
)
def test_what_is_not_there_is_told(photos, argument, message):
    with pytest.raises(UserError, match=message):
        find_images(os.path.join(photos, argument))


def test_a_folder_without_images_is_told(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds no image \(\.jpg, "):
        find_images(str(tmp_path))


def test_the_command_goes_on_past_bad_files(digits_run, photos, tmp_path):
    result = command("predict", f"--model={digits_run}", "--json", "--top=2", f"--features={tmp_path}/f.npz", photos)
    assert result.returncode == 1
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["file"] for answer in answers] == [str(photos / name) for name in GOOD]
    assert set(answers[0]["predictions"][0]) == {"class", "name", "probability"}
    assert all(len(answer["predictions"]) == 2 for answer in answers)
    reasons = result.stderr.splitlines()[1:]  # after the checkpoint
    assert reasons[0].startswith(f"{photos}/b/empty.jpg: it cannot be decoded")
    assert reasons[1].startswith(f"{photos}/z.png: it cannot be decoded")
    assert reasons[2:] == ["error: 2 of 9 files could not be read; they are named above."]
    with np.load(tmp_path / "f.npz", allow_pickle=False) as saved:
        assert saved["files"].tolist() == [answer["file"] for answer in answers]
        assert (saved["features"].shape, saved["features"].dtype) == ((7, 64), np.float32)
    assert [path.name for path in tmp_path.iterdir()] == ["f.npz"]


def test_the_command_prints_for_people(digits_run, photos):
    result = command("predict", f"--model={digits_run}", "--top=1", photos / "a.png", f"{photos}/c*.png")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [str(photos / name) for name in ("a.png", *GOOD[3:6])]
    assert len({line.index(" %  ") for line in lines}) == 1
    assert result.stderr == f"{digits_run}: step 60, the best by test/accuracy\n"


def test_several_classes_make_a_block_and_a_line_of_json():
    found = Prediction("a b.png", ((1, "one", 0.98765432), (0, "nöne", 1e-9)), np.zeros(1))
    assert found.text(20) == "a b.png\n   98.77 %  one\n    0.00 %  nöne"
    assert json.loads(as_json(found)) == {
        "file": "a b.png",
        "predictions": [
            {"class": 1, "name": "one", "probability": 0.9876543},
            {"class": 0, "name": "nöne", "probability": 1e-9},
        ],
    }
    assert as_json(found).isascii()


def test_names_of_others_do_not_reach_the_terminal_raw():
    evil = Prediction("a\x1b[2J\nb\udcff.png", ((1, "\u202ered\x9b", 1.0), (0, "b", 0.0)), np.zeros(1))
    assert evil.text(0) == "a\\x1b[2J\\x0ab\\xff.png\n  100.00 %  \\u202ered\\x9b\n    0.00 %  b"
    assert json.loads(as_json(evil))["file"] == evil.file
    assert as_json(evil).isascii()
    assert as_json(evil).isprintable()


def test_lines_fit_a_terminal():
    name = "Dandie Dinmont, Dandie Dinmont terrier, a small dog of the Scottish borders with a long body"
    found = Prediction("犬.png", ((0, name, 0.5), (1, "b", 0.5)), np.zeros(1))
    assert max(map(len, found.text(0).splitlines())) <= 80
    assert " ".join(found.text(0).split()) == f"犬.png 50.00 % {name} 50.00 % b"
    one = dataclasses.replace(found, classes=((1, "b", 0.5),))
    assert one.text(9) == "犬.png      50.00 %  b"


def test_a_model_without_a_head_gives_features(digits_run, photos, tmp_path):
    flat = pretrained.flatten(pretrained.load(digits_run))
    formats.write(tmp_path / "a.npz", {name: value for name, value in flat.items() if not name.startswith("head/")})
    ops, image = "decode(1)|value_range(-1, 1)", str(photos / "a.png")
    headless = open_model(str(tmp_path / "a.npz"), eval_ops=ops)
    (found,) = predict(headless, [image], top=5, batch_size=1, on_bad=pytest.fail)
    assert found.classes == ()
    assert found.features.shape == (64,)
    result = command("predict", f"--model={tmp_path}/a.npz", f"--ops={ops}", image)
    assert_one_sentence(result, "has no head", "--features=FILE.npz")


def test_what_is_missing_is_told(tmp_path):
    assert_one_sentence(command("predict", "a.png"), "no --model given")
    assert_one_sentence(command("predict", "--model=x"), "name images")
    assert_one_sentence(command("predict", "--model=x", f"--features={tmp_path}/none/f.npz", "a.png"), "--features")


def test_each_image_gets_a_picture_where_it_speaks_for_its_class(trained, photos, tmp_path):
    paths, target = [str(photos / name) for name in ("a.png", "b/ä.png")], tmp_path / "new/maps"
    drawn, names = [], [*paths, str(photos / "b/deep/z.PNG")]
    write = predictions.Pictures(target, names)
    found = list(
        predict(
            trained,
            paths,
            top=2,
            batch_size=2,
            on_bad=pytest.fail,
            on_picture=lambda answer, picture: drawn.append((write(answer, picture), answer.name)),
        )
    )
    assert [name for _, name in drawn] == [answer.name for answer in found]
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*.*")) == ["a.png.png", "b/ä.png.png"]
    with Image.open(target / "a.png.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape[1] == 2 * 224 + 28  # beside each other
    image = np.kron(digit(0)[..., 0], np.ones((28, 28)))
    assert (pixels[18 : 18 + 224, :224] == image[..., None]).all()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another --explain"):
        predictions.Pictures(tmp_path / "file", names)(found[0], Image.new("RGB", (1, 1)))


def test_the_command_writes_pictures_or_says_why_not(digits_run, photos, tmp_path):
    (tmp_path / "file").touch()
    result = command("predict", f"--model={digits_run}", f"--explain={tmp_path}/file/a", photos)
    assert_one_sentence(result, "--explain", "must be a folder that can be written")
    result = command("predict", f"--model={digits_run}", f"--explain={tmp_path}/maps", "--top=1", photos / "b")
    assert "error: 1 of 3 files could not be read" in result.stderr
    assert sorted(path.name for path in (tmp_path / "maps").rglob("*.png")) == ["z.PNG.png", "ä.png.png"]
