"""Probes against formulas written out and scikit-learn, and inside of runs."""

import json

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from configs import digits
from tests.helpers import assert_close, assert_one_sentence, command
from vit_jax_mixer import probes, tasks
from vit_jax_mixer.config import Config
from vit_jax_mixer.data.sources import open_source
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.train import train_and_evaluate

PROBES = "ridge(5)|knn(20)|logistic"


def clusters(count, features, classes, seed=0, spread=1.0):
    """Return features around a centre for each class, of very different scales, and labels."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((classes, features))
    labels = rng.integers(0, classes, count)
    x = centres[labels] + spread * rng.standard_normal((count, features))
    return (x * np.geomspace(0.01, 100, features) + 3).astype(np.float32), labels


def scores(spec, train, labels, test, classes):
    (probe,) = probes.parse(spec, "spec")
    return np.concatenate(list(probe.scores(train, labels, test, classes)))


def evaluate(spec, train, labels, test, truth, classes):
    return probes.evaluate(probes.parse(spec, "spec"), train, labels, test, truth, classes)


@pytest.mark.parametrize("features", [6, 80])  # fewer and more than the shots
@pytest.mark.parametrize("l2", [0.5, 1024.0])
def test_ridge_is_the_solution_of_its_normal_equations(features, l2):
    train, labels = clusters(200, features, 4)
    test, truth = clusters(3000, features, 4, seed=1)  # three blocks
    chosen = probes.few(labels, 5, seed=7)
    shown = train[chosen].astype(np.float64)
    mean, deviation = shown.mean(0), shown.std(0)
    x = np.c_[(shown - mean) / deviation, np.ones(len(shown))]
    y = np.where(labels[chosen, None] == np.arange(4), 1.0, -1.0)
    penalty = l2 * np.diag([1.0] * features + [0.0])  # none of the bias
    weights = np.linalg.solve(x.T @ x + penalty, x.T @ y)
    expected = np.c_[(test - mean) / deviation, np.ones(len(test))] @ weights
    spec = f"ridge(5, l2={l2}, seed=7)"
    assert_close(scores(spec, train, labels, test, 4), expected, 1e-8)
    found = evaluate(spec, train, labels, test, truth, 4)
    assert found == {"ridge_5shot": np.mean(expected.argmax(1) == truth)}


def test_the_shots_are_the_first_of_each_class_in_a_seeded_order():
    labels = np.array([2] * 50 + [0] * 3 + [5] * 40)
    chosen = probes.few(labels, 5, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [3, 0, 5, 0, 0, 5]  # all of a class that has fewer
    assert len(set(chosen)) == 13
    order = np.random.default_rng(0).permutation(93)
    np.testing.assert_array_equal(chosen[labels[chosen] == 2], [i for i in order if i < 50][:5])
    np.testing.assert_array_equal(probes.few(labels, 3, seed=0)[-3:], chosen[-5:-2])  # fewer shots are a part of more
    assert set(probes.few(labels, 5, seed=1)) != set(chosen)


@pytest.mark.parametrize("train_count", [40, 300, 512, 700])  # of less than a block, several, and whole ones
def test_the_nearest_neighbours_are_those_of_a_search_of_all(monkeypatch, train_count):
    monkeypatch.setattr(probes, "TRAIN_ROWS", 256)
    monkeypatch.setattr(probes, "TEST_ROWS", 64)
    train, test = clusters(train_count, 12, 3)[0], clusters(150, 12, 3, seed=1)[0]
    unit = lambda x: x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    every = unit(test) @ unit(train).T
    similarities, neighbours = probes.nearest(train, test, 7)
    order = np.argsort(-every, axis=1)[:, :7]
    assert_close(similarities, np.take_along_axis(every, order, 1), 1e-5)
    # Rounding may swap two of nearly the same similarity.
    assert_close(np.take_along_axis(every, neighbours, 1), np.take_along_axis(every, order, 1), 1e-6)


def test_of_equal_neighbours_the_first_are_taken_across_blocks(monkeypatch):
    monkeypatch.setattr(probes, "TRAIN_ROWS", 4)
    train = np.tile(np.array([[1, 2], [-1, 0]], np.float32), (7, 1))
    _, neighbours = probes.nearest(train, np.array([[2, 4]], np.float32), 10)
    assert neighbours.tolist() == [[0, 2, 4, 6, 8, 10, 12, 1, 3, 5]]  # the padding of the last block is none


@pytest.mark.parametrize(
    ("temperature", "weigh"), [("None", lambda d: np.ones_like(d)), ("0.1", lambda d: np.exp(-d / 0.1))]
)
def test_knn_agrees_with_scikit_learn(temperature, weigh):
    train, labels = clusters(500, 8, 4, spread=2.0)
    test, truth = clusters(400, 8, 4, seed=1, spread=2.0)
    model = KNeighborsClassifier(20, weights=weigh, metric="cosine", algorithm="brute").fit(train, labels)
    found = scores(f"knn(20, {temperature})", train, labels, test, 4)
    shares = np.where(np.isfinite(found), found, 0)
    assert_close(shares / shares.sum(1, keepdims=True), model.predict_proba(test), 1e-4)
    # Scikit-learn, too, takes the lowest of equal classes.
    found = evaluate(f"knn(20, {temperature})", train, labels, test, truth, 4)
    assert found["knn_20"] == pytest.approx(model.score(test, truth), abs=0.003)


def test_logistic_agrees_with_scikit_learn():
    train, labels = clusters(600, 10, 5)
    test, truth = clusters(1500, 10, 5, seed=1)
    scaler = StandardScaler().fit(train.astype(np.float64))
    model = LogisticRegression(C=1 / (0.01 * 600), tol=1e-8, max_iter=1000).fit(scaler.transform(train), labels)
    found = scores("logistic(l2=0.01)", train, labels, test, 5)
    assert_close(jax.nn.softmax(found), model.predict_proba(scaler.transform(test)), 1e-3)
    found = evaluate("logistic(0.01)", train, labels, test, truth, 5)
    assert found["logistic"] == pytest.approx(model.score(scaler.transform(test), truth), abs=0.003)


def test_top_5_is_told_of_many_classes_and_counts_no_class_without_a_vote():
    train = np.eye(12, dtype=np.float32)
    metrics = evaluate("knn(2, None)", train, np.arange(12), train + 0.1 * np.eye(12, k=1), np.arange(12), 12)
    assert metrics == {"knn_2": 11 / 12, "knn_2_top5": 1.0}  # of two votes the lower class: the last is ahead of none
    wrong = evaluate("knn(1)", train, np.arange(12), train, (np.arange(12) + 1) % 12, 12)
    assert wrong == {"knn_1": 0, "knn_1_top5": 0}
    angles = np.arange(12) / 10  # class i is the i-th nearest
    train, test = np.c_[np.cos(angles), np.sin(angles)], np.tile([[1.0, 0.0]], (3, 1))
    found = evaluate("knn(12)", train, np.arange(12), test, [0, 4, 5], 12)
    assert found == {"knn_12": pytest.approx(1 / 3), "knn_12_top5": pytest.approx(2 / 3)}


def test_classes_that_are_seen_rarely_or_never():
    train, labels = clusters(600, 10, 4, spread=0.1)
    for spec in ("ridge(1000)", "knn(1000)", "logistic"):
        (accuracy,) = evaluate(spec, train, labels, train, labels, 5).values()
        assert accuracy > 0.95, spec
        (accuracy,) = evaluate(spec, train, labels, train, np.full_like(labels, 4), 5).values()
        assert accuracy == 0, spec


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ridge(0)", r"config.task.probe: ridge: shots is 0; it must be from 1 to"),
        ("ridge(5, seed=-1)", "seed is -1; it must be 0 or more"),
        ("knn(k=20.5)", "knn: k is 20.5; it must be of type int"),
        ("knn(20, 0)", "temperature is 0; it must be from 1e-06"),
        ("knn(20, 1e-320)", "temperature is 1e-320; it must be from 1e-06"),
        ("logistc", "'logistc' is not known; did you mean 'logistic'"),
        ("logistic(-1)", "l2 is -1; it must be from 1e-12"),
        ("knn(20)|", "'' is not of the form"),
        ("knn(20)|knn(20, None)", "give the metric knn_20; leave one out"),
    ],
)
def test_a_bad_spec_is_one_sentence_before_training(spec, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train_and_evaluate(small(probe=spec), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "spec", ["ridge(5)", "knn(20)", "knn(1, None)", pytest.param("logistic", marks=pytest.mark.slow)]
)
def test_the_least_of_everything_has_a_score(spec):
    x = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0]])
    (score,) = evaluate(spec, x, [0, 0, 0], x, [0, 0, 0], 1).values()  # one class
    assert score == 1
    for train, test in ((x[:1], x), (x, x[:1]), (x[:, :1], x[:, :1]), (0 * x, x)):
        (score,) = evaluate(spec, train, [0, 1, 1][: len(train)], test, [0, 1, 1][: len(test)], 2).values()
        assert 0 <= score <= 1


@pytest.mark.parametrize("spec", ["ridge(5)", "knn(1)", "logistic"])
def test_features_that_are_not_finite_count_as_wrong(spec):
    train, labels = clusters(40, 10, 2, spread=0.1)
    bad = train.copy()
    bad[::4, 0] = np.nan
    bad[1::4, 1] = np.inf
    assert evaluate(spec, train, labels, bad, labels, 2) == {
        next(iter(evaluate(spec, train, labels, train, labels, 2))): 0.5
    }
    assert set(evaluate(spec, bad, labels, train, labels, 2).values()) == {1.0}
    assert set(evaluate(spec, train * np.nan, labels, train, labels, 2).values()) == {0.0}
    assert set(evaluate(spec, train, labels, train * np.nan, labels, 2).values()) == {0.0}


def test_a_sample_is_the_same_part_of_a_source_each_time():
    source = open_source("tfds:sklearn_digits", "train")
    assert probes.sample(source, 1437) is source
    part = probes.sample(source, 100)
    places = [part.where(i) for i in range(100)]
    assert len(set(places)) == 100
    assert places == [probes.sample(source, 100).where(i) for i in range(100)]
    by_place = {source.where(i): i for i in range(1437)}
    for i in (0, 50, 99):
        assert part.examples[i] == source.examples[by_place[places[i]]]


def small(**task):
    config = digits.get_config()
    config.update(steps=80, eval_every=40, eval_batch_size=100)
    config.optim.warmup_steps = 20
    config.model.num_blocks = 2
    config.task.update({"probe": PROBES, **task})
    return config


def evaluations(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in lines if "test/accuracy" in line]


def test_probes_learn_from_some_training_examples_that_are_not_augmented():
    task = tasks.create(Config.of(small(probe_examples=100)))
    (name,) = task.eval_data.keys() - {"test"}
    dataset = task.eval_data[name]
    assert len(dataset) == 100
    first = dataset.get(0, np.random.default_rng(0))
    np.testing.assert_array_equal(first["image"], dataset.get(0, np.random.default_rng(1))["image"])
    assert tasks.create(Config.of(small(probe=""))).eval_data.keys() == {"test"}
    with pytest.raises(UserError, match="probe_examples is 0; it must be 1 or more"):
        tasks.create(Config.of(small(probe_examples=0)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run on the digits, with the best checkpoint by a probe."""
    workdir = tmp_path_factory.mktemp("probed")
    config = small()
    config.checkpoint.best = "test/knn_20"
    return train_and_evaluate(config, workdir), workdir


