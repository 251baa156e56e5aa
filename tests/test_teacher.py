"""A task of a user's own, from outside the package: a teacher that is a running mean, two crops, and no label.

A tiny DINO (Caron et al. 2021, arXiv 2104.14294): the student sees small and large crops, the teacher large ones.
What it publishes is the teacher's backbone, which is then used as any trained model is.
"""

import json
import shutil
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from tests.helpers import assert_close, assert_one_sentence, assert_same, command
from tests.test_predict import digit
from tests.test_train import lines, logged, small
from vit_jax_mixer import plugins, predictions, pretrained, probes, tasks
from vit_jax_mixer.config import Config
from vit_jax_mixer.convert import convert
from vit_jax_mixer.data.sources import open_source
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.evaluation import evaluate, probing
from vit_jax_mixer.models import stacked
from vit_jax_mixer.plan.data_shape import without_data
from vit_jax_mixer.run.assemble import assemble, open_run
from vit_jax_mixer.train import train_and_evaluate
from vit_jax_mixer.trained import open_model

DIGITS = "tfds:sklearn_digits"
TASK = """
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax_mixer import models, specs
from vit_jax_mixer.data import images
from vit_jax_mixer.models import stacked
from vit_jax_mixer.tasks import Aux, Task
from vit_jax_mixer.tasks.images import Crops, describe, image_data

PROTOTYPES = 6


def create(run, small_ops: str, momentum: float):
    large = Crops(images.parse(run.data["train_ops"], "config.data.train_ops"), 2)
    small = Crops(images.parse(small_ops, "config.task.small_ops"), 3)
    data = image_data(run, labels=False, crops={"large": large, "small": small})
    backbone = specs.call(models.create, run.model, "config.model", num_classes=0)
    return Dino(backbone, data, small.ops, momentum, describe(run, data, num_classes=0))


class Dino(Task):
    published = "extra/teacher/backbone"

    def __init__(self, backbone, data, small_ops, momentum, about):
        self.backbone, self.data, self.small_ops, self.momentum = backbone, data, small_ops, momentum
        self.train_data, self.eval_data = data.train, {"test": data.eval}
        self._about = about

    def about(self):
        return self._about

    def init(self, key):
        of_head, key = jax.random.split(key)
        backbone = stacked.init(self.backbone, key, jnp.zeros((1, *self.data.shape)))
        head = 0.1 * jax.random.normal(of_head, (self.backbone.hidden_dim, PROTOTYPES))
        params = {"backbone": backbone, "head": head}
        return params, {"teacher": params, "centre": jnp.zeros(PROTOTYPES)}

    def project(self, params, crops, **how):
        # f32[B, n, H, W, c] -> f32[B, n, K]
        images = crops.reshape(-1, *crops.shape[2:])
        features = self.backbone.apply({"params": params["backbone"]}, images, **how)
        return (features @ params["head"]).reshape(*crops.shape[:2], -1)

    def augmented(self, ops, crops, key):
        # u8[B, n, h, w, c] -> f32[B, n, H, W, c]
        images, _ = ops.on_device(crops.reshape(-1, *crops.shape[2:]), None, key)
        return jax.image.resize(images.reshape(crops.shape), (*crops.shape[:2], *self.data.shape), "linear")

    def loss(self, params, state, batch, key):
        of_large, of_small, of_dropout = jax.random.split(key, 3)
        large = self.augmented(self.data.train_ops, batch["large"], of_large)
        small = self.augmented(self.small_ops, batch["small"], of_small)
        teacher = self.project(state.extra["teacher"], large)
        targets = jax.nn.softmax((teacher - state.extra["centre"][None, None]) / 0.1)
        crops = jnp.concatenate([large, small], 1)
        student = self.project(params, crops, train=True, rngs={"dropout": of_dropout})
        entropies = -jnp.einsum("btk,bsk->bts", targets, jax.nn.log_softmax(student))
        other = 1 - jnp.eye(2, student.shape[1])  # no crop is its own target
        loss = jnp.mean(jnp.sum(entropies * other[None], (1, 2)) / other.sum())
        return loss, Aux({}, stats=teacher.mean((0, 1)), rows=batch["large"][:, 0, 0, 0, 0])

    def after_update(self, state, aux):
        assert aux.rows.shape == (8,)
        mean = lambda old, new: self.momentum * old + (1 - self.momentum) * new
        teacher = jax.tree.map(mean, state.extra["teacher"], state.params)
        return {"teacher": teacher, "centre": 0.9 * state.extra["centre"] + 0.1 * aux.stats}

    def eval_step(self, state, batch):
        images = self.data.eval_ops.on_device(batch["image"])[0]
        outputs = jax.nn.softmax(self.project(state.extra["teacher"], images[:, None])[:, 0])
        return {"entropy": -jnp.sum(outputs * jnp.log(outputs), -1)}

    def evaluate(self, outputs):
        return {"test/teacher_entropy": float(np.mean(np.concatenate([rows["entropy"] for rows in outputs("test")])))}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Return the function that makes a config of it, on the digits."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "tiny_dino.py").write_text(TASK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(folder)])
        patch.setattr(plugins, "_allowed", {"tiny_dino"})
        yield _config
    del sys.modules["tiny_dino"]


# As a loop over blocks, parameters are stacked, but not in checkpoints.
HOW = {"jit": {}, "pmap": {"model.scan": True, "model.num_blocks": 2}}


def _config(**changes):
    made = small(steps=4, eval_every=2, batch_size=8, eval_batch_size=90, checkpoint__every=2, checkpoint__best="")
    with made.unlocked():
        ops = "decode(1)|random_shift(3)|resize({0})|value_range(-1, 1)"
        made.task = dict(name="tiny_dino", small_ops=ops.format(4), momentum=0.5)
        made.data.update(train_ops=ops.format(8))
        made.update_from_flattened_dict(
            {"model.num_blocks": 1, **{k.replace("__", "."): v for k, v in changes.items()}}
        )
    return made


@pytest.fixture(scope="module", params=["jit", pytest.param("pmap", marks=pytest.mark.slow)])
def run(config, tmp_path_factory, request):
    """The workdir of a run, and the teacher's and the student's parameters of its end."""
    workdir = tmp_path_factory.mktemp("dino") / "run"
    train_and_evaluate(config(parallel=request.param, **HOW[request.param]), workdir)
    state = stacked.unstack(jax.device_get(open_run(workdir).state))
    return workdir, state.extra["teacher"], state.params


def test_an_example_has_crops_of_two_sizes_and_no_label(config):
    task = tasks.create(Config.of(config()))
    example = task.train_data.get(0, np.random.default_rng(0))
    assert {name: value.shape for name, value in example.items()} == {"large": (2, 8, 8, 1), "small": (3, 4, 4, 1)}
    for crops in example.values():
        assert len(np.unique(crops, axis=0)) == len(crops)  # each has draws of its own
    assert task.eval_data["test"].get(0, np.random.default_rng(0)).keys() == {"image", "label"}
    elsewhere = tasks.create(without_data(Config.of(config()), 0, "8x8x1"))  # to plan it, on blank images
    assert elsewhere.train_data.get(0, np.random.default_rng(0)).keys() == {"large", "small"}
    assert elsewhere.eval_data["test"].get(0, np.random.default_rng(0)).keys() == {"image"}


def features_of(backbone, images):
    """Return f32[B, C] of the run's model with these parameters, u8[B, 8, 8, 1] being its images."""
    blocks = sum("MixerBlock_" in name for name in backbone)
    model = tasks.create(Config.of(_config(model__num_blocks=blocks))).backbone
    return jax.device_get(jax.jit(model.apply)({"params": backbone}, images / np.float32(127.5) - 1))


