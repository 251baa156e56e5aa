"""Every file in configs/ runs through the real command line, shrunk only by --config.x= overrides."""

import dataclasses
import importlib
import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.helpers import ROOT, command
from tests.test_sources import write_idx
from vit_jax_mixer import config_file, models, pretrained, specs
from vit_jax_mixer.config import Config
from vit_jax_mixer.data import images
from vit_jax_mixer.pretrained import registry
from vit_jax_mixer.run import optim
from vit_jax_mixer.run.assemble import assemble
from vit_jax_mixer.train import train_and_evaluate

# The embedded digits, enlarged, in the place of data that must be downloaded.
DIGITS = ["--config.data.source=tfds:sklearn_digits", "--config.data.train=train[:40]", "--config.data.eval=test[:10]"]
PHOTOS = [
    *DIGITS,
    "--config.batch_size=4",
    "--config.eval_batch_size=6",
    "--config.loader.workers=0",
    "--config.loader.threads=1",
    "--config.loader.prefetch=1",
    "--config.model.num_blocks=1",
    "--config.model.hidden_dim=32",
]
MIXER = dict(num_blocks=1, patch_size=4, hidden_dim=8, tokens_mlp_dim=4, channels_mlp_dim=8)
PLAIN = ["--config.model.scan=false", "--config.model.remat=false"]  # which compile faster, of one block
ROWS = [f"--config.data.{name}={rows}" for name, rows in (("train", "all[:70%]"), ("eval", "all[70%:]"), ("test", ""))]
TEXT = [
    "--config.data.source=numbers:300",
    "--config.data.eval=test",
    "--config.data.shapes=1",
    "--config.model.num_encoder_layers=1",
    "--config.model.num_decoder_layers=1",
    "--config.model.mlp_dim=32",
]
OVERRIDES = {
    "digits.py": ["--config.model.num_blocks=1"],
    "distil.py": ["--config.task.teacher={teacher}", "--config.model.num_blocks=1"],
    "mnist.py": ["--config.data.source=idx:{idx}"],
    "mae.py": [*DIGITS, "--config.model.num_blocks=1", "--config.batch_size=8"],
    "mae.py:ResMLP-S12": PHOTOS,
    "mixer_b16.py": PHOTOS,
    "mixer_b16.py:imagenet2012": PHOTOS,
    "mixer_imagenet.py": PHOTOS,
    "photos.py": PHOTOS,
    "multilabel.py": PHOTOS,  # each digit as a list of one label
    "photos.py:finetune": [*PHOTOS, "--config.init_from="],
    "mixer_imagenet.py:S/32": [*PHOTOS, *PLAIN],
    "resmlp_imagenet.py:S12": [*PHOTOS, "--config.model.patch_size=56"],
    "resmlp_finetune.py:flowers,S12": [
        *PHOTOS,
        "--config.model.patch_size=56",
        "--config.init_from=",
        "--config.data.train_ops=decode_crop(224)|normalize",  # the whole of it is that of resmlp_imagenet.py
    ],
    "gmlp_imagenet.py:Ti16": [*PHOTOS, *PLAIN, "--config.model.patch_size=56"],
    "mixer_nano.py": PHOTOS,
    "dino.py": ["--config.data.source=idx:{idx}", "--config.model.num_blocks=1"],
    "dino_imagenet.py": [
        *PHOTOS,
        "--config.eval_every=2",
        "--config.task.local_crops=1",
        "--config.task.head.prototypes=16",
        "--config.task.head.hidden_dim=16",
        "--config.task.probe_examples=8",
    ],
    "tabular.py": [],
    "tabular.py:masked": [],
    "tabular.py:original": [
        *ROWS,
        "--config.data.source=sklearn:breast_cancer",
        "--config.data.drop=",
        "--config.batch_size=4",
        "--config.model.num_blocks=1",
        "--config.task.beside=",
    ],
    "translate.py": TEXT,
    "translate_wmt.py:en-de": [
        *TEXT,
        "--config.data.vocabulary=unigram(64)",
        "--config.model.max_length=24",
        "--config.model.hidden_dim=32",
        "--config.batch_size=256",
    ],
    "tabular.py:rows.csv": [*ROWS, "--config.data.source=sklearn:iris", "--config.task.beside="],
}


