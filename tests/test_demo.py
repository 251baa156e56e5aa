"""The page of `vit-mixer demo`: what models say of what is entered, the files of a Space, and a real browser."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.helpers import ROOT, assert_one_sentence, command, environment
from vit_jax_mixer.demo.answers import open_models
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.predictors import sketches

SEVEN = [(90, 70), (230, 70), (150, 260)]  # of 320 x 320
BAR = [(120, 165), (230, 165)]  # which those who wrote the digits of scikit-learn draw through it


def drawn(points, side=320, width=32):
    sheet = Image.new("L", (side, side))
    ImageDraw.Draw(sheet).line(points, 255, width)
    return np.asarray(sheet)


def train(workdir, config, *more):
    told = command("main", f"--config={config}", f"--workdir={workdir}", *more)
    assert told.returncode == 0, told.stderr
    return workdir


def test_a_sketch_becomes_what_the_images_of_digits_are():
    image = np.asarray(sketches.fitted(drawn(SEVEN), 8))
    assert image.shape == (8, 8)
    assert image[0].max() > 200  # it fills the height
    assert image[7].max() > 60
    assert image[4:, :2].max() == 0
    whole = np.asarray(sketches.fitted(drawn(SEVEN), 28), float)
    rows = np.flatnonzero(whole.any(1))
    assert rows[-1] - rows[0] + 1 == 20
    for axis in (0, 1):  # the centre of mass lies in the middle
        middle = (whole.sum(1 - axis) * (np.arange(28) + 0.5)).sum() / whole.sum()
        assert abs(middle - 14) <= 0.5
    for nothing in (None, np.zeros((320, 320), np.uint8)):
        with pytest.raises(UserError, match="nothing is drawn; draw something"):
            sketches.fitted(nothing, 8)


def test_a_model_of_images_answers_with_shares_and_a_map_and_bad_files_with_a_sentence(digits_run, tmp_path):
    (model,) = open_models([str(digits_run)])
    assert [field.kind for field in model.form] == ["sketch", "file"]
    shown = model([drawn(SEVEN), None])
    assert len(shown.shares) == 5
    assert shown.picture.size[0] > 100
    assert shown.text == ""
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n rest")
    shown = model([None, str(broken)])
    assert (shown.shares, shown.picture) == ({}, None)
    assert shown.text.startswith("broken.png")
    assert str(tmp_path) not in shown.text
    assert len(shown.text.splitlines()) == 1
    assert model([None, None]).text == "nothing is drawn; draw something, or give a file."


@pytest.mark.slow
def test_a_row_is_entered_field_by_field_and_models_that_read_other_things_need_pages_of_their_own(
    digits_run, tmp_path
):
    table = tmp_path / "rows.csv"
    rows = [f"{i / 10},{'red' if i % 2 else 'blue'},{'yes' if i % 2 else 'no'}" for i in range(60)]
    table.write_text("\n".join(["size,colour,answer", *rows]))
    few = ("--config.steps=200", "--config.batch_size=16", "--config.optim.warmup_steps=1")
    run = train(
        tmp_path / "rows", "tabular", f"--config.data.source=table:{table}", "--config.data.target=answer", *few
    )
    (model,) = open_models([str(run)])
    assert [(field.name, field.kind, field.choices) for field in model.form] == [
        ("size", "number", ()),
        ("colour", "choice", ("blue", "red")),
    ]
    assert next(iter(model([2.5, "red"]).shares)) == "yes"
    assert next(iter(model([2.5, "blue"]).shares)) == "no"
    assert "column size: 1 of 1 values are missing, in training none" in model([None, "red"]).text
    with pytest.raises(UserError, match="read different things, and cannot be asked side by side"):
        open_models([str(run), str(digits_run)])
    with pytest.raises(UserError, match="no --model given"):
        open_models([])


@pytest.mark.slow
def test_the_files_of_a_space_run_by_themselves(digits_run, tmp_path):
    pytest.importorskip("gradio")
    space = tmp_path / "space"
    told = command("demo", f"--model={digits_run}", f"--to={space}")
    assert told.returncode == 0, told.stderr
    header = (space / "README.md").read_text().split("---\n")[1]
    assert {"sdk: gradio", "app_file: app.py"} <= {*header.splitlines()}
    assert re.search(r"^sdk_version: 6\.\d+\.\d+$", header, re.M)
    assert any(line.startswith("jax") for line in (space / "requirements.txt").read_text().splitlines())
    code = "import vit_jax_mixer.demo.page as page; print(page.__file__); page.build(['model']); print('built')"
    there = {**os.environ, "PYTHONPATH": str(space)}
    found = subprocess.run([sys.executable, "-c", code], cwd=space, env=there, capture_output=True, text=True)
    assert found.stdout.split() == [str(space / "vit_jax_mixer/demo/page.py"), "built"], found.stderr
    assert_one_sentence(command("demo", f"--model={digits_run}", f"--to={space}"), "holds something already")


def test_what_cannot_be_shown_ends_in_a_sentence(tmp_path):
    assert_one_sentence(command("demo"), "no --model given")
    pytest.importorskip("gradio")
    assert_one_sentence(command("demo", f"--model={tmp_path}"), str(tmp_path))


@pytest.fixture
def served(tmp_path):
    """The address of the page of a trained model of digits, twice."""
    run = train(tmp_path / "digits", "digits", "--config.steps=600")
    line = [sys.executable, "-m", "vit_jax_mixer.demo", f"--model={run}", f"--model={run}"]
    log = (tmp_path / "log").open("w+")
    server = subprocess.Popen(line, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        found = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
        log.seek(0)
        assert found, log.read()
        yield found[0]
    finally:
        server.terminate()
        server.wait()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the browser's driver
def test_a_seven_that_is_drawn_in_a_browser_is_read_and_a_broken_file_is_told(served, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"))
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        page.route(
            lambda url: not url.startswith(served), lambda route: route.abort()
        )  # it needs nothing from elsewhere
        page.goto(served)
        canvas = page.locator("#sketch canvas").first
        canvas.wait_for()
        page.wait_for_timeout(2_000)  # until the pad takes strokes
        page.get_by_role("button", name="Brush").click()
        box = canvas.bounding_box()
        side = 0.8 * min(box["width"], box["height"])  # the pad lies in the middle of it
        left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
        for stroke in (SEVEN, BAR):
            at = [(left + x / 320 * side, top + y / 320 * side) for x, y in stroke]
            page.mouse.move(*at[0])
            page.mouse.down()
            for place in at[1:]:
                page.mouse.move(*place, steps=20)
            page.mouse.up()
        page.locator("#ask").click()
        for number in (0, 1):
            told = page.locator(f"#classes_{number} h2")
            sync_api.expect(told).to_have_text("7", timeout=60_000)
        page.screenshot(path=os.environ.get("SCREENSHOT", tmp_path / "page.png"))
        page.locator("#file input[type=file]").set_input_files(broken)
        page.locator("#file").get_by_text("broken").first.wait_for()
        page.locator("#ask").click()
        text = page.locator("#text_0 textarea")
        sync_api.expect(text).to_have_value(re.compile(r"^broken\.png.*"), timeout=60_000)
        browser.close()