@pytest.fixture
def photos(tmp_path):
    """Three digits in files."""
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.fromarray(digit(i)[..., 0]).save(tmp_path / f"photos/{i}.png")
    return tmp_path / "photos"


def test_its_model_is_the_teachers_backbone(run, photos):
    workdir, teacher, student = run
    trained = open_model(str(workdir))
    assert_same(trained.params, teacher["backbone"])
    assert not np.allclose(teacher["backbone"]["stem"]["kernel"], student["backbone"]["stem"]["kernel"])
    assert trained.origin.startswith(
        "step 4, the newest; taken is 'extra.teacher.backbone', a running mean, not 'params'"
    )
    found = list(
        predictions.predict(trained, trained.about.open([str(photos)]), top=5, batch_size=2, on_bad=pytest.fail)
    )
    expected = features_of(teacher["backbone"], np.stack([digit(i) for i in range(3)]))
    assert_close(np.stack([answer.features for answer in found]), expected)
    assert [answer.classes for answer in found] == [()] * 3
    assert not np.allclose(expected, features_of(student["backbone"], np.stack([digit(i) for i in range(3)])))


@pytest.mark.slow
def test_probes_take_its_features(run):
    workdir, teacher, _ = run
    train, test = (open_source(DIGITS, split) for split in ("train[:200]", "test[:100]"))
    chosen = probes.parse("knn(5)", "--probe")
    found = probing.probe(open_model(str(workdir)), chosen, train, test, DIGITS, batch_size=50)
    ops = open_model(str(workdir)).ops

    def rows(source):
        examples = [source.examples[i] for i in range(len(source.examples))]
        pixels = np.stack([ops(example["image"], np.random.default_rng(0)) for example in examples])
        return features_of(teacher["backbone"], pixels), np.array([example["label"] for example in examples])

    assert found == probes.evaluate(chosen, *rows(train), *rows(test), 10)


