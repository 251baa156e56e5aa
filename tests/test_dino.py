"""DINO's formulas against the values of the authors' code, and the task in runs of its own."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import DATA, assert_close, nested
from vit_jax_mixer import probes
from vit_jax_mixer.models.dino_head import DinoHead
from vit_jax_mixer.run import optim, schedules, transforms
from vit_jax_mixer.tasks.dino import answers, collapse


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
    assert "it gives all images one answer (output_entropy 0, " in collapse.sentence(one)
    flat = collapse.figures(features, np.full(50, 1.0), outputs, 20)
    assert "undecided about every image (teacher_entropy 1.00000 of 1)" in collapse.sentence(flat)
