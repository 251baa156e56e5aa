"""Distillation: its formulas, what a teacher in the step sees, and logits on disk by the position in the order."""

import dataclasses
import pickle
import re
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import distil, mae, tabular
from tests.helpers import DATA, assert_close, assert_same
from tests.test_train import logged
from vit_jax_mixer import pretrained, tasks, teacher
from vit_jax_mixer.config import Config
from vit_jax_mixer.data import logits as logits_lib
from vit_jax_mixer.data import record
from vit_jax_mixer.data.logits import Logits
from vit_jax_mixer.data.order import Share
from vit_jax_mixer.data.pipeline import POSITION, Loader, first_example, train_order
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.export.writing import export
from vit_jax_mixer.models import stacked
from vit_jax_mixer.plan import targets
from vit_jax_mixer.plan.compiled import Planned
from vit_jax_mixer.plan.data_shape import without_data
from vit_jax_mixer.predictors.images import Images
from vit_jax_mixer.run.step import augmented
from vit_jax_mixer.tasks import TrainState
from vit_jax_mixer.tasks.distillation import KINDS
from vit_jax_mixer.train import train_and_evaluate
from vit_jax_mixer.trained import open_model

MIXER = dict(name="MlpMixer", num_blocks=1, patch_size=4, hidden_dim=8, tokens_mlp_dim=4, channels_mlp_dim=8)
SMALL = {"steps": 4, "batch_size": 8, "eval_batch_size": 90, "optim.warmup_steps": 1, "checkpoint.every": 2}
MIXED = "decode(1)|random_shift(1)|value_range(-1, 1)|mixup(0.8)|random_erase(1.0, 'zero')"

SCALED = "value_range(-1, 1)"
COLOURED = dict(data__source="blank:10,8x8x3", data__eval="test", data__train_ops=SCALED, data__eval_ops=SCALED)


def mix(images, targets, key):
    """Mix as mixup does, by draws that compile fast."""
    share = jax.random.uniform(key)
    return [share * x + (1 - share) * x[::-1] for x in (images, targets)]


def run_of(teacher, **changes):
    config = distil.get_config()
    with config.unlocked():
        fields = {**SMALL, "model.num_blocks": 1, "model.hidden_dim": 8, "data.eval": "test[:90]"}
        fields |= {"task.teacher": str(teacher), **{name.replace("__", "."): v for name, v in changes.items()}}
        config.update_from_flattened_dict(fields)
    return config


def create(teacher, **changes):
    return tasks.create(Config.of(run_of(teacher, **changes)))


def model_folder(folder, names=tuple("0123456789"), shape=(8, 8, 1), ops="decode(1)|value_range(-1, 1)", seed=1):
    """Write an export of a Mixer with random weights, large enough that its answers differ."""
    about = Images({**MIXER, "num_classes": len(names)}, shape, ops, names if len(names) > 1 else (), "nowhere")
    folder.mkdir()
    about.write(folder)
    (folder / "card.json").write_text("{}")
    drawn = np.random.default_rng(seed)
    flat = pretrained.flatten(about.shapes(about.create("here")))
    np.savez(folder / "model.npz", **{n: drawn.normal(size=s.shape).astype(np.float32) for n, s in flat.items()})
    return folder


@pytest.fixture(scope="module")
def a_model(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("teacher") / "model")


@pytest.fixture(scope="module")
def some_logits(a_model, tmp_path_factory):
    """Logits of 4,096 positions, in two views each."""
    folder = tmp_path_factory.mktemp("logits") / "logits"
    told = list(teacher.write(Config.of(run_of(a_model, data__views=2, seed=3)), folder))
    assert told == [f"{folder}: 0 of 1 files are there, of 4,096 examples each", f"{folder}: 1 of 1"]
    return folder


# --- The formulas ---


class Given(nn.Module):
    """A model whose logits are its only parameter."""

    @nn.compact
    def __call__(self, images, train):
        return self.param("logits", nn.initializers.zeros, (len(images), 7))


@pytest.fixture(scope="module")
def reference():
    return np.load(DATA / "distillation_reference.npz")