@pytest.fixture(scope="module")
def idx(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mnist")
    rng = np.random.default_rng(0)
    for name, count in (("train", 200), ("t10k", 50)):
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, 28, 28)))
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A Mixer's weights for the digits, as they begin."""
    model = models.create("MlpMixer", 10, **MIXER)
    params = model.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))["params"]
    path = tmp_path_factory.mktemp("teacher") / "mixer.npz"
    np.savez(path, **pretrained.flatten(params))
    return path


def test_no_config_is_left_out():
    files = {path.name for path in (ROOT / "configs").glob("*.py")} - {"common.py", "__init__.py"}
    assert files == {name.partition(":")[0] for name in OVERRIDES}


def parsed(name, *flags):
    _, _, config = config_file.take([f"--config=configs/{name}", *flags])
    return config


def check_run(workdir, told):
    *_, evaluation = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert evaluation["step"] == 2
    assert re.search(
        r"done: step 2 is the best, .*(accuracy|loss|knn_20|precision) [\d.]+; use the model: python -m .*predict", told
    )
    assert any(metric.endswith(("/accuracy", "/loss", "/knn_20")) for metric in evaluation)
    assert (workdir / "checkpoints/2").is_dir()


SLOW = {"translate_wmt.py:en-de": pytest.mark.slow}  # it differs from the other in numbers alone


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in OVERRIDES])
def test_it_runs_for_two_steps_and_one_evaluation(name, idx, teacher, tmp_path, capsys, monkeypatch):
    if "translate" in name:
        pytest.importorskip("sentencepiece")
        pytest.importorskip("sacrebleu")
    monkeypatch.chdir(ROOT)
    flags = [flag.format(idx=idx, teacher=teacher) for flag in OVERRIDES[name]]
    train_and_evaluate(parsed(name, *flags, "--config.steps=2", "--config.optim.warmup_steps=1"), tmp_path)
    check_run(tmp_path, capsys.readouterr().out)


def test_the_command_does_the_same(tmp_path):
    flags = ["--config.steps=2", "--config.optim.warmup_steps=1"]
    result = command("main", "--config=configs/digits.py", f"--workdir={tmp_path}", *flags)
    assert result.returncode == 0, result.stderr
    check_run(tmp_path, result.stdout)


def test_the_evaluation_is_named_in_one_place():
    config = importlib.import_module("configs.mixer_b16").get_config("cifar10")
    assert Config.of(config).checkpoint["best"] == "test/accuracy"
    config.data.eval = "train[:10%]"
    assert Config.of(config).checkpoint["best"] == "train[:10%]/accuracy"
    config.checkpoint.best = "min loss"
    assert Config.of(config).checkpoint["best"] == "min train[:10%]/loss"
    config.checkpoint.best = "test/loss"  # a full name stays
    assert Config.of(config).checkpoint["best"] == "test/loss"


