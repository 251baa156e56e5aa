"""Rows from a table to answers: the task, the predictor, and the commands on both."""

import csv
import importlib
import json

import jax
import numpy as np
import pytest

from tests.helpers import command
from vit_jax_mixer import predictors
from vit_jax_mixer.config import Config
from vit_jax_mixer.data.tables.encoding import Column, Encoding
from vit_jax_mixer.data.tables.target import Target
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.evaluation import evaluate
from vit_jax_mixer.predictors.tables import figures
from vit_jax_mixer.predictors.tables.importance import REPEATS, Importance, Shuffled
from vit_jax_mixer.run.assemble import assemble
from vit_jax_mixer.tasks import create
from vit_jax_mixer.train import train_and_evaluate
from vit_jax_mixer.trained import open_model

TWO = Target("y", "two", ("no", "yes"))


def small(**changes):
    """Return the config of a run on the embedded table that takes a second."""
    config = importlib.import_module("configs.tabular").get_config()
    config.steps = config.eval_every = config.checkpoint.every = 20
    config.optim.warmup_steps = 5
    config.task.beside = ""
    config.model.num_blocks, config.model.hidden_dim, config.model.column_dim = 1, 8, 2
    config.data.update(changes)
    return config


# --- Figures ---


def test_figures_are_scikit_learns_and_a_threshold_counts():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 500)
    logits = (labels * 2 - 1 + rng.normal(size=500) * 2)[:, None]
    found = figures.figures(TWO, logits, labels, 0.5)
    told = logits[:, 0] >= 0
    assert found["accuracy"] == pytest.approx((told == labels).mean())
    assert found["recall"] == pytest.approx(told[labels == 1].mean())
    assert found["balanced_accuracy"] == pytest.approx((told[labels == 1].mean() + (~told)[labels == 0].mean()) / 2)
    pairs = logits[labels == 1] > logits[labels == 0].T
    assert found["auc"] == pytest.approx(pairs.mean())
    assert found["loss"] == pytest.approx(np.log1p(np.exp(-logits[:, 0] * (2 * labels - 1))).mean())
    assert figures.figures(TWO, logits, labels, 1.1)["recall"] == 0
    alone = figures.figures(TWO, logits[:5], np.ones(5, int), 0.5)
    assert "auc" not in alone


@pytest.mark.parametrize("criterion", figures.CRITERIA)
def test_the_best_threshold_is_as_good_as_any(criterion):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 60)
    p = np.round(np.clip(labels * 0.3 + rng.uniform(0, 0.7, 60), 0, 1), 1)  # with ties
    logits = np.log(np.clip(p, 1e-6, 1 - 1e-6) / (1 - np.clip(p, 1e-6, 1 - 1e-6)))[:, None]
    score = lambda threshold: figures.figures(TWO, logits, labels, threshold)[criterion]
    chosen = figures.best_threshold(p, labels, criterion)
    assert score(chosen) == pytest.approx(max(score(one) for one in np.arange(0.05, 1.1, 0.1)))


def test_figures_of_several_classes_and_of_numbers():
    three = Target("y", "classes", ("a", "b", "c"))
    found = figures.figures(three, np.eye(3)[[0, 1, 2, 2]] * 9, np.array([0, 1, 2, 0]), 0.5)
    assert (found["accuracy"], found["balanced_accuracy"]) == (0.75, pytest.approx((0.5 + 1 + 1) / 3))
    number = Target("y", "number", (), mean=10.0, deviation=2.0)
    found = figures.figures(number, np.array([[0.0], [1.0]]), np.array([0.0, 0.5]), 0.5)
    assert (found["mae"], found["rmse"], found["r2"]) == pytest.approx((0.5, np.sqrt(0.5), 0.0 - 1 + 0.0), abs=1e-6)


def test_importance_is_how_much_worse_a_shuffled_column_makes_it():
    columns = (Column("noise", None, told=True), Column("age", None), Column("town", ("Ulm",)))
    encoding = Encoding(columns, "standard")
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 4)).astype(np.float32)
    rows[:, 1] = rows[:, 0] > 0
    labels = (rows[:, 2] + 0.1 * rows[:, 3] > 0).astype(np.int32)
    shuffled = Shuffled.of(rows, labels, encoding)
    assert len(shuffled) == 3 * REPEATS * 300
    turn = np.stack([shuffled[index]["row"] for index in range(300)])
    assert (turn[:, 2:] == rows[:, 2:]).all()
    assert (turn[:, 0] != rows[:, 0]).mean() > 0.9
    assert (np.sort(turn[:, 0]) == np.sort(rows[:, 0])).all()
    assert (turn[:, 1] == (turn[:, 0] > 0)).all()  # both features of a column go together
    model = lambda x: x[:, 2:3] * 5 + 0.5 * x[:, 3:4]
    told = model(np.stack([shuffled[index]["row"] for index in range(len(shuffled))]))
    found = Importance.of(encoding, TWO, 0.5, labels, model(rows), told)
    assert found.names == ["age", "town", "noise"]
    assert found.worse["auc"][0].mean() == pytest.approx(0.5, abs=0.1)
    assert (found.worse["loss"][0] > 1).all()
    assert all((values[2] == 0).all() for values in found.worse.values())
    header, *lines = csv.reader(found.table().splitlines())
    assert header[:3] == ["column", "loss", "loss_deviation"]
    assert [line[0] for line in lines] == found.names
    assert float(lines[0][header.index("auc")]) == pytest.approx(found.worse["auc"][0].mean(), rel=1e-4)