@pytest.mark.parametrize("base", ["cross_entropy", "label_smoothing", "soft_target"])
@pytest.mark.parametrize("weight", [0.5, 0.1])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_loss_and_gradient_are_those_of_the_published_code(kind, weight, base, reference, tmp_path):
    of = logits_lib.Of({"classes": list("abcdefg")}, {}, "", "", 64)
    Logits.begin(tmp_path, of).write(0, np.resize(reference["teacher_logits"], (64, 7)))
    spec = f"hard(weight={weight})" if kind == "hard" else f"soft(temperature=3, weight={weight})"
    smoothing = 0.1 if base == "label_smoothing" else 0.0
    changes = dict(data__source="blank:7,8x8x1", data__eval="test", task__kind=spec, task__label_smoothing=smoothing)
    task = create(tmp_path, **changes)
    task.model = Given()
    batch = {"image": np.zeros((6, 8, 8, 1), np.uint8), "label": reference["labels"]}
    batch = task.train_data.beside(np.arange(6), batch)
    if base == "soft_target":  # mixed labels, with the teacher's answers as they are
        task._loss = lambda logits, _: optax.softmax_cross_entropy(logits, reference["mixed_targets"])
    loss = lambda logits: task.loss({"logits": logits}, None, batch, jax.random.key(0))[0]
    value, grad = jax.value_and_grad(loss)(reference["student_logits"])
    found = f"{base}/{kind}/alpha_{weight}"
    assert_close({"loss": value, "grad": grad}, {name: reference[f"{found}/{name}"] for name in ("loss", "grad")})


@pytest.mark.parametrize("name", ["hard_tau_1", "soft_tau_3", "soft_tau_1"])
def test_the_teachers_part_alone_is_that_of_the_published_code(name, reference):
    kind, tau = name.split("_tau_")
    term = KINDS[kind](**({"temperature": float(tau)} if kind == "soft" else {}))
    loss = lambda logits: term.loss(logits, term.answer(reference["teacher_logits"])).mean()
    value, grad = jax.value_and_grad(loss)(reference["student_logits"])
    assert_close({"loss": value, "grad": grad}, {n: reference[f"term/{name}/{n}"] for n in ("loss", "grad")})


# --- A teacher in the step ---


def test_the_teacher_sees_the_students_mixed_images_in_its_own_normalisation_and_size(tmp_path):
    names = tuple(map(str, reversed(range(10))))  # its classes stand in another order
    ops = "decode(3)|resize(12)|normalize((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))"
    folder = model_folder(tmp_path / "model", names, (12, 12, 3), ops)
    task = create(folder, task__kind="soft(temperature=2)")
    task.data.train_ops = dataclasses.replace(task.data.train_ops, device=(*task.data.train_ops.device, mix))
    trained = open_model(str(folder))
    images, key = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), np.uint8), jax.random.key(4)
    mean, std = (np.float32(three).reshape(1, 1, 1, 3) for three in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))

    @jax.jit
    def expected(params):
        """Return the part of the loss that is the teacher's, from what the student sees."""
        of_ops, of_dropout = jax.random.split(key)
        own = (images / np.float32(255) - mean) / std
        own = jax.image.resize(mix(own, own, jax.random.fold_in(of_ops, 1))[0], (6, 12, 12, 3), "linear")
        mixed, _ = task.data.train_ops.on_device(images, jnp.eye(10)[:6], of_ops)
        taught = trained.module.apply({"params": trained.params}, own, train=False)[:, ::-1]
        logits = task.model.apply({"params": params}, mixed, train=True, rngs={"dropout": of_dropout})
        return task.term.loss(logits, task.term.answer(taught)).mean()

    params = jax.jit(task.init)(jax.random.key(0))[0]
    state = TrainState(jnp.zeros((), int), params, (), (), task.frozen())
    batch = {"image": images, "label": np.arange(6)}
    _, aux = jax.jit(task.loss)(params, state, batch, key)
    assert_close(aux.metrics["teacher_loss"], expected(params), 1e-4)


