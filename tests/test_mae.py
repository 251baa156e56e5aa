"""Masked pretraining: patches, targets and loss of the original; a run of it, and what comes out."""

import importlib

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from tests.helpers import DATA, assert_close, assert_same
from tests.test_train import lines
from vit_jax_mixer import tasks
from vit_jax_mixer.config import Config
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run.assemble import assemble
from vit_jax_mixer.tasks import mae, masking
from vit_jax_mixer.train import train_and_evaluate
from vit_jax_mixer.trained import open_model

REFERENCE = np.load(DATA / "mae_reference.npz")
IMAGES = REFERENCE["images_nchw"].transpose(0, 2, 3, 1)


def small(**changes):
    """Return a tiny config on the digits; changes are by their path, as task__decoder."""
    config = importlib.import_module("configs.mae").get_config()
    config.steps = config.eval_every = config.checkpoint.every = 4
    config.batch_size, config.optim.warmup_steps = 8, 1
    config.model.num_blocks, config.model.hidden_dim = 1, 12
    config.data.train, config.data.eval = "train[:40]", "test[:10]"
    for path, value in changes.items():
        *sections, name = path.split("__")
        section = config
        for one in sections:
            section = section[one]
        with section.unlocked():
            section[name] = value
    return config


def task_of(**changes):
    return tasks.create(Config.of(small(**changes)))


@pytest.mark.parametrize("normalise", [False, True])
def test_targets_loss_and_gradient_are_those_of_the_original(normalise):
    kind = f"norm_pix_{'on' if normalise else 'off'}"
    task = task_of(task__normalise=normalise)
    task.grid = (4, 4)  # of 16 x 16 pixels in patches of 4
    target = jax.jit(task.target)(IMAGES)
    assert_close(target, REFERENCE[f"{kind}/target"])
    loss = lambda prediction: masking.mean_loss(prediction, target, REFERENCE["mask"])
    value, grad = jax.jit(jax.value_and_grad(loss))(REFERENCE["prediction"])
    assert_close(value, REFERENCE[f"{kind}/loss"])
    assert_close(grad, REFERENCE[f"{kind}/grad_prediction"])


def test_patches_become_the_image_again():
    images = np.random.default_rng(0).normal(size=(2, 6, 8, 3)).astype(np.float32)
    cut = mae.patches(images, (2, 4))
    assert cut.shape == (2, 8, 18)
    np.testing.assert_array_equal(cut[1, 5].reshape(3, 2, 3), images[1, 3:6, 2:4])
    np.testing.assert_array_equal(mae.whole(cut, (2, 4), (6, 8, 3)), images)


FAMILIES = {
    "MlpMixer": {},
    "ResMlp": dict(name="ResMlp", num_blocks=1, patch_size=2, hidden_dim=12, layerscale_init=0.1),
    "GMlp": dict(name="GMlp", num_blocks=1, patch_size=2, hidden_dim=12, scan=True),
}


@pytest.mark.parametrize("family", ["MlpMixer", *(pytest.param(f, marks=pytest.mark.slow) for f in ("ResMlp", "GMlp"))])
def test_what_is_hidden_is_not_seen_and_all_else_is(family):
    task = task_of(**({"model": FAMILIES[family]} if FAMILIES[family] else {}), task__decoder="blocks(1, 8, 4, 8)")
    params = jax.jit(lambda key: task.init(key)[0])(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.1, params)
    told = jax.jit(lambda images, mask: task.told(params, images, mask))
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype(np.float32)
    mask = np.zeros((1, 16), np.float32)
    mask[0, 5] = 1  # rows 2 and 3, columns 2 and 3
    hidden, seen = image.copy(), image.copy()
    hidden[0, 2:4, 2:4] += 1
    seen[0, 0, 0] += 1
    found = told(image, mask)
    assert found.shape == (1, 16, 4)
    np.testing.assert_array_equal(told(hidden, mask), found)
    assert np.abs(told(seen, mask)[0, 5] - found[0, 5]).max() > 1e-6  # by the mixing of tokens