# --- The task ---


def task_of(config):
    return create(Config.of(config))


def masked(config, **fields):
    """Return the task of its masked rows."""
    with config.unlocked():
        config.task = {"name": "masked_rows", **fields}
    return task_of(config)


def test_class_weights_make_the_parts_of_a_batch_add_up_to_the_whole():
    config = small()
    config.task.class_weights = "balanced"
    task = task_of(config)
    params, _ = jax.jit(task.init)(jax.random.key(0))
    params["head"]["kernel"] += jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)
    examples = task.train_data.source.examples
    batch = {"row": examples.rows[:12], "label": examples.labels[:12]}
    task.model = task.model.clone(dropout_rate=0.0)
    loss = jax.jit(lambda part: task.loss(params, None, part, jax.random.key(0)))
    whole, _ = loss(batch)
    parts = [loss({name: value[cut] for name, value in batch.items()}) for cut in (slice(0, 6), slice(6, 12))]
    weights = np.array([aux.weight for _, aux in parts])
    np.testing.assert_allclose(whole, np.sum(weights * [value for value, _ in parts]) / weights.sum(), rtol=1e-5)
    counts = np.bincount(examples.labels)
    np.testing.assert_allclose(task._weights * counts, len(examples) / 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("source", "names"),
    [("sklearn:iris", {"accuracy", "f1", "auc", "loss"}), ("sklearn:diabetes", {"r2", "mae", "loss"})],
)
def test_several_classes_and_numbers_are_evaluated(source, names):
    task = task_of(small(source=source))
    examples = task.eval_data["all[70%:85%]"].source.examples
    logits = np.random.default_rng(0).normal(size=(len(examples), task.model.num_classes)).astype(np.float32)
    metrics = task.evaluate(
        lambda name: iter([{"logits": logits, "labels": examples.labels}] if "of the" not in name else [])
    )
    assert {f"all[70%:85%]/{name}" for name in names} <= metrics.keys()


