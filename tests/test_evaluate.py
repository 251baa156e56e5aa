"""`python -m vit_jax_mixer.evaluate`, and what it is made of."""

import csv
import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn import metrics
from sklearn.datasets import load_digits

from tests.helpers import assert_one_sentence, command
from vit_jax_mixer import pretrained
from vit_jax_mixer.data.sources import open_source
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.evaluation import evaluate
from vit_jax_mixer.predictors.classification import confusion, labels, scores
from vit_jax_mixer.pretrained import class_names, formats
from vit_jax_mixer.trained import open_model

DIGITS = "tfds:sklearn_digits"
IMAGENET = class_names.of("imagenet1k")


@pytest.fixture(scope="module")
def trained(digits_run):
    return open_model(str(digits_run))


def write_digits(folder, names, count=40):
    """Write the first digits as ``folder/CLASS/i.png``, with the class ``names[digit]`` where there is one."""
    digits: Any = load_digits()
    for i in range(count):
        if digits.target[i] in names:
            path = folder / names[digits.target[i]] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[i] * 255 / 16).round().astype(np.uint8)).save(path)
    return f"folder:{folder}"


def evaluated(trained, name, split, **kwargs):
    return evaluate(trained, open_source(name, split), name, **{"batch_size": 100, **kwargs})


def table(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


# --- Figures, against scikit-learn or by hand ---


def random_predictions(classes=7, count=500):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, classes - 1, count)  # none of the last class
    return truth, np.where(rng.random(count) < 0.6, truth, rng.integers(0, classes, count))


def test_counts_are_those_of_scikit_learn():
    truth, predictions = random_predictions()
    expected = metrics.confusion_matrix(truth, predictions, labels=range(7))
    counts = scores.confusion_counts(truth, predictions, 7)
    np.testing.assert_array_equal(confusion.square(counts, np.arange(7)), expected)
    found = scores.per_class(truth, predictions, 7)
    np.testing.assert_array_equal(found.count, expected.sum(1))
    np.testing.assert_array_equal(found.correct, expected.diagonal())
    assert np.isnan(found.accuracy[6])
    np.testing.assert_allclose(found.accuracy[:6], (expected.diagonal() / expected.sum(1).clip(1))[:6])
    nothing = np.zeros(500)
    summary = scores.summary(truth, predictions, nothing > 0, nothing, nothing, 7)
    assert summary["accuracy"] == pytest.approx(metrics.accuracy_score(truth, predictions))
    recall = metrics.recall_score(truth, predictions, labels=range(6), average="macro")
    assert summary["mean_class_accuracy"] == pytest.approx(recall)
    for name in ("precision", "f1"):
        score = getattr(metrics, f"{name}_score")
        of_each = score(truth, predictions, labels=range(6), average=None, zero_division=0)
        np.testing.assert_allclose(getattr(found, name)[:6], of_each)
        assert summary[f"mean_class_{name}"] == pytest.approx(of_each.mean())


def test_counts_of_many_classes_take_no_square():
    found = scores.confusion_counts(np.array([21842, 0, 21842]), np.array([21841, 0, 21841]), 21843)
    assert found.tolist() == [[0, 0, 1], [21842, 21841, 2]]


def test_the_calibration_error_by_hand():
    # Bins of a tenth: (0.8, 0.9] has 0.85 and 0.9, one of two right; (0.9, 1] has 0.95 and 1, both right.
    confidences = np.array([0.85, 0.9, 0.95, 1.0], np.float32)
    correct = np.array([True, False, True, True])
    expected = 2 / 4 * abs(0.5 - 0.875) + 2 / 4 * abs(1 - 0.975)
    assert scores.calibration_error(confidences, correct, bins=10) == pytest.approx(expected, rel=1e-6)
    assert scores.calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0
    assert scores.calibration_error(np.array([0.0, 0.5]), np.array([True, True])) == 0.75


# --- Whole evaluations ---