def test_it_has_no_head_and_says_so(run):
    trained = open_model(str(run[0]))
    assert trained.about.lack() == "has no head, so it knows no classes"
    assert trained.about.command("a").endswith("predict --model=a --features=features.npz IMAGES")
    with pytest.raises(UserError, match="has no head, so it knows no classes; evaluate its features, with --probe"):
        evaluate(trained, open_source(DIGITS, "test"), DIGITS, batch_size=90)


def test_its_backbone_is_converted_and_another_task_begins_with_it(run, tmp_path):
    workdir, teacher, student = run
    convert(str(workdir), tmp_path / "teacher.npz")
    assert_same(pretrained.load(tmp_path / "teacher.npz"), teacher["backbone"])
    convert(str(workdir), tmp_path / "timm.safetensors")
    assert_same(pretrained.load(tmp_path / "timm.safetensors"), teacher["backbone"])
    for wanted, expected in (("params/backbone", student["backbone"]), ("params", student), ("extra.teacher", teacher)):
        assert_same(pretrained.load(f"{workdir}#{wanted}"), expected)
    blocks = sum("MixerBlock_" in name for name in teacher["backbone"])
    task = tasks.create(Config.of(small(model__num_blocks=blocks, init_from=str(workdir))))
    params, _ = task.load(*task.init(jax.random.key(0)))
    assert_same({name: params[name] for name in teacher["backbone"]}, teacher["backbone"])
    assert params.keys() - teacher["backbone"].keys() == {"head"}


def test_what_is_published_and_is_not_the_model_is_a_defect_before_it_trains(config):
    parts = assemble(Config.of(config(**HOW["pmap"])))
    parts.check_published()
    for published in ("extra/teacher", "extra/gone", "params"):
        parts.task.published = published
        with pytest.raises(
            ValueError, match=rf"^Dino.published, '{published}', is not .*: they differ in 'MixerBlock_0/"
        ):
            parts.check_published()


@pytest.mark.slow
def test_the_commands_take_its_workdir(run, photos, tmp_path):
    workdir, teacher, _ = run
    images = np.stack([digit(i) for i in range(3)])
    expected = features_of(teacher["backbone"], images)
    done = command("predict", f"--model={workdir}", f"--features={tmp_path / 'f.npz'}", photos)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert_close(np.load(tmp_path / "f.npz")["features"], expected)
    sentence = command("predict", f"--model={workdir}", photos)
    assert_one_sentence(
        sentence, f"{workdir} has no head, so it knows no classes; ask for --features=FILE.npz instead."
    )
    done = command("evaluate", f"--model={workdir}", f"--data={DIGITS}", "--probe=ridge(5)|knn(5)", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "probes.json").read_text()).keys() >= {"ridge_5shot", "knn_5"}
    formats = "--format=safetensors,stablehlo,onnx"
    done = command("export", f"--model={workdir}", formats, tmp_path / "exported")
    assert done.returncode == 0, done.stderr
    assert_same(open_model(str(tmp_path / "exported")).params, teacher["backbone"])
    onnx = pytest.importorskip("onnxruntime").InferenceSession(tmp_path / "exported/model.onnx")
    assert_close(
        dict(zip([o.name for o in onnx.get_outputs()], onnx.run(None, {"images": images}), strict=True))["features"],
        expected,
    )


@pytest.mark.slow
def test_a_teacher_learns_from_crops_without_labels_and_resumes_to_the_same_bits(run, config, tmp_path):
    whole, parallel = run[0], open_run(run[0]).config.parallel
    shutil.copytree(whole, tmp_path / "resumed")  # as if killed after the checkpoint of step 2
    shutil.rmtree(tmp_path / "resumed/checkpoints/4")
    train_and_evaluate(config(parallel=parallel, **HOW[parallel]), tmp_path / "resumed")
    found, _, state = open_run(tmp_path / "resumed")
    assert_same(jax.device_get(state.extra), jax.device_get(open_run(whole).state.extra))
    assert_same(jax.device_get(state.params), jax.device_get(open_run(whole).state.params))
    assert logged(tmp_path / "resumed") == logged(whole)
    assert 0 < lines(whole)[-1]["test/teacher_entropy"] <= np.log(6)
    assert found.task["momentum"] == 0.5
