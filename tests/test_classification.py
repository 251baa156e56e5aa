import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight

from configs import digits
from tests.helpers import assert_close
from vit_jax_mixer import tasks
from vit_jax_mixer.config import Config
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run import step
from vit_jax_mixer.tasks.images import describe, image_data


def create(ops="decode(1)|value_range(-1, 1)", **task):
    config = digits.get_config()
    with config.unlocked():
        config.task.update({"name": "classification", **task})
        config.model = dict(
            name="MlpMixer", num_blocks=1, patch_size=4, hidden_dim=8, tokens_mlp_dim=4, channels_mlp_dim=8
        )
        config.data.train_ops = ops
    return tasks.create(Config.of(config))


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


FORMULAS = {
    "softmax": lambda logits, targets: -(targets * log_softmax(logits)).sum(-1),
    "sigmoid": lambda logits, targets: (np.log1p(np.exp(logits)) - targets * logits).sum(-1),
}


@pytest.mark.parametrize("loss", FORMULAS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_its_formula(loss, smoothing):
    task = create(loss=loss, label_smoothing=smoothing)
    params, extra = task.init(jax.random.key(0))
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)
    state = step.TrainState(jnp.int32(0), params, (), extra, ())
    examples = [task.train_data.get(i, np.random.default_rng(0)) for i in range(6)]
    batch = {name: np.stack([e[name] for e in examples]) for name in ("image", "label")}

    value, aux = task.loss(params, state, batch, jax.random.key(0))
    images = batch["image"].astype(np.float32) / 127.5 - 1
    logits = np.asarray(task.model.apply({"params": params}, images))
    onehot = np.eye(10)[batch["label"]]
    targets = (1 - smoothing) * onehot + smoothing / 10
    assert_close(value, FORMULAS[loss](logits, targets).mean())
    assert aux.metrics["accuracy"] == np.mean(logits.argmax(-1) == batch["label"])

    rows = task.eval_step(state, batch)
    assert_close(rows["losses"], FORMULAS[loss](logits, onehot))
    np.testing.assert_array_equal(rows["predictions"] == rows["labels"], logits.argmax(-1) == batch["label"])


def test_training_mixes_images_and_labels():
    task = create("decode(1)|value_range(-1, 1)|mixup(1.0)", loss="softmax", label_smoothing=0.1)
    params, extra = task.init(jax.random.key(0))
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)
    state = step.TrainState(jnp.int32(0), params, (), extra, ())
    examples = [task.train_data.get(i, np.random.default_rng(0)) for i in range(6)]
    batch = {name: np.stack([e[name] for e in examples]) for name in ("image", "label")}
    values = [float(task.loss(params, state, batch, jax.random.key(seed))[0]) for seed in range(3)]
    assert len(set(values)) == 3

    # The same, with the mixing written out: the share is found from the images that the loss sees.
    key = jax.random.split(jax.random.key(0))[0]
    onehot = np.eye(10, dtype=np.float32)[batch["label"]]
    images, _ = task.data.train_ops.on_device(jnp.asarray(batch["image"]), jnp.asarray(onehot), key)
    floats = batch["image"].astype(np.float32) / 127.5 - 1
    difference = floats - floats[::-1]
    part = float(np.vdot(images - floats[::-1], difference) / np.vdot(difference, difference))
    assert_close(images, part * floats + (1 - part) * floats[::-1])
    targets = 0.9 * (part * onehot + (1 - part) * onehot[::-1]) + 0.01
    logits = np.asarray(task.model.apply({"params": params}, images))
    assert_close(values[0], FORMULAS["softmax"](logits, targets).mean())


def test_metrics_are_means_over_all_examples_of_batches_of_any_size():
    row = lambda losses, predictions: {
        "losses": np.array(losses),
        "predictions": np.array(predictions),
        "labels": np.ones(len(losses), int),
    }
    batches = [row([1.0, 2.0], [1, 1]), row([6.0], [0])]
    found = create().evaluate(lambda split: iter(batches))
    assert found == {"test/loss": 3.0, "test/accuracy": pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (dict(name="clasify"), "config.task.name: 'clasify' is not known.*classification"),
        (dict(smoothing=1), "config.task has no field 'smoothing'; did you mean 'label_smoothing'"),
        (dict(label_smoothing=1.5), "label_smoothing is 1.5; it must be from 0 to less than 1"),
    ],
)
def test_misspelt_fields_are_one_sentence(task, message):
    with pytest.raises(UserError, match=message):
        create(**task)


# --- Two lists of classes ---


def folders(root, **splits):
    """Write splits as SPLIT="CLASS CLASS", an image a class that is as grey as the first letter of its name."""
    for split, names in splits.items():
        for name in names.split():
            (root / split / name).mkdir(parents=True)
            Image.new("L", (8, 8), ord(name[0])).save(root / split / name / "1.png")
    return f"folder:{root}"