def test_an_evaluation_hides_the_same_patches_whatever_the_batch():
    task = task_of()
    batch = {"image": np.random.default_rng(0).integers(0, 128, (6, 8, 8, 1), np.uint8)}
    run = Config.of(small())
    state = assemble(run).fresh_state()
    step = jax.jit(task.eval_step)
    whole = step(state, batch)["losses"]
    assert whole.shape == (6,)
    half = np.concatenate([step(state, {"image": batch["image"][part]})["losses"] for part in (slice(3), slice(3, 6))])
    np.testing.assert_allclose(half, whole, rtol=1e-5)
    drawn = step(state, {**batch, "drawn": np.ones(6, bool)})
    grey = drawn["masked"] == 128  # no byte of the images is
    assert 0.5 < grey.mean() < 0.66  # 10 of 16 patches
    assert (drawn["told"] == drawn["whole"])[~grey].all()
    assert (drawn["told"] != drawn["whole"])[grey].mean() > 0.5
    np.testing.assert_array_equal(jax.jit(task._bytes)(task.data.eval_ops.on_device(batch["image"])[0]), batch["image"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(task__mask_ratio=0.0), r"mask_ratio 0.0 hides 0 of 16 patches; hide some, not all"),
        (dict(task__mask_ratio=0.99), r"mask_ratio 0.99 hides 16 of 16 patches"),
        (dict(task__decoder="block"), r"config.task.decoder: .*'blocks'"),
        (dict(model=dict(name="MnistMixer", patch_size=2)), "is a MnistMixer, whose tokens cannot be masked"),
        (dict(init_from="w.npz"), r"config.init_from is 'w.npz', which the task mae does not read"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        task_of(**changes)


def pictures_of(workdir):
    """Return (tag, step, width) of the pictures in a run's TensorBoard file."""
    found = []
    for path in workdir.glob("events.*"):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            found += [(v.tag, event.step, v.image.width) for v in event.summary.value if v.image.width]
            data = data[16 + length :]
    return found


@pytest.mark.slow
def test_a_run_publishes_the_backbone_and_shows_pictures(tmp_path):
    state = train_and_evaluate(small(), tmp_path / "run")
    assert set(state.params) == {"backbone", "mask_token", "decoder"}
    with Image.open(tmp_path / "run/pictures/reconstructions_4.png") as picture:
        size = picture.size
    assert pictures_of(tmp_path / "run") == [("reconstructions", 4, size[0])]
    assert size[1] > 8 * 96
    *_, last = lines(tmp_path / "run")
    assert set(last) == {"step", "test[:10]/loss"}
    model = open_model(str(tmp_path / "run"))
    assert_same(model.params, jax.device_get(state.params["backbone"]))
    digits = importlib.import_module("configs.digits").get_config()
    digits.model = small().model
    digits.init_from = str(tmp_path / "run")
    digits.data.train = "train[:1%]"
    digits.batch_size = 8
    tuned = assemble(Config.of(digits)).fresh_state()
    assert_same({k: v for k, v in jax.device_get(tuned.params).items() if k != "head"}, model.params)


@pytest.mark.slow
@pytest.mark.parametrize("way", [{"parallel": "jit(fsdp=2)"}, {"accum_steps": 2}, {"model__scan": True}])
def test_it_learns_the_same_loss_in_other_ways_of_computing(way, tmp_path):
    """Masks of parts are drawn anew, so with accumulation the loss is like the other, not the same."""
    found = []
    for name, changes in (("plain", {}), ("other", way)):
        config = small(steps=60, eval_every=60, checkpoint__every=60, optim__learning_rate=1e-2, **changes)
        train_and_evaluate(config, tmp_path / name)
        found.append(lines(tmp_path / name)[-1]["test[:10]/loss"])
    assert found[1] == pytest.approx(found[0], rel=0.2 if "accum_steps" in way else 1e-3)


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit_and_under_pmap(tmp_path):
    config = small(parallel="pmap", ema_decay=0.9, optim__schedule="constant")
    whole = train_and_evaluate(config, tmp_path / "whole")
    config.steps = 2
    train_and_evaluate(config, tmp_path / "parts")
    config.steps = 4
    assert_same(train_and_evaluate(config, tmp_path / "parts"), whole)
    means = [open_model(str(tmp_path / name)) for name in ("whole", "parts")]
    assert_same(means[0].params, means[1].params)
    assert "ema.backbone" in means[0].origin  # with a running mean, that is published