def test_the_threshold_is_chosen_on_the_rows_of_eval_alone():
    task = task_of(small())
    labels = {"all[70%:85%]": np.array([0, 0, 1, 1]), "all[85%:]": np.array([1, 1, 1, 1])}
    logits = np.array([[-3.0], [2.0], [2.5], [3.0]])
    metrics = task.evaluate(lambda name: iter([{"logits": logits, "labels": labels[name]}]))
    assert metrics["all[70%:85%]/threshold"] == pytest.approx(1 / (1 + np.exp(-2.25)), abs=0.01)
    assert metrics["all[85%:]/accuracy"] == 0.5


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.target", "targte", "has no column 'targte'; did you mean 'target'"),
        ("data.drop", "mean radus", "has no column 'mean radus'; did you mean 'mean radius'"),
        ("data.scaling", "quantiles", "config.data.scaling: 'quantiles' is not known; did you mean 'quantile'"),
        ("data.test", "all[70%:85%]", "a threshold wants other rows"),
        ("data.source", "tfds:sklearn_digits", "has no rows of a table"),
        ("task.threshold", "best", "config.task.threshold: 'best' is not known"),
        ("task.beside", "forest", "config.task.beside: 'forest' is not known"),
        ("task.predict", "number", "is no finite number; mend it, or set config.task.predict='classes'"),
        ("model.name", "Mixer-B/61", "did you mean 'Mixer-B/16'"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(field, value, message):
    config = small()
    section, name = field.split(".")
    config[section][name] = value
    if field == "data.source":
        config.data.train, config.data.eval, config.data.test = "train", "test", ""
    with pytest.raises(UserError, match=message):
        task_of(config)


# --- A run, and what is done with it ---


@pytest.fixture(scope="module")
def rows_run(tmp_path_factory):
    """The workdir of a run on a table with words and missing values, and that table."""
    folder = tmp_path_factory.mktemp("rows")
    rng = np.random.default_rng(0)
    lines = ["id,age,town,label"]
    for i in range(400):
        age, town = rng.normal(40, 10), rng.choice(["Ulm", "Bonn", "Köln"])
        label = "yes" if age + 10 * (town == "Ulm") > 42 else "no"
        lines.append(f"{i},{'' if i % 9 == 0 else f'{age:.2f}'},{town},{label}")
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    config = small(source=f"table:{folder}/rows.csv")
    config.steps, config.batch_size, config.optim.learning_rate = 120, 32, 1e-2
    config.eval_every = config.checkpoint.every = 60
    config.model.update(num_blocks=1, patch_size=2, hidden_dim=16, column_dim=4)
    train_and_evaluate(config, folder / "run")
    return folder


def test_a_run_learns_and_says_what_its_users_must_know(rows_run):
    last = json.loads((rows_run / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert last["all[85%:]/accuracy"] > 0.8
    about = predictors.read(rows_run / "run")
    assert about.encodes.features == [("age", 0), ("age is missing", 0), ("town", 4)]
    assert about.wants.class_names == ("no", "yes")
    trained = open_model(str(rows_run / "run"))
    assert trained.about.threshold == pytest.approx(
        json.loads((rows_run / "run/checkpoints" / str(trained.step) / "scores.json").read_text())[
            "all[70%:85%]/threshold"
        ]
    )


def test_predict_answers_a_file_with_a_table(rows_run):
    asked = rows_run / "asked.csv"
    asked.write_text("town,age,more\nUlm,60,1\nParis,20,2\nBonn,,3\n")
    result = command("predict", f"--model={rows_run}/run", "--csv", asked)
    assert result.returncode == 0, result.stderr
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert [row["line"] for row in rows] == ["2", "3", "4"]
    assert [row["label"] for row in rows[:2]] == ["yes", "no"]
    assert float(rows[0]["probability_no"]) + float(rows[0]["probability_yes"]) == pytest.approx(1, abs=1e-5)
    assert "column town: 1 of 3 values are none of training's: 'Paris'" in result.stderr
    (rows_run / "other.csv").write_text("towns,age\nUlm,3\n")
    with pytest.raises(UserError, match=r"other.csv lacks 1 of the 2 columns that the model reads: 'town'"):
        predictors.read(rows_run / "run").open([str(rows_run / "other.csv")])


def test_an_evaluation_tells_the_importance_of_columns(rows_run, tmp_path):
    trained = open_model(f"{rows_run}/run")
    name = f"table:{rows_run}/rows.csv"
    source = trained.about.open_labelled(name, "all[85%:]", skip_bad=False)
    found = evaluate(trained, source, name, batch_size=512)
    assert sorted(found.importance.names) == ["age", "town"]
    assert (found.importance.worse["auc"].mean(1) > 0.05).all()
    assert {"importance.csv", "importance.png"} <= {*found.write(tmp_path, {})} == {f.name for f in tmp_path.iterdir()}
    assert "  most important        " + ", ".join(found.importance.names) in found.lines()


@pytest.mark.slow
def test_evaluate_and_export_of_the_run(rows_run):
    model = f"--model={rows_run}/run"
    result = command("evaluate", model, f"--data=table:{rows_run}/rows.csv", "--split=all[85%:]")
    assert result.returncode == 0, result.stderr
    report = json.loads((rows_run / "run/evaluation/metrics.json").read_text())
    logged = [json.loads(line) for line in (rows_run / "run/metrics.jsonl").read_text().splitlines()]
    step = open_model(f"{rows_run}/run").step
    (then,) = [line for line in logged if line["step"] == step and "all[85%:]/auc" in line]
    for name in ("accuracy", "auc", "f1", "loss"):
        assert report[name] == pytest.approx(then[f"all[85%:]/{name}"], rel=1e-4)  # of the run's own evaluation
    assert (rows_run / "run/evaluation/curves.png").stat().st_size > 1000
    result = command("export", model, rows_run / "exported")
    assert result.returncode == 0, result.stderr
    assert "onnx" in result.stdout
    exported = open_model(str(rows_run / "exported"))
    assert exported.about.threshold == report["threshold"]


def test_a_description_that_was_changed_is_one_sentence(rows_run, tmp_path):
    fields = json.loads((rows_run / "run/model.json").read_text())
    fields = {name: value for name, value in fields.items() if name not in ("kind", "published", "checksum")}
    kind = predictors.KINDS["rows"]
    for field, value in (
        ("encoding", {}),
        ("encoding", 3),
        ("target", {"name": "x"}),
        ("threshold", 2.0),
        ("model", []),
    ):
        with pytest.raises(UserError, match=r"model\.json"):
            kind.of_json({**fields, field: value}, "model.json")


def test_the_document_s_system_is_one_config():
    config = importlib.import_module("configs.tabular").get_config("original")
    config.data.update(source="sklearn:breast_cancer", train="all[:70%]", eval="all[70%:]", test="", drop="")
    parts = assemble(Config.of(config))
    shapes = parts.shapes().params
    assert shapes["stem"]["kernel"].shape == (3, 198)
    assert shapes["MixerBlock_9"]["token_mixing"]["Dense_0"]["kernel"].shape == (10, 40)
    assert shapes["MixerBlock_9"]["channel_mixing"]["Dense_0"]["kernel"].shape == (198, 99)
    assert parts.task.data.encoding.whole


# --- Masked patches before labels ---


def test_of_masked_rows_numbers_alone_count():
    config = small()
    config.model.patch_size = 2
    config.model.num_blocks, config.model.dropout_rate, config.model.stochastic_depth_rate = 1, 0.0, 0.0
    task = masked(config)
    task._numeric = np.array([True, False, True, True, True])
    rng = np.random.default_rng(0)
    told, rows = rng.normal(size=(2, 3, 2)).astype(np.float32), rng.normal(size=(2, 5)).astype(np.float32)
    mask = np.array([[1, 1, 1], [0, 1, 0]], np.float32)
    away = np.square(told.reshape(2, 6)[:, :5] - rows)
    means = np.stack([away[:, 0], away[:, 2:4].mean(1), away[:, 4]], 1)  # a code, and what fills the last patch, do not
    errors, counted = task.errors(told, rows, mask)
    np.testing.assert_allclose(errors, means * mask, rtol=1e-5)
    np.testing.assert_array_equal(counted, mask)
    task._numeric[4] = False
    np.testing.assert_array_equal(task.errors(told, rows, mask)[1], mask * [1, 1, 0])


def test_a_masked_evaluation_does_not_depend_on_batches():
    task = masked(small())
    rows = task.train_data.source.examples.rows[:6]
    mask = jax.jit(task._fixed_mask)
    whole = mask(rows)
    np.testing.assert_array_equal(whole.sum(1), 5)
    assert len(np.unique(whole, axis=0)) > 3
    np.testing.assert_array_equal(np.concatenate([mask(rows[3:]), mask(rows[:3])]), np.roll(whole, 3, axis=0))
    rows = {"errors": np.array([1.0, 2]), "counted": np.array([2.0, 4]), "of_means": np.array([4.0, 8])}
    found = task.evaluate(lambda name: iter([rows, rows]))
    assert (found["all[85%:]/loss"], found["all[85%:]/r2"]) == (0.5, 0.75)


def test_a_mask_that_leaves_nothing_is_one_sentence():
    with pytest.raises(UserError, match=r"mask_ratio 0.95 leaves none of the 10 patches of a row"):
        masked(small(), mask_ratio=0.95)


@pytest.mark.slow
def test_what_masked_rows_learnt_begins_a_training_on_few_labels(rows_run, tmp_path):
    rows = f"table:{rows_run}/rows.csv"

    def run(workdir, what="", **flags):
        flags = {
            "data.source": rows,
            "steps": 60,
            "eval_every": 60,
            "optim.warmup_steps": 5,
            "model.patch_size": 2,
            **({} if what else {"task.beside": ""}),
            **flags,
        }
        result = command(
            "main",
            f"--config=configs/tabular.py{what}",
            f"--workdir={tmp_path}/{workdir}",
            *(f"--config.{name}={value}" for name, value in flags.items()),
        )
        assert result.returncode == 0, result.stderr
        return json.loads((tmp_path / workdir / "metrics.jsonl").read_text().splitlines()[-1])

    assert "all[85%:]/r2" in run("before", ":masked", **{"task.mask_ratio": 0.5, "model.scan": True})
    before = predictors.read(tmp_path / "before")
    features = command("predict", f"--model={tmp_path}/before", f"--features={tmp_path}/f.npz", rows_run / "rows.csv")
    assert features.returncode == 0, features.stderr
    assert np.load(tmp_path / "f.npz")["features"].shape == (400, 32)
    few = {"data.train": "all[:10%]", "init_from": f"{tmp_path}/before"}
    assert "all[85%:]/accuracy" in run("after", **few, steps=2, **{"optim.learning_rate": 0.0, "optim.warmup_steps": 1})
    assert predictors.read(tmp_path / "after").encoding == before.encoding  # not of the few
    begun, learnt = open_model(f"{tmp_path}/after").params, open_model(f"{tmp_path}/before").params
    jax.tree.map(np.testing.assert_array_equal, {k: v for k, v in begun.items() if k != "head"}, learnt)
    config = small(source=rows)
    for field, value, message in (
        ("target", "town", "reads the column 'town', which is the target here or in config.data.drop"),
        ("scaling", "standard", "is 'standard', and that of config.init_from 'quantile'; set that"),
    ):
        config.init_from = f"{tmp_path}/before"
        with config.unlocked(), pytest.raises(UserError, match=message):
            task_of(type(config)({**config, "data": {**config.data, field: value}}))
