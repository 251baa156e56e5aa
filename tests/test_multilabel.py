"""Images with several labels each, from the table to the answers."""

import json
import random

import jax
import numpy as np
import pytest
from PIL import Image

from configs import multilabel
from vit_jax_mixer import predictors
from vit_jax_mixer.config import Config
from vit_jax_mixer.data.sources import open_source
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.evaluation import evaluate
from vit_jax_mixer.predictions import predict
from vit_jax_mixer.predictors.classification import several
from vit_jax_mixer.run.assemble import assemble
from vit_jax_mixer.train import train_and_evaluate
from vit_jax_mixer.trained import open_model

COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images with a bright corner for each label, listed in any order; a quarter are for the test."""
    root, rng = tmp_path_factory.mktemp("tags"), random.Random(0)
    rows = ["path,label,split"]
    for i in range(120):
        pixels = np.full((8, 8, 3), rng.randrange(60), np.uint8)
        labels = [k for k in range(3) if rng.random() < 0.5]
        rng.shuffle(labels)
        for k in labels:
            pixels[4 * (k // 2) :, 4 * (k % 2) :][:4, :4, k] = 255
        Image.fromarray(pixels).save(root / f"{i}.png")
        rows.append(f"{i}.png,{'; '.join(COLOURS[k] for k in labels) or ';'},{'test' if i % 4 == 0 else 'train'}")
    (root / "list.csv").write_text("\n".join(rows) + "\n")
    return root


def config_of(photos, **changes):
    config = multilabel.get_config()
    fields = {
        "data.source": f"manifest:{photos}/list.csv",
        "data.train": "train",
        "data.eval": "test",
        "data.train_ops": "decode(3)|value_range(-1, 1)",
        "data.eval_ops": "decode(3)|value_range(-1, 1)",
        "model.patch_size": 4,
        "model.hidden_dim": 32,
        "model.channels_mlp_dim": 32,
        "model.num_blocks": 1,
        "optim.learning_rate": 1e-2,
        "optim.warmup_steps": 5,
        "steps": 60,
        "eval_every": 60,
        **changes,
    }
    config.update_from_flattened_dict(fields)
    return config


def test_labels_are_those_of_the_lists_whatever_their_order():
    assert several.labels_in(" cat;dog; cat;") == ["cat", "dog"]
    assert several.names_in(["dog; cat", ";", "ant"], "x") == ("ant", "cat", "dog")
    assert several.names_in(["10;9", "100"], "x") == ("9", "10", "100")
    table = several.table_of(["dog; cat", ";", "ant"], {"ant": 0, "cat": 1, "dog": 2}, 3)
    assert table.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
    with pytest.raises(UserError, match=r"x has no label but ';'; name some, as 'cat' or 'cat;dog'"):
        several.names_in([";"], "x")


def test_the_figures_are_those_worked_out_by_hand():
    wanted = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], bool)
    shares = np.array([[0.9, 0.2, 0.1], [0.3, 0.6, 0.1], [0.8, 0.7, 0.1], [0.1, 0.9, 0.1]], np.float32)
    found = several.per_class(wanted, shares, 0.5)
    # Right ones of the first label stand at places 1 and 3, of the second at 2 and 3; the third has none.
    np.testing.assert_allclose(found.average_precision, [(1 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 2, np.nan])
    np.testing.assert_allclose(found.precision, [1 / 2, 2 / 3, 0])
    np.testing.assert_allclose(found.recall, [1 / 2, 1, np.nan])
    np.testing.assert_allclose(found.f1, [1 / 2, 4 / 5, np.nan])
    figures = several.summary(wanted, shares, np.array([1, 2, 3, 6], np.float32), 0.5)
    assert figures["loss"] == 3
    assert figures["mean_average_precision"] == pytest.approx((5 / 6 + 7 / 12) / 2)
    assert figures["mean_class_f1"] == pytest.approx(0.65)
    assert figures["f1"] == pytest.approx(2 * 3 / (4 + 5))
    assert figures["all_right"] == 1 / 4


def test_the_loss_is_the_sum_of_the_labels_own(photos):
    task = assemble(Config.of(config_of(photos))).task
    params, _ = jax.jit(task.init)(jax.random.key(0))
    params["head"]["bias"] = np.array([0.3, -0.2, 1.0], np.float32)  # the kernel of a fresh head is zero
    row = task.data.class_names.index(";"), task.data.class_names.index("red; blue")
    batch = {"image": np.zeros((2, 8, 8, 3), np.uint8), "label": np.array(row, np.int32)}
    told = jax.jit(lambda params, batch: task.loss(params, None, batch, jax.random.key(1)))(params, batch)
    loss, metrics = told[0], told[1].metrics
    wanted = np.array([[0, 0, 0], [1, 0, 1]])  # blue, green, red
    right = np.where(wanted, 1, -1) * params["head"]["bias"].astype(np.float64)
    assert float(loss) == pytest.approx(np.log1p(np.exp(-right)).sum(1).mean(), rel=1e-6)
    assert float(metrics["f1"]) == pytest.approx(2 * 2 / (2 + 4))


def test_a_run_learns_and_its_model_answers_and_is_evaluated(photos, tmp_path):
    train_and_evaluate(config_of(photos), tmp_path / "run")
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert last["test/mean_average_precision"] > 0.95

    trained = open_model(str(tmp_path / "run"))
    assert trained.about == predictors.read(tmp_path / "run")
    assert trained.about.class_names == ("blue", "green", "red")
    source = open_source(f"manifest:{photos}/list.csv", "test")
    found = evaluate(trained, source, "the test", batch_size=8)
    for name, value in found.figures.items():
        assert value == pytest.approx(last[f"test/{name}"], rel=1e-5), name
    assert sorted(found.write(tmp_path, {})) == ["metrics.json", "per_class.csv", "predictions.csv"]
    assert (tmp_path / "predictions.csv").read_text().count("\n") == len(source.examples) + 1

    files = trained.about.open([source.where(i) for i in range(len(source.examples))])
    answers = list(predict(trained, files, top=1, batch_size=8, on_bad=pytest.fail))
    told = [{name for _, name, share in answer.classes if share >= 0.5} for answer in answers]
    assert told == [{found.names[k] for k in np.flatnonzero(row >= 0.5)} for row in found.probabilities]
    assert max(map(len, told)) == 3
    assert min(map(len, told)) == 0
    nothing = answers[told.index(set())]
    assert nothing.text(0).partition("  ")[2].startswith("none; ")
    assert nothing.cells() == {"file": nothing.name, "labels": "", "probabilities": ""}
    several_of = answers[[len(one) for one in told].index(2)]
    assert several_of.record()["predictions"][0]["probability"] >= several_of.record()["predictions"][1]["probability"]


def test_data_whose_labels_the_model_has_not_are_one_sentence(photos):
    about = assemble(Config.of(config_of(photos))).task.about()
    (photos / "other.csv").write_text("path,label\n0.png,red;violet\n")
    with pytest.raises(UserError, match="violet"):
        about.labelled(open_source(f"manifest:{photos}/other.csv", "all"), "the data", by_number=False)
    (photos / "bare.csv").write_text("path,label\n0.png,;\n")
    bare = {"data.source": f"manifest:{photos}/bare.csv", "data.train": "all", "data.eval": "all"}
    with pytest.raises(UserError, match=r"bare.csv has no label but ';'"):
        assemble(Config.of(config_of(photos, **bare)))
