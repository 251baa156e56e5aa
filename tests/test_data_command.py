"""`python -m vit_jax_mixer.data SOURCE`."""

import os
import re

import numpy as np
import pytest
from PIL import Image

from tests.helpers import assert_one_sentence, command
from tests.test_images import real_jpegs
from vit_jax_mixer.data.images.decoding import to_array
from vit_jax_mixer.data.pipeline import Dataset
from vit_jax_mixer.data.skipped import Skipped
from vit_jax_mixer.data.sources import open_source


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of three real photographs, and one that is cut."""
    folder = tmp_path_factory.mktemp("photos")
    for name, data in zip(("china", "flower"), real_jpegs(), strict=True):
        (folder / name).mkdir()
        for i in range(3):
            (folder / name / f"{i}.jpg").write_bytes(data)
    (folder / "china/cut.jpg").write_bytes(real_jpegs()[0][:5000])
    return folder


def test_it_says_what_is_in_a_folder(photos):
    result = command("data", f"folder:{photos}", "--sheet=")
    assert result.returncode == 0, result.stderr
    assert "all: 7 examples, 2 classes" in result.stdout
    assert "classes china, flower" in result.stdout
    assert "images, 6 looked at: 6 JPEG RGB" in result.stdout
    assert "640 x 427 the smallest, 640 x 427 the median" in result.stdout
    assert re.search(r"\d µs to decode: [\d,]+ images/s on one core", result.stdout)
    assert re.search(rf"bad: {photos}/china/cut.jpg: it cannot be decoded", result.stdout)


def test_the_contact_sheet_leaves_bad_examples_out(photos, tmp_path):
    result = command("data", f"folder:{photos}", f"--sheet={tmp_path}/sheet.png", "--samples=2")
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height == 5 * 146 + 4  # six were tried
    failed = command("data", f"folder:{photos}", f"--sheet={tmp_path}/sheet.png", "--ops=decode(3)|center_crop(8000)")
    assert "center_crop(8000) of 427x640 pixels" in failed.stderr


def test_it_draws_a_contact_sheet(photos, tmp_path):
    sheet = tmp_path / "sheet.png"
    ops = "decode_crop(64)|grayscale(1)|value_range(-1, 1)"
    result = command(
        "data", f"folder:{photos / '..' / photos.name}", "--split=all[:2]", f"--ops={ops}", f"--sheet={sheet}"
    )
    assert result.returncode == 0, result.stderr
    with Image.open(sheet) as image:
        pixels = np.asarray(image).astype(int)
    assert pixels.shape == (2 * 146 + 4, 6 * 132 + 4, 3)
    plain, augmented = pixels[18:100, 4:132], pixels[18:146, 136:264]
    assert np.ptp(plain, -1).max() > 50
    assert np.ptp(augmented, -1).max() == 0
    assert augmented.std() > 5


def test_it_profiles_each_stage_and_the_loader():
    ops = "decode(3)|random_shift(1)|value_range(-1, 1)"
    flags = [f"--ops={ops}", "--profile", "--sheet=", "--batch_size=16", "--workers=0", "--threads=2"]
    result = command("data", "tfds:sklearn_digits", *flags)
    assert result.returncode == 0, result.stderr
    table = result.stdout.partition("stage")[2]
    for stage in ("read", "decode(3)", "random_shift(1)", "stack", "one thread"):
        assert re.search(rf"^{re.escape(stage)} +[\d,]+ ", table, re.MULTILINE), table
    assert "value_range" not in table
    assert "loader: 0 worker process(es), 2 thread(s) each, batches of 16" in table
    assert "MiB of uint8 to the devices a step, 1/4 of float32" in table


def test_it_checks_every_example(photos):
    result = command("data", f"folder:{photos}", "--check", "--sheet=")
    assert result.returncode == 1
    assert "label 0 (china): 3" in result.stdout
    assert "label 1 (flower): 3" in result.stdout
    assert "error: 1 of 7 examples are bad" in result.stderr
    digits = command("data", "tfds:sklearn_digits", "--split=test", "--check", "--sheet=")
    assert digits.returncode == 0
    assert "all 360 examples can be read" in digits.stdout


def test_a_split_that_cannot_be_opened_stops_nothing_else(tmp_path):
    for name in ("cat/0.jpg", "dog/0.jpg", "dog/puppy/0.jpg", "eel/young/old/0.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(real_jpegs()[0])
    result = command("data", f"folder:{tmp_path}", "--sheet=")
    assert result.returncode == 0, result.stderr
    assert f"eel: {tmp_path}/eel holds no class folder with images" in result.stdout
    assert "dog: 2 examples\n" in result.stdout
    assert f"note: no labels: {tmp_path}/dog holds 0.jpg outside the class folders" in result.stdout
    assert "looking at all: 3 examples, classes cat, dog, dog/puppy" in result.stdout


def test_names_of_any_bytes_are_shown_and_listed(tmp_path):
    folder = os.fsencode(tmp_path) + b"/photos/cat"
    os.makedirs(folder)
    for name, data in ((b"/\xe9.jpg", b"no image"), (b"/good.jpg", real_jpegs()[0])):
        with open(folder + name, "wb") as file:
            file.write(data)
    result = command("data", f"folder:{tmp_path}/photos", "--check", "--sheet=")
    assert "\\xe9.jpg: it cannot be decoded" in result.stdout
    listed = Skipped(tmp_path, 0, lambda line: None)
    dataset = Dataset(
        open_source(f"folder:{tmp_path}/photos", "all"), lambda e, rng: {"image": to_array(e["image"], 3)}
    )
    for index in range(2):
        if "good" not in dataset.source.where(index):
            listed(dataset, index)
            again = Skipped(tmp_path, 0, lambda line: None)
            again(dataset, index)
    assert (tmp_path / "skipped_examples.txt").read_bytes().count(b"\\xe9.jpg: it cannot be decoded") == 1
    assert (
        listed.summary()
        == again.summary()
        == f"1 bad examples were skipped; {tmp_path}/skipped_examples.txt lists them."
    )


def test_what_it_cannot_do_is_one_sentence(photos, tmp_path):
    assert_one_sentence(command("data"), "name one dataset")
    assert_one_sentence(command("data", "fodler:x"), "there is no module 'fodler'", "did you mean 'folder'")
    assert_one_sentence(command("data", f"folder:{tmp_path}/x"), f"{tmp_path}/x is not a folder")
    assert_one_sentence(command("data", f"folder:{photos}", "--build"), "--build prepares datasets of TFDS")
    assert_one_sentence(command("data", f"folder:{photos}", "--ops=decode(3)|flip"), "--ops: 'flip' is not known")
    assert_one_sentence(command("data", f"folder:{photos}", "--smaples=3"), "smaples")
    profile = command("data", f"folder:{photos}", "--sheet=", "--profile", "--ops=decode(3)|resize(9)")
    assert f"error: {photos}/china/cut.jpg: it cannot be decoded" in profile.stderr
    (tmp_path / "list.csv").write_text("path,label\n")
    assert_one_sentence(command("data", f"manifest:{tmp_path}/list.csv"), "list.csv has no row")