def test_a_run_without_evaluation(tmp_path):
    config = importlib.import_module("configs.digits").get_config()
    config.steps, config.optim.warmup_steps, config.data.eval = 2, 1, ""
    train_and_evaluate(config, tmp_path)
    (line,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert line["step"] == 2
    assert not any(name.startswith(("test/", "/")) for name in line)
    assert (tmp_path / "checkpoints/2").is_dir()


def test_the_common_config_has_all_fields_that_a_run_reads():
    config = importlib.import_module("configs.common").get_config()
    no_field = {"epochs"}  # what lengths in epochs were given as
    assert set(config) == {field.name for field in dataclasses.fields(Config)} - no_field


def test_every_field_of_the_common_config_has_a_comment():
    lines = [line.strip() for line in (ROOT / "configs/common.py").read_text().splitlines()]
    for above, line in itertools.pairwise(lines):
        if line.startswith("config.") and not line.endswith("= ConfigDict()"):
            assert "  # " in line or above.startswith("# "), line


def test_the_imagenet_config_counts_300_epochs():
    config = importlib.import_module("configs.mixer_imagenet").get_config("L/16")
    assert config.model.name == "Mixer-L/16"
    assert config.steps * config.batch_size == pytest.approx(300 * 1_281_167, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "epochs", "batch_size", "rate"),
    [
        *((f"resmlp_imagenet.py:{size}", 400, 2048, 5e-3) for size in ("S12", "S24", "S36", "B24", "B24/16")),
        *((f"resmlp_finetune.py:{data}", 1000, 768, 5e-6) for data in ("cifar10", "cifar100", "flowers", "cars,S12")),
        *((f"gmlp_imagenet.py:{size}", 300, 4096, 1e-3) for size in ("Ti16", "S16", "B16")),
        ("mixer_nano.py:wide", 300, 128, 1e-3),
    ],
)
def test_each_choice_of_a_recipe_is_of_parts_that_there_are(name, epochs, batch_size, rate, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = parsed(name)
    run = Config.of(config)
    examples = {"tfds:imagenet2012": 1_281_167, "tfds:oxford_flowers102": 2_040, "tfds:cars196": 8_144}
    epoch = examples.get(run.data["source"], 50_000) / batch_size
    assert (run.batch_size, run.optim["learning_rate"]) == (batch_size, rate)
    assert run.steps / epoch == pytest.approx(epochs, rel=1.1e-3)
    models.create(**{**run.model, "num_classes": 10})
    images.parse(run.data["train_ops"], "train_ops")
    images.parse(run.data["eval_ops"], "eval_ops")
    _, found = specs.call(optim.create, run.optim, "config.optim", steps=run.steps)
    assert found(run.optim["warmup_steps"]) == pytest.approx(rate, rel=1e-3)
    assert found(run.steps) <= rate / 100
    if run.init_from:
        registry.find(run.init_from)


def test_the_smallest_recipe_has_as_many_parameters_as_it_says():
    config = importlib.import_module("configs.mixer_nano")
    for width, expected in (("small", 671_626), ("wide", 1_132_170)):
        model = models.create(**config.get_config(width).model, num_classes=10)
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("size", ["S12", "S24", "S36", "B24"])
def test_one_update_of_the_published_recipe_at_full_augmentation(size, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    rng = np.random.default_rng(0)
    for i in range(16):
        folder = tmp_path / "photos" / f"class_{i % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        coarse.resize((400, 300), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg")
    flags = [
        f"--config.data.source=folder:{tmp_path / 'photos'}",
        "--config.data.train=all",
        "--config.data.eval=all",
        "--config.steps=1",
        "--config.optim.warmup_steps=0",
        "--config.batch_size=16",
        "--config.eval_batch_size=16",
        "--config.model.num_blocks=2",
        "--config.model.hidden_dim=24",
        "--config.loader.workers=0",
        "--config.log_every=1",
    ]
    config = parsed(f"resmlp_imagenet.py:{size}", *flags)
    state = train_and_evaluate(config, tmp_path / "run")
    before = assemble(Config.of(config)).fresh_state()
    line, *_ = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert line["step"] == 1
    assert np.isfinite([line["train/loss"], line["train/grad_norm"]]).all()
    moved = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), state.params, before.params)
    # The head's kernel starts anew, and LAMB moves it by the rate times its own length.
    head, start = (np.asarray(one.params["head"]["kernel"]) for one in (state, before))
    assert np.linalg.norm(head - start) == pytest.approx(5e-3 * np.linalg.norm(start), rel=0.02)
    assert all(0 < leaf <= 0.0051 for leaf in jax.tree.leaves(moved))