def test_the_figures_are_those_of_training_and_of_scikit_learn(trained, digits_run):
    found = evaluated(trained, DIGITS, "test")
    logged = json.loads((digits_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert found.figures["accuracy"] == pytest.approx(logged["test/accuracy"], abs=1e-6)
    assert found.figures["loss"] == pytest.approx(logged["test/loss"], rel=1e-5)
    assert 0.2 < found.figures["accuracy"] < found.figures["top5_accuracy"] < 1
    assert len(found.labels) == 360
    assert not found.matched

    source = open_source(DIGITS, "test")
    examples = [source.examples[i] for i in range(360)]
    truth = np.array([example["label"] for example in examples])
    images = np.stack([trained.ops(example["image"], np.random.default_rng(0)) for example in examples])
    outputs = jax.jit(trained.outputs)(trained.params, images)
    probabilities = np.asarray(outputs["probabilities"])
    np.testing.assert_array_equal(found.labels, truth)
    np.testing.assert_array_equal(found.predictions, probabilities.argmax(1))
    top5 = metrics.top_k_accuracy_score(truth, probabilities, k=5)
    assert found.figures["top5_accuracy"] == pytest.approx(top5)
    assert found.figures["loss"] == pytest.approx(metrics.log_loss(truth, probabilities), rel=1e-4)
    calibration = scores.calibration_error(probabilities.max(1), probabilities.argmax(1) == truth)
    assert found.figures["calibration_error"] == pytest.approx(calibration, abs=1e-4)


@pytest.mark.parametrize("batch_size", [7, 359, 1000])
def test_every_example_counts_once_whatever_the_batch_size(trained, batch_size):
    found = evaluated(trained, DIGITS, "test[:90]", batch_size=batch_size)
    expected = evaluated(trained, DIGITS, "test[:90]")
    np.testing.assert_array_equal(found.predictions, expected.predictions)
    assert found.figures == pytest.approx(expected.figures, rel=1e-5)


def test_the_loss_of_a_sigmoid_model_is_the_one_of_its_training(trained):
    sigmoid = dataclasses.replace(trained, about=dataclasses.replace(trained.about, probabilities="sigmoid"))
    found = evaluated(sigmoid, DIGITS, "test[:20]")
    source = open_source(DIGITS, "test[:20]")
    images = np.stack([trained.ops(source.examples[i]["image"], np.random.default_rng(0)) for i in range(20)])
    p = np.asarray(jax.jit(sigmoid.outputs)(trained.params, images)["probabilities"], np.float64)
    hit = np.eye(10)[found.labels]
    assert found.figures["loss"] == pytest.approx(-np.log(np.where(hit, p, 1 - p)).sum(1).mean(), rel=1e-4)


def test_some_of_the_classes_in_another_order(trained, tmp_path):
    name = write_digits(tmp_path / "some", {8: "8", 3: "3", 1: "1"})
    (tmp_path / "some/classes.txt").write_text("8\n1\n3\n")
    found = evaluated(trained, name, "all")
    assert found.classes.tolist() == [1, 3, 8]
    assert found.matched == "classes are matched by name: 3 of the model's 10."
    whole = evaluated(trained, write_digits(tmp_path / "all", {k: str(k) for k in range(10)}), "all")
    of_them = np.isin(whole.labels, found.classes)
    pairs = lambda found: sorted(zip(found.labels.tolist(), found.predictions.tolist(), strict=True))
    assert pairs(found) == [pair for pair in pairs(whole) if pair[0] in (1, 3, 8)]
    assert len(found.labels) == of_them.sum()

    files = found.write(tmp_path, {"model": "m"})
    assert [row[:2] for row in table(tmp_path / "per_class.csv")[1:]] == [["1", "1"], ["3", "3"], ["8", "8"]]
    matrix = table(tmp_path / "confusion.csv")
    assert set(matrix[0][1:]) == {str(k) for k in {1, 3, 8, *found.predictions.tolist()}}
    assert matrix[0][1:] == [row[0] for row in matrix[1:]] == sorted(matrix[0][1:])
    assert sum(int(cell) for row in matrix[1:] for cell in row[1:]) == len(found.labels)
    assert set(files) == {path.name for path in tmp_path.iterdir() if path.is_file()}


def test_other_names_are_matched_by_number_only_where_that_is_asked_for(trained, tmp_path):
    name = write_digits(tmp_path, {k: f"digit {k}" for k in range(10)})
    with pytest.raises(UserError, match=r"10 of its 10 classes are none of the model's 10, .*--by_number"):
        evaluated(trained, name, "all")
    found = evaluated(trained, name, "all", by_number=True)
    assert found.matched == "classes are matched by number, as --by_number says."
    assert found.matched in found.lines()


def test_bad_images_stop_or_are_left_out_by_name(trained, tmp_path):
    name = write_digits(tmp_path, {k: str(k) for k in range(10)})
    expected = evaluated(trained, name, "all")
    (tmp_path / "3/bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"3/bad\.png: it cannot be decoded"):
        evaluated(trained, name, "all")
    told = []
    for batch_size in (8, 100):
        found = evaluated(trained, name, "all", skip_bad=True, on_skipped=told.append, batch_size=batch_size)
        assert found.figures == pytest.approx(expected.figures, rel=1e-5)
        np.testing.assert_array_equal(np.sort(found.labels), np.sort(expected.labels))
        folders = [Path(found.where(i)).parent.name for i in range(len(found.labels))]
        assert folders == [str(label) for label in found.labels]  # so that each row of predictions.csv is its image's
        assert len(found.skipped) == 1
        assert found.skipped[0].startswith(f"{tmp_path}/3/bad.png: it cannot be decoded")
    assert told == [found.skipped[0]] * 2
    assert "  skipped images      1" in found.lines()


def test_what_cannot_be_evaluated_is_told(trained, digits_run, tmp_path):
    flat = pretrained.flatten(pretrained.load(digits_run))
    formats.write(tmp_path / "a.npz", {name: value for name, value in flat.items() if not name.startswith("head/")})
    headless = open_model(str(tmp_path / "a.npz"), eval_ops="decode(1)|value_range(-1, 1)")
    with pytest.raises(UserError, match="has no head"):
        evaluated(headless, DIGITS, "test")
    unlabelled = dataclasses.replace(open_source(DIGITS, "test"), class_names=())
    with pytest.raises(UserError, match="x has no class labels"):
        evaluate(trained, unlabelled, "x", batch_size=10)


# --- Classes by name ---


@pytest.mark.parametrize(
    ("data", "model", "expected"),
    [
        (("b", "a"), ("a", "b", "c"), [1, 0]),
        (("n01443537", "n01440764"), IMAGENET, [1, 0]),
        (("goldfish", "Tinca tinca", "great_white_shark", "TENCH, tinca_tinca"), IMAGENET, [1, 0, 2, 0]),
        (("maillot", "tank suit"), IMAGENET, [638, 639]),  # the one is also a name of the other
        (("crane (n03126707)", "n02012849"), IMAGENET, [517, 134]),
        (("a", "A"), ("A", "a", "b"), [1, 0]),
        (("Hot_Dog",), ("cat", "hot dog"), [1]),
    ],
)
def test_classes_are_matched_by_name(data, model, expected):
    for name, label in zip(data, expected, strict=True):
        found, said = labels.match([name], model, len(model), "x")
        assert found.tolist() == [label]
        assert said == f"classes are matched by name: 1 of the model's {len(model)}."
    if len(set(expected)) == len(expected):
        assert labels.match(data, model, len(model), "x")[0].tolist() == expected


def test_the_same_classes_need_no_word():
    found, said = labels.match(["a", "b"], ("a", "b"), 2, "x")
    assert (found.tolist(), said) == ([0, 1], "")


THOUSAND = tuple(sorted(map(str, range(1000))))  # as a folder has them: 0, 1, 10, 100, ...


def test_numbers_are_matched_by_value():
    for data in (THOUSAND, [f"{int(name):04}" for name in THOUSAND], [f" {name}.0" for name in THOUSAND]):
        found, said = labels.match(data, IMAGENET, 1000, "x")
        assert found.tolist() == [int(name) for name in THOUSAND]
        assert said == "classes are matched by number, since the data's are numbers."
    assert labels.match(["10", "2"], (), 11, "x")[0].tolist() == [10, 2]  # a model without names
    assert labels.match(["2", "10"], ("10", "1", "2"), 3, "x")[0].tolist() == [2, 0]
    assert labels.match(["02", "٢٠"], THOUSAND, 1000, "x")[0].tolist() == [THOUSAND.index("2"), THOUSAND.index("20")]


@pytest.mark.parametrize("data", [THOUSAND[:999], [str(k) for k in range(1, 1001)], [*THOUSAND[:999], "x"]])
def test_some_numbers_say_nothing_of_named_classes(data):
    with pytest.raises(UserError, match=r"are none of the model's 1000, .*; rename .*--by_number"):
        labels.match(data, IMAGENET, 1000, "x")


def test_by_number_takes_values_before_places():
    assert labels.match(["10", "2"], IMAGENET, 1000, "x", by_number=True)[0].tolist() == [10, 2]
    assert labels.match(["b", "a"], ("a", "b", "c"), 3, "x", by_number=True)[0].tolist() == [0, 1]
    with pytest.raises(UserError, match="x has 3 classes, the model 2"):
        labels.match(["a", "b", "c"], (), 2, "x", by_number=True)
    with pytest.raises(UserError, match="'1' and '01' are both the model's '1'"):
        labels.match(["1", "01"], (), 2, "x", by_number=True)


def test_names_of_another_unicode_form_are_matched_and_told():
    found, said = labels.match(["cafe\u0301", "tea "], ("tea", "caf\xe9"), 2, "x")
    assert found.tolist() == [1, 0]
    assert said.endswith(r"; 2 differ in blanks or Unicode form, as 'cafe\u0301' and 'caf\xe9'.")


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        (["a", "b"], (), "^d: 2 of its 2 classes are none"),
        (["a", "x"], ("a", "b"), r"^d: 1 of its 2 classes are none of the model's 2, 'x'; rename"),
        (["x"], ("a", "b"), r"^d: 1 of its 1 classes"),
        (list("vwxyz"), (), r"^d: 5 of its 5 .* none of the model's 9, 'v', 'w', 'x', \.\.\.; rename"),
        (["tenches"], IMAGENET, "'tenches'"),
        (["crane"], IMAGENET, r"Known: crane \(n02012849\), crane \(n03126707\)\."),
        (["tench", "n01440764"], IMAGENET, "'tench' and 'n01440764' are both the model's 'tench, Tinca tinca'"),
    ],
)
def test_classes_that_do_not_match_are_named(data, model, message):
    with pytest.raises(UserError, match=message):
        labels.match(data, model, len(model) or 9, "d")


# --- Files ---


@pytest.mark.parametrize(("size", "side"), [(2, 54), (12, 54), (30, 40), (31, 15), (100, 15), (1000, 2), (2000, 1)])
def test_the_picture_has_a_cell_for_each_pair(size, side):
    matrix = np.zeros((size, size), np.int64)
    matrix[0, 0] = matrix[1, 0] = 123_456
    picture = np.asarray(confusion.draw(matrix, [f"class {i}" for i in range(size)])).astype(int)
    places = []
    for colour in (confusion._RIGHT, confusion._WRONG):
        rows, columns = np.nonzero((picture == colour).all(-1))
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (side, side)
        places.append((rows.min(), columns.min()))
    assert places[1] == (places[0][0] + side, places[0][1])
    assert picture.shape[0] == picture.shape[1] >= size * side + 20


def test_names_that_would_break_a_table_do_not(tmp_path):
    names = ['tench, "Tinca"', "犬"]
    confusion.write_square(tmp_path / "a.csv", np.array([[1, 2], [3, 4]]), names)
    assert table(tmp_path / "a.csv") == [["true \\ predicted", *names], [names[0], "1", "2"], [names[1], "3", "4"]]


def test_names_of_others_are_shown_and_not_run(tmp_path):
    names = ["caf\udce9", "\x1b[2J\nred", "\u202eevil", "=1+1", "@x", "-1", "+ y"]
    shown = [r"caf\xe9", r"\x1b[2J\x0ared", r"\u202eevil", "'=1+1", "'@x", "-1", "'+ y"]
    confusion.write_square(tmp_path / "a.csv", np.eye(7, dtype=np.int64), names)
    assert table(tmp_path / "a.csv")[0][1:] == [row[0] for row in table(tmp_path / "a.csv")[1:]] == shown
    confusion.write_list(tmp_path / "b.csv", np.array([[0, 1, 2]]), names)
    assert table(tmp_path / "b.csv")[1] == [*shown[:2], "2"]
    plain = np.asarray(confusion.draw(np.eye(7, dtype=np.int64), [name.removeprefix("'") for name in shown]))
    np.testing.assert_array_equal(np.asarray(confusion.draw(np.eye(7, dtype=np.int64), names)), plain)


def test_names_of_any_length_and_script_leave_the_picture_small():
    for name in ("\U0001f436" * 500, "\u8c61" * 500, "\x1b" * 500, ""):
        assert confusion.draw(np.eye(2, dtype=np.int64), [name, "b"]).size <= (450, 450)


def test_a_matrix_of_too_many_classes_is_a_list(tmp_path, trained):
    truth = np.arange(2100, dtype=np.int32)
    found = dataclasses.replace(
        evaluated(trained, DIGITS, "test[:10]"),
        names=tuple(f"c{i}" for i in range(21843)),
        classes=truth,
        labels=truth,
        predictions=np.full(2100, 7, np.int32),
        losses=np.zeros(2100, np.float32),
        confidences=np.ones(2100, np.float32),
        where=None,
        worst=None,
    )
    (tmp_path / "confusion.png").touch()
    assert found.write(tmp_path, {}) == ["metrics.json", "per_class.csv", "confusion.csv"]
    assert not (tmp_path / "confusion.png").exists()
    rows = table(tmp_path / "confusion.csv")
    assert rows[:2] == [["true", "predicted", "count"], ["c0", "c7", "1"]]
    assert len(rows) == 2101


# --- The command ---


def test_the_command_writes_its_files(digits_run, tmp_path):
    out = tmp_path / "new/out"
    result = command("evaluate", f"--model={digits_run}", f"--data={DIGITS}", f"--out={out}")
    assert result.returncode == 0, result.stderr
    found = json.loads((out / "metrics.json").read_text())
    assert f"accuracy            {100 * found['accuracy']:.2f} %" in result.stdout
    assert found["images"] == 360
    assert found["images_per_second"] > 0
    assert (found["skipped"], found["split"], found["classes"]) == ([], "test", 10)
    rows = table(out / "per_class.csv")
    assert rows[0] == ["class", "name", "images", "correct", "accuracy", "predicted", "precision", "f1"]
    assert sum(int(row[2]) for row in rows[1:]) == 360
    assert sum(int(row[3]) for row in rows[1:]) / 360 == pytest.approx(found["accuracy"])
    matrix = table(out / "confusion.csv")
    assert [row[0] for row in matrix[1:]] == matrix[0][1:] == list("0123456789")
    assert [int(row[i + 1]) for i, row in enumerate(matrix[1:])] == [int(row[3]) for row in rows[1:]]
    with Image.open(out / "confusion.png") as picture:
        assert picture.size > (400, 400)
    told = table(out / "predictions.csv")
    assert told[0] == ["file", "true", "predicted", "probability", "correct", "loss"]
    assert sum(int(row[4]) for row in told[1:]) / 360 == pytest.approx(found["accuracy"])
    assert np.mean([float(row[5]) for row in told[1:]]) == pytest.approx(found["loss"], rel=1e-4)
    assert all((row[1] == row[2]) == (row[4] == "1") for row in told[1:])
    with Image.open(out / "worst.png") as picture:
        assert picture.size > (700, 700)


def test_what_is_missing_is_told(tmp_path):
    assert_one_sentence(command("evaluate", f"--data={DIGITS}"), "no --model given")
    assert_one_sentence(command("evaluate", "--model=x"), "no --data given")
    assert_one_sentence(command("evaluate", "--model=x", "--data=y", "z"), "'z' is no flag")
    (tmp_path / "file").touch()
    given = ("evaluate", "--model=x", f"--data={DIGITS}", f"--out={tmp_path}/file")
    assert_one_sentence(command(*given), "cannot write to", "--out")


def test_the_folder_of_the_model_takes_the_files_by_default(digits_run, tmp_path, monkeypatch, capsys):
    from vit_jax_mixer import evaluate as door

    run = tmp_path / "run"
    shutil.copytree(digits_run, run)
    monkeypatch.chdir(tmp_path)
    door._FLAGS(["evaluate", f"--model={run}", f"--data={DIGITS}", "--split=test[:20]"])
    door.main(["evaluate"])
    assert f"{run}/evaluation has metrics.json" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    of_run = ("", "#raw", "/checkpoints", f"/checkpoints/{max(os.listdir(run / 'checkpoints'))}")
    assert {door._folder_of(f"{run}{end}") for end in of_run} == {run}
    assert door._folder_of("Mixer-B/16:imagenet1k") == door._folder_of(f"{tmp_path}/none") == Path()