def test_a_plan_counts_the_teacher_and_needs_neither_data_nor_their_names(a_model, some_logits, tmp_path):
    run = without_data(Config.of(run_of(model_folder(tmp_path / "model", tuple("abcdefghij")))), None, "")
    memory = Planned(run, targets.parse("h100:1", None)).compile(8).memory
    parameters = sum(leaf.size for leaf in jax.tree.leaves(tasks.create(run).frozen_shapes()))
    assert 4 * parameters <= memory.other_state <= 4 * parameters + 64
    of_logits = without_data(Config.of(run_of(some_logits)), None, "")
    assert first_example(tasks.create(of_logits).train_data).keys() == {"image", "label", "taught", POSITION}


# --- Logits on disk ---


@pytest.mark.parametrize("share", [Share(0, 1), Share(1, 2)])
def test_logits_are_of_the_very_images_that_the_student_sees(share, some_logits, a_model):
    task = create(some_logits, data__views=2, seed=3)
    of_model = create(a_model)
    logits = jax.jit(of_model.teacher.logits)
    for step in (0, 5):
        batch = next(Loader(0, 0, 1, share).train_batches(task.train_data, seed=3, batch_size=600, start=step))
        seen = augmented(task.train_data, 3, batch)["image"]
        assert len(seen) == 600 // share.count
        assert not np.array_equal(seen[:20:2], seen[1:20:2])  # two views
        assert_close(batch["taught"], logits(of_model.frozen(), seen))
    rows = some_logits / "logits_0000000.bin"
    expected = np.frombuffer(rows.read_bytes()[:-4], "<f4").reshape(4096, 10)
    assert_same(task.teacher(np.arange(5, 9), {})["taught"], expected[5:9])