def test_probes_are_metrics_of_a_run(run):
    first, last = evaluations(run[1])
    names = {"step", *(f"test/{name}" for name in ("loss", "accuracy", "ridge_5shot", "knn_20", "logistic"))}
    assert set(first) == set(last) == names
    assert first["step"] == 40
    # A random guess is right in a tenth; found: 0.57, 0.80 and 0.86.
    assert last["test/ridge_5shot"] > 0.4
    assert last["test/knn_20"] > 0.6
    assert last["test/logistic"] > 0.8


@pytest.mark.slow
def test_probes_do_not_depend_on_the_batch_size_of_evaluation(run, tmp_path):
    config = small()
    config.eval_batch_size = 46
    config.checkpoint.best = "test/logistic"
    train_and_evaluate(config, tmp_path)
    for found, expected in zip(evaluations(tmp_path), evaluations(run[1]), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_the_command_tries_probes_of_a_workdir_in_the_place_of_its_head(run, tmp_path):
    flags = [f"--model={run[1]}", "--data=tfds:sklearn_digits", f"--probe={PROBES}", f"--out={tmp_path}"]
    result = command("evaluate", *flags)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "metrics.json").read_text())
    for name in ("ridge_5shot", "knn_20", "logistic"):
        assert f"{name:18}  {100 * found[name]:.2f} %" in result.stdout
        assert found[name] == pytest.approx(evaluations(run[1])[-1][f"test/{name}"], abs=0.01)
    assert_one_sentence(command("evaluate", *flags[:2], "--probe=knn(0)"), "--probe: knn: k is 0; it must be")