def of_folders(source, train, eval, **task):
    config = digits.get_config()
    with config.unlocked():
        config.task.update({"name": "classification", **task})
        config.data.update(dict(source=source, train=train, eval=eval))
    return tasks.create(Config.of(config))


def test_splits_that_number_classes_otherwise_are_matched_by_name(tmp_path):
    source = folders(tmp_path, fit="apple banana cherry", trial="banana cherry")  # each has numbers of its own
    task = of_folders(source, "fit", "trial", probe="ridge(1)", probe_examples=10)
    assert task.about().class_names == ("apple", "banana", "cherry")
    for data in (task.train_data, *task.eval_data.values()):
        examples = [data.get(i, np.random.default_rng(0)) for i in range(len(data))]
        assert {int(e["label"]): chr(e["image"][0, 0, 0]) for e in examples}.items() <= dict(enumerate("abc")).items()
    assert list(map(len, task.eval_data.values())) == [2, 3]


def test_splits_of_numbers_are_matched_by_value(tmp_path):
    task = of_folders(folders(tmp_path, fit="0 1 10 2", trial="02 10"), "fit", "trial")
    labels = {int(task.eval_data["trial"].get(i, np.random.default_rng(0))["label"]) for i in range(2)}
    assert labels == {2, 3}


def test_splits_of_other_classes_are_told(tmp_path):
    source = folders(tmp_path, fit="apple banana", trial="apple pear")
    with pytest.raises(UserError, match=r"trial: 1 of its 2 classes are none of fit's 2, 'pear'; rename"):
        of_folders(source, "fit", "trial")


def test_classes_that_look_the_same_are_told(tmp_path):
    folders(tmp_path, train="apple")
    (tmp_path / "train/apple").rename(tmp_path / "train/apple ")
    with pytest.raises(UserError, match=r"the classes 'apple' and 'apple ' differ in blanks at the ends alone"):
        of_folders(folders(tmp_path, train="apple"), "train", "train")


@pytest.mark.parametrize(
    ("place", "lack"),
    [
        ("folder:{}", "{0} holds 0.png outside the class folders; move it into one"),
        ("manifest:{}/list.csv", "{0}/list.csv has the column label not; its header is path"),
        ("blank:0", "blank:0 has none; name a number of classes, as blank:1000"),
    ],
)
def test_data_without_labels_are_for_tasks_that_need_none(tmp_path, place, lack):
    for i in range(2):
        Image.new("L", (8, 8), 30 * i).save(tmp_path / f"{i}.png")
    source = place.format(tmp_path)
    if source.startswith("manifest"):
        (tmp_path / "list.csv").write_text("path\n0.png\n1.png\n")
    split = "train" if source == "blank:0" else "all"
    config = digits.get_config()
    config.data.update(source=source, train=split, eval=split, views=1)
    config.data.train_ops = config.data.eval_ops = "decode(1)|resize(8)|value_range(-1, 1)"
    with pytest.raises(UserError, match="^the task needs labels, and " + re.escape(lack.format(tmp_path))):
        tasks.create(Config.of(config))
    data = image_data(Config.of(config), labels=False)
    assert (data.num_classes, data.shape) == (0, (8, 8, 1))
    for dataset in (data.train, data.plain, data.eval):
        assert dataset.get(1, np.random.default_rng(0)).keys() == {"image"}
    assert describe(Config.of(config), data, num_classes=0).lack()


def test_the_weights_of_classes_are_those_of_scikit_learn_and_multiply_losses():
    task = create(class_weights="balanced")
    labels = np.array([task.train_data.source.examples[i]["label"] for i in range(len(task.train_data))])
    assert_close(task.weights, compute_class_weight("balanced", classes=np.arange(10), y=labels))
    params, extra = task.init(jax.random.key(0))
    state = step.TrainState(jnp.int32(0), params, (), extra, ())
    examples = [task.train_data.get(i, np.random.default_rng(0)) for i in range(6)]
    batch = {name: np.stack([e[name] for e in examples]) for name in ("image", "label")}
    value, _ = task.loss(params, state, batch, jax.random.key(0))
    assert_close(value, (task.weights[batch["label"]] * np.log(10)).mean())  # the head begins at 0
    assert_close(task.eval_step(state, batch)["losses"], np.full(6, np.log(10)))  # an evaluation knows no weights
    assert create(class_weights='{"3": 2, "0": 0.5}').weights.tolist() == [0.5, 1, 1, 2, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("balance", "config.task.class_weights is 'balance'; give 'balanced', or JSON"),
        ('{"cat": 2}', "'cat' is no class of the data"),
        ('{"3": 0}', "that of '3' is 0; it must be above 0"),
        ('{"3": NaN}', "that of '3' is nan"),
    ],
)
def test_weights_that_make_no_sense_are_one_sentence(given, message):
    with pytest.raises(UserError, match=re.escape(message)):
        create(class_weights=given)