def test_a_killed_writing_goes_on_to_the_same_bytes(a_model, tmp_path, monkeypatch):
    monkeypatch.setattr(logits_lib, "rows_of_a_file", lambda classes: 64)
    run = Config.of(run_of(a_model, steps=20))  # 160 positions: three files
    list(teacher.write(run, tmp_path / "l"))
    whole = {path.name: path.read_bytes() for path in (tmp_path / "l").iterdir()}
    assert len(whole) == 4
    (tmp_path / "l/logits_0000002.bin").unlink()
    damaged = bytearray(whole["logits_0000001.bin"])
    damaged[17] ^= 1
    (tmp_path / "l/logits_0000001.bin").write_bytes(damaged)
    logits_lib._read.cache_clear()
    assert next(teacher.write(run, tmp_path / "l")) == f"{tmp_path / 'l'}: 1 of 3 files are there, of 64 examples each"
    with pytest.raises(UserError, match=r"l holds logits of 128 examples, and this run reads 160; write the rest"):
        create(tmp_path / "l", steps=20)
    (tmp_path / "l/logits_0000002.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"logits_0000001.bin is damaged; remove it, and write it again"):
        create(tmp_path / "l", steps=20).teacher(np.arange(100, 160), {})
    list(teacher.write(run, tmp_path / "l"))
    assert whole == {path.name: path.read_bytes() for path in (tmp_path / "l").iterdir()}
    logits_lib._read.cache_clear()
    across = create(tmp_path / "l", steps=20).teacher(np.arange(50, 140), {})["taught"]
    rows = np.concatenate([np.frombuffer(whole[name][:-4], "<f4") for name in sorted(whole)[1:]]).reshape(-1, 10)
    assert_same(across, rows[50:140])
    with pytest.raises(UserError, match=r"l holds logits of another teacher, dataset or order; name another folder"):
        list(teacher.write(dataclasses.replace(run, seed=1), tmp_path / "l"))


@pytest.fixture(scope="module")
def an_onnx(tmp_path_factory):
    """An export of a model whose classes stand in another order, and that model."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("onnx")
    model = model_folder(folder / "model", tuple("9876543210"))
    export(str(model), folder / "out", formats=["onnx"])
    return folder / "out/model.onnx", model


def test_an_onnx_file_says_what_its_model_does(an_onnx, tmp_path):
    path, model = an_onnx
    task, of_model = create(path), create(model)
    batch = train_order(task.train_data, seed=0, batch_size=6, share=Share(0, 1))[2]
    assert_close(batch["taught"], jax.jit(of_model.teacher.logits)(of_model.frozen(), batch["image"]))
    assert_same(pickle.loads(pickle.dumps(task.teacher))(None, batch), batch)  # in a worker process
    list(teacher.write(Config.of(run_of(path)), tmp_path / "l"))
    assert_close(create(tmp_path / "l").teacher(np.arange(12, 18), {})["taught"], batch["taught"])
    shutil.copy(path, tmp_path / "alone.onnx")  # without names, its classes are the data's by their place
    alone = create(tmp_path / "alone.onnx")
    assert_close(alone.teacher(None, batch)["taught"], batch["taught"][:, ::-1])
    assert alone.digests == task.digests
    with pytest.raises(UserError, match=r"config.data.cache is 'host', but .*alone.onnx reads what the host draws"):
        create(tmp_path / "alone.onnx", data__cache="host")
    with pytest.raises(UserError, match=r"alone.onnx reads images of shape \(8, 8, 1\), those of .* \(8, 8, 3\)"):
        create(tmp_path / "alone.onnx", **COLOURED)
    (tmp_path / "bad.onnx").write_bytes(b"none")
    with pytest.raises(UserError, match=r"bad.onnx is no ONNX model that can be run \(.*; export it again"):
        create(tmp_path / "bad.onnx")
    with pytest.raises(UserError, match=r"^cannot read .*gone.onnx \(No such file or directory\)"):
        create(tmp_path / "gone.onnx")


OTHERS = {
    "of another order: its seed is 3, that of this run 4": dict(seed=4),
    "of another order: its views is 2, that of this run 1": dict(data__views=1),
    r"its train_ops is 'decode\(1\)\|random_shift\(1\)', that of this run 'decode\(1\)'": dict(
        data__train_ops="decode(1)|value_range(-1, 1)"
    ),
    "its draws is 'in the step', that of this run 'by the host'": dict(data__cache="none"),
    "of other data: training: 1000 examples instead of 1437": dict(data__train="train[:1000]"),
    "of 4,096 examples, and this run reads 8,000": dict(steps=1000),
}


@pytest.mark.parametrize("sentence", OTHERS)
def test_logits_of_another_dataset_or_order_are_refused(sentence, some_logits):
    with pytest.raises(UserError, match=sentence):
        create(some_logits, **{"data__views": 2, "seed": 3, **OTHERS[sentence]})


def test_answers_on_disk_are_mixed_as_the_labels_are(some_logits):
    task = create(some_logits, data__views=2, seed=3, task__kind="soft(temperature=2)")
    task.data.train_ops = dataclasses.replace(task.data.train_ops, device=(*task.data.train_ops.device, mix))
    batch = train_order(task.train_data, seed=3, batch_size=8, share=Share(0, 1))[0]
    params = jax.jit(task.init)(jax.random.key(0))[0]
    key = jax.random.key(1)

    @jax.jit
    def expected(params):
        of_ops, _ = jax.random.split(key)
        seen, answer = task.data.train_ops.on_device(batch["image"], jax.nn.softmax(batch["taught"] / 2), of_ops)
        logits = task.model.apply({"params": params}, seen, train=True, rngs={"dropout": key})
        divergence = (answer * (jnp.log(answer) - jax.nn.log_softmax(logits / 2))).sum(-1)
        return jnp.mean(divergence) * 4 / 10

    _, aux = jax.jit(task.loss)(params, None, batch, key)
    assert_close(aux.metrics["teacher_loss"], expected(params), 1e-4)


# --- Whole runs ---

FAST = dict(parallel="jit", accum_steps=2)
HOW = {
    "model": pytest.param("model", FAST),
    "logits": pytest.param("logits", dict(accum_steps=2), marks=pytest.mark.slow),
    "logits, mixed": pytest.param("logits", dict(data__train_ops=MIXED), marks=pytest.mark.slow),
    "onnx": pytest.param("onnx", {}, marks=pytest.mark.slow),
    "pmap": pytest.param("model", dict(parallel="pmap", data__train_ops=MIXED), marks=pytest.mark.slow),
    "scan": pytest.param(
        "model", dict(parallel="jit(fsdp=2)", model__scan=True, model__num_blocks=2), marks=pytest.mark.slow
    ),
}


@pytest.mark.parametrize(("which", "how"), HOW.values(), ids=HOW)
def test_a_run_resumes_to_the_same_bits_and_publishes_the_student(which, how, a_model, some_logits, request, tmp_path):
    onnx = request.getfixturevalue("an_onnx")[0] if which == "onnx" else ""
    of = {"onnx": (onnx, {}), "model": (a_model, {}), "logits": (some_logits, dict(data__views=2, seed=3))}[which]
    config = lambda **changes: run_of(of[0], eval_every=4, **of[1], **how, **changes)
    whole = train_and_evaluate(config(), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")  # as if killed after the checkpoint of step 2
    shutil.rmtree(tmp_path / "resumed/checkpoints/4")
    resumed = train_and_evaluate(config(), tmp_path / "resumed")
    assert_same(jax.device_get(resumed.params), jax.device_get(whole.params))
    assert logged(tmp_path / "resumed") == logged(tmp_path / "whole")
    student = open_model(str(tmp_path / "whole"))
    assert student.about.source == f"trained on tfds:sklearn_digits train, taught by {of[0]}"
    assert student.about.model["name"] == "ResMlp"
    if how.get("parallel") == "jit":
        assert_same(student.params, stacked.unstack(jax.device_get(whole.params)))


def test_a_run_goes_on_with_its_own_teacher_alone(a_model, some_logits, tmp_path):
    recorded = lambda task: record.of(task.train_data, task.eval_data, task.digests)
    own = recorded(create(a_model))
    assert record.changes(own, recorded(create(shutil.copytree(a_model, tmp_path / "model")))) == []
    assert record.changes(own, recorded(create(some_logits, data__views=2, seed=3))) == []  # they are its own
    other = recorded(create(model_folder(tmp_path / "other", seed=2)))
    assert record.changes(own, other) == ["the teacher: it is another"]


# --- What is no teacher ---


@pytest.mark.parametrize(
    ("names", "data", "sentence"),
    [
        ("abcdefg", {}, "has 7 classes, the data 10; name a teacher of the same classes"),
        ("abcdefghij", {}, "the data: 10 of its 10 classes are none of the teacher's 10, '0', "),
        ("0123456789", COLOURED, "reads grey images, and those of the data are coloured"),
    ],
)
def test_a_teacher_of_other_classes_or_images_is_refused(names, data, sentence, tmp_path):
    folder = model_folder(tmp_path / "model", tuple(names))
    with pytest.raises(UserError, match=rf"^config.task.teacher: {re.escape(str(folder))}.*{sentence}"):
        create(folder, **data)


def test_what_is_no_model_of_images_with_classes_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^config.task.teacher is ''; name a workdir, published weights, an ONNX"):
        create("")
    with pytest.raises(UserError, match=r"config.task.kind: 'hart' is not known; did you mean 'hard'"):
        create("x", task__kind="hart")
    with pytest.raises(UserError, match=r"cannot read .*/gone|gone"):
        create(tmp_path / "gone")


def test_a_run_of_another_task_teaches_nothing(tmp_path):
    rows, masked = tmp_path / "rows", tmp_path / "masked"
    short = {"steps": 1, "eval_every": 1, "checkpoint.every": 1, "optim.warmup_steps": 0}
    for config, workdir in ((tabular.get_config(), rows), (mae.get_config(), masked)):
        config.update_from_flattened_dict(short)
        train_and_evaluate(config, workdir)
    with pytest.raises(
        UserError, match=r"^config.task.teacher: .*rows is a model of rows, not of images; name one that"
    ):
        create(rows)
    with pytest.raises(UserError, match=r"^config.task.teacher: .*masked has no head.*; name a model that classifies"):
        create(masked)
