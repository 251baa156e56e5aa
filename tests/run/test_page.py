"""The page of a run."""

import json
import re

from PIL import Image

from vit_jax_mixer.run.page import Curve, Page
from vit_jax_mixer.run.reports import Reports


def run(workdir, start, steps, **more):
    reports = Reports(workdir, start, 4, 1, 8, writers="report", **more)
    for step in steps:
        reports.evaluation(step, {"test/loss": 2.0 + (step - 2) ** 2, "test/accuracy": step / 10})
    return reports


def test_a_page_has_all_of_the_run_over_its_stops_and_loads_nothing(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"steps": 4, "model": {"name": "<b>Tiny"}}))
    run(tmp_path, 0, [1, 2, 3]).close()
    reports = run(tmp_path, 2, [3, 4], about="a run & more", commands={"Go on": "train --config='a b'"})
    for step, colour in ((3, "red"), (4, "blue")):
        reports.pictures(step, {"told": Image.new("RGB", (3, 2), colour), "words": f"<i> of {step}"})
    reports.close()
    page = (tmp_path / "report.html").read_text()
    row = "".join(f"<td>{cell}</td>" for cell in ("test/loss", "6", "2", "2"))
    assert row in page  # the last, the best and its step, of before the stop
    for part in (
        "step 4 of 4",
        "a run &amp; more",
        "&lt;b&gt;Tiny",
        "train --config=&#x27;a b&#x27;",
        "&lt;i&gt; of 4",
    ):
        assert part in page
    assert "told, step 4" in page
    assert "told, step 3" not in page
    assert not re.search(r"<b>|<i>|http|url\(|<script|<link", page)
    assert {match[:5] for match in re.findall(r'src="([^"]*)', page)} == {"data:"}
    with Image.open(tmp_path / "metrics.png") as picture:
        assert picture.size == (840, 300)  # two charts


def test_a_page_that_cannot_be_written_ends_no_run(tmp_path, capsys):
    (tmp_path / "report.html").mkdir()
    run(tmp_path, 0, [1]).close()
    assert "report.html is not written (IsADirectoryError" in capsys.readouterr().out


def test_a_curve_of_any_length_stays_small_and_keeps_its_best_and_its_last():
    curve = Curve()
    for step in range(1, 50_001):
        curve.add(step, abs(step - 777.0), lowered=True)
    x, _ = curve.line()
    assert 1_000 <= len(x) <= 2_001
    assert set((x[1:-1] - x[:-2]).tolist()) == {curve.stride}  # evenly
    assert (x[-1], curve.best) == (50_000, (777, 0.0))


def test_a_range_test_is_drawn_by_the_rate_that_rises(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"optim": {"schedule": "rising(first=1e-5)"}}))
    page = Page(tmp_path, 0)
    for step in range(1, 41):
        rate = 1e-5 * 10 ** (step / 10)
        page.write(step, {"train/loss": 3 - step / 20 if step < 30 else 3.0 + step**2, "train/learning_rate": rate})
    (picture,) = page._range_test()
    assert picture.size == (420, 300)
    (tmp_path / "config.json").write_text(json.dumps({"optim": {"schedule": "cosine"}}))
    assert not page._range_test()
