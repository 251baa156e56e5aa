"""DINO's formulas against the values of the authors' code, and the task in runs of its own."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import DATA, assert_close, assert_same, nested
from tests.test_train import logged
from vit_jax_mixer import models, probes, tasks
from vit_jax_mixer.config import Config
from vit_jax_mixer.configs import dino
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import stacked
from vit_jax_mixer.models.dino_head import DinoHead
from vit_jax_mixer.pretrained import resize
from vit_jax_mixer.run import optim, schedules, transforms
from vit_jax_mixer.tasks import TrainState
from vit_jax_mixer.tasks.dino import answers, collapse
from vit_jax_mixer.train import train_and_evaluate
from vit_jax_mixer.trained import open_model


@pytest.fixture(scope="module")
def reference():
    return np.load(DATA / "dino_reference.npz")


# --- The authors' values ---


def in_ours(params):
    """Return the head's parameters or gradients, from PyTorch's names and layouts."""
    dense = {
        f"Dense_{i}": {"kernel": params[f"mlp.{2 * i}.weight"].T, "bias": params[f"mlp.{2 * i}.bias"]} for i in range(3)
    }
    last = {"direction": params["last_layer.weight_v"].T, "magnitude": params.get("last_layer.weight_g", np.ones(1))}
    return {
        **dense,
        "last_layer": {name: value.squeeze() if name == "magnitude" else value for name, value in last.items()},
    }


@pytest.mark.parametrize("normalised", [True, False])
def test_the_heads_outputs_and_gradients_are_the_authors(reference, normalised):
    of = f"head_norm_{str(normalised).lower()}"
    params, grads = in_ours(nested(reference, f"{of}/param/")), in_ours(nested(reference, f"{of}/grad/"))
    if normalised:  # it is 1, and not trained
        del params["last_layer"]["magnitude"], grads["last_layer"]["magnitude"]
    head = DinoHead(11, hidden_dim=12, bottleneck_dim=6, norm_last_layer=normalised)
    outputs, pull = jax.vjp(lambda p, x: head.apply({"params": p}, x), params, reference[f"{of}/features"])
    assert_close(outputs, reference[f"{of}/output"])
    found, of_features = pull(jnp.asarray(reference[f"{of}/cotangent"]))
    assert_close(found, grads)
    assert_close(of_features, reference[f"{of}/grad_features"])
    fresh = head.init(jax.random.key(0), reference[f"{of}/features"])["params"]
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)


def settings(**changes):
    told = dict(momentum=0.996, teacher_temperature=0.07, warmup_temperature=0.04, warmup_temperature_steps=0)
    return answers.Settings(**{**told, "student_temperature": 0.1, "centre_momentum": 0.9, **changes})


def test_loss_gradient_and_centre_are_the_authors_over_three_iterations(reference):
    by_image = lambda rows: jnp.swapaxes(jnp.asarray(rows).reshape(-1, 6, rows.shape[-1]), 0, 1)
    for i, epoch in enumerate(reference["loss/epochs"]):
        of = lambda name, i=i: reference[f"loss/{i}/{name}"]
        temperature = reference["loss/teacher_temperatures"][epoch]
        taught, centre = by_image(of("teacher")), of("center_before")[0]
        targets = answers.distributions(taught, centre, temperature)
        value, grad = jax.value_and_grad(answers.cross_entropy, 1)(targets, by_image(of("student")), 0.1)
        np.testing.assert_allclose(value, of("value"), rtol=1e-5)
        assert_close(grad, np.asarray(by_image(of("grad_student"))))
        assert_close(answers.centre_after(centre, taught.mean((0, 1)), 0.9), of("center_after")[0])


def test_schedules_are_the_authors(reference):
    told = json.loads(str(reference["settings"]))["schedule"]
    steps, warmup = told["epochs"] * told["iterations_per_epoch"], told["warmup_epochs"] * told["iterations_per_epoch"]
    count = np.arange(steps)
    rate = schedules.create(1e-3, schedule="cosine(floor=1e-6)", warmup="zero_to_one", warmup_steps=warmup, steps=steps)
    np.testing.assert_allclose(jax.vmap(rate)(count), reference["schedule/lr"], rtol=1e-5, atol=1e-9)
    decay, _ = transforms.cosine(steps, start=0.04, end=0.4)
    np.testing.assert_allclose(decay(count), reference["schedule/weight_decay"], rtol=1e-5)
    momentum = 1 - answers.teacher_rate(0.996, count, steps)
    np.testing.assert_allclose(momentum, reference["schedule/momentum"], rtol=1e-6)
    temperatures = reference["loss/teacher_temperatures"]
    length = int(np.argmax(temperatures == temperatures[-1])) + 1
    found = answers.teacher_temperature(settings(warmup_temperature_steps=length), np.arange(len(temperatures)))
    np.testing.assert_allclose(found, temperatures, rtol=1e-6)
    np.testing.assert_allclose(answers.teacher_temperature(settings(), np.arange(3)), 0.07)


def test_the_teacher_follows_and_each_gradient_is_clipped_as_the_authors_do(reference):
    of = lambda name: nested(reference, name)
    assert_close(
        answers.followed(of("ema/teacher/"), of("ema/student/"), 1 - reference["ema/momentum"]), of("ema/after/")
    )
    clipped, _ = transforms.clip_each(3.0).update(of("clip/grad/"), optim.optax.EmptyState())
    assert_close(clipped, of("clip/clipped_3/"))


def test_nearest_neighbours_vote_as_the_authors_do(reference):
    of = [reference[f"knn/{name}"] for name in ("train_features", "train_labels", "test_features", "test_labels")]
    chosen = probes.parse("|".join(f"knn({k})" for k in reference["knn/k"]), "probe")
    found = probes.evaluate(chosen, *of, int(of[1].max()) + 1)
    np.testing.assert_allclose(100 * np.array(list(found.values())), reference["knn/top1_percent"])


# --- Collapse ---


def test_a_collapse_is_told_in_a_sentence():
    rng = np.random.default_rng(0)
    features, entropies, outputs = rng.normal(size=(50, 8)), np.full(50, 0.3), rng.integers(0, 20, 50)
    good = collapse.figures(features, entropies, outputs, 20)
    assert collapse.sentence(good) == ""
    assert 0.9 < good["feature_deviation"] <= 1
    assert good["output_entropy"] == pytest.approx(0.9, abs=0.1)
    one = collapse.figures(np.ones((50, 8)), entropies, np.full(50, 3), 20)
    assert (one["output_entropy"], one["feature_deviation"]) == (0, pytest.approx(0))
    assert "gives all images one answer (teacher_entropy 0.3, output_entropy 0, " in collapse.sentence(one)
    flat = collapse.figures(features, np.full(50, 1.0), outputs, 20)
    assert "undecided about every image (teacher_entropy 1, " in collapse.sentence(flat)


# --- The task ---

CROPS = "decode(1)|inception_crop({0}, 0.3, 1.0)|value_range(-1, 1)"


def config(**changes):
    """Return a tiny run of four updates."""
    made = dino.get_config()
    with made.unlocked():
        made.update(steps=4, batch_size=8, eval_batch_size=90, eval_every=2, log_every=1)
        made.checkpoint.update(every=2, best="")
        made.task.update(local_ops=CROPS.format(4), local_crops=2, probe_examples=60)
        made.task.head.update(prototypes=12, hidden_dim=8, bottleneck_dim=4)
        made.model.update(num_blocks=2, hidden_dim=8, patch_size=2)
        made.data.update(source="tfds:sklearn_digits", eval_ops="decode(1)|value_range(-1, 1)")
        made.data.update(train="train[:100]", eval="test[:60]", train_ops=CROPS.format(8))
        made.optim.update(optimizer="adam", decay="cosine(start=0.04, end=0.4)", warmup_steps=1)
        made.optim.update(hold="head/last_layer", hold_steps=2)
        made.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return made


def created(**changes):
    return tasks.create(Config.of(config(**changes)))


def loss_of(task, params):
    """Return the loss of fixed crops and its gradient, blocks by themselves."""
    state = TrainState(jnp.int32(0), params, (), task.init(jax.random.key(1))[1], ())
    rng = np.random.default_rng(0)
    batch = {name: rng.integers(0, 256, (4, 2, *shape), np.uint8) for name, shape in task.data.crop_shapes.items()}
    value = lambda params: task.loss(params, state, batch, jax.random.key(0))[0]
    found, grads = jax.jit(jax.value_and_grad(value))(params)
    return found, stacked.unstack(grads)


@pytest.mark.slow
@pytest.mark.parametrize("local", ["resize", "interpolate"])
def test_small_crops_teach_the_model_also_where_blocks_are_stacked(local):
    plain, scanned = created(task__local=local), created(task__local=local, model__scan=True)
    found = [loss_of(task, task.init(jax.random.key(0))[0]) for task in (plain, scanned)]
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-5)
    assert_close(found[1][1], found[0][1])
    without = loss_of(created(task__local_crops=0), plain.init(jax.random.key(0))[0])
    assert not np.isclose(without[0], found[0][0], rtol=1e-6)


@pytest.mark.slow
def test_token_mixing_is_interpolated_in_a_step_as_it_is_for_other_images():
    model = models.create("ResMlp", 0, num_blocks=2, patch_size=2, hidden_dim=4, layerscale_init=0.1)
    params, like = (model.init(jax.random.key(0), np.zeros((1, n, n, 1)))["params"] for n in (8, 4))
    expected = resize.resize(params, like, "interpolate", size=(4, 4), where="it")
    assert_close(resize.in_step(params, (8, 8), (4, 4), (2, 2)), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task__local_ops": CROPS.format(16)},
            "config.task.local_ops gives crops of 16x16x1, .* 8x8x1; small crops are",
        ),
        (
            {"data__train_ops": CROPS.format(16)},
            "config.data.train_ops gives crops of 16x16x1, .* make the large crops",
        ),
        ({"task__second_ops": CROPS.format(4)}, "config.task.second_ops gives crops of 4x4x1, config.data.eval_ops"),
        ({"data__train_ops": "decode(1)|center_crop(16)|value_range(-1, 1)"}, r"center_crop\(16\) of 8x8 pixels"),
        ({"task__local": "resise"}, "config.task.local: 'resise' is not known; did you mean 'resize'"),
        ({"task__local": "interpolate", "task__local_ops": CROPS.format(3)}, "cannot be cut into patches of 2x2"),
        ({"task__head__prototypes": 0}, "config.task.head: prototypes is 0; it must be from 1"),
        ({"task__momentum": 2.0}, "config.task: momentum is 2.0; it must be from 0 to 1"),
        ({"ema_decay": 0.9}, "the teacher of DINO is a running mean already; set it to 0"),
        ({"data__eval": "", "checkpoint__best": ""}, "config.task.probe is .* there are no labels to try it with"),
    ],
)
def test_what_does_not_work_is_one_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        created(**changes)


@pytest.mark.slow
def test_a_run_resumes_to_the_same_bits_and_publishes_its_teacher(tmp_path):
    whole = train_and_evaluate(config(), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")  # as if killed after the checkpoint of step 2
    shutil.rmtree(tmp_path / "resumed/checkpoints/4")
    again = train_and_evaluate(config(), tmp_path / "resumed")
    assert_same(jax.device_get((again.params, again.extra)), jax.device_get((whole.params, whole.extra)))
    assert logged(tmp_path / "resumed") == logged(tmp_path / "whole")
    assert logged(tmp_path / "whole")[-1].keys() >= {
        f"test[:60]/{name}" for name in ("knn_20", "teacher_entropy", "feature_deviation")
    }
    trained = open_model(str(tmp_path / "whole"))
    assert_same(trained.params, jax.device_get(whole.extra["teacher"]["backbone"]))
    assert not np.allclose(trained.params["stem"]["kernel"], whole.params["backbone"]["stem"]["kernel"])
    begun = created(init_from=str(tmp_path / "whole"))
    params, extra = begun.load(*begun.init(jax.random.key(5)))
    assert_same(params["backbone"], trained.params)
    assert_same(extra["teacher"], params)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        dict(parallel="pmap"),
        dict(parallel="jit(fsdp=2)"),
        dict(accum_steps=2),
        dict(model__scan=True),
        dict(task__local="interpolate", model__scan=True, model__remat=True),
    ],
)
def test_however_it_runs_the_update_is_the_same(changes, tmp_path):
    local = changes.get("task__local", "resize")
    usual = train_and_evaluate(config(task__local=local), tmp_path / "usual")
    other = train_and_evaluate(config(**changes), tmp_path / "other")
    if changes.get("parallel") == "pmap":
        other = jax.tree.map(lambda leaf: leaf[0], other)
    for found, expected in ((other.params, usual.params), (other.extra, usual.extra)):
        assert_close(stacked.unstack(jax.device_get(found)), jax.device_get(expected), relative=1e-4)
