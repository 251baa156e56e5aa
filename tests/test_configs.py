"""Every file in configs/ runs through the real command line, shrunk only by --config.x= overrides."""

import dataclasses
import importlib
import itertools
import json
import re

import jax
import numpy as np
import pytest

from tests.helpers import ROOT, command
from tests.test_sources import write_idx
from vit_jax_mixer import models, pretrained
from vit_jax_mixer.config import Config
from vit_jax_mixer.train import train_and_evaluate

# The embedded digits, enlarged, in the place of data that must be downloaded.
DIGITS = ["--config.data.source=tfds:sklearn_digits", "--config.data.train=train[:40]", "--config.data.eval=test[:10]"]
PHOTOS = [
    *DIGITS,
    "--config.batch_size=4",
    "--config.eval_batch_size=6",
    "--config.loader.threads=1",
    "--config.loader.prefetch=1",
    "--config.model.num_blocks=1",
    "--config.model.hidden_dim=32",
]
MIXER = dict(num_blocks=1, patch_size=4, hidden_dim=8, tokens_mlp_dim=4, channels_mlp_dim=8)
ROWS = [f"--config.data.{name}={rows}" for name, rows in (("train", "all[:70%]"), ("eval", "all[70%:]"), ("test", ""))]
OVERRIDES = {
    "digits.py": [],
    "distil.py": ["--config.task.teacher={teacher}", "--config.model.num_blocks=1"],
    "mnist.py": ["--config.data.source=idx:{idx}"],
    "mixer_b16.py": PHOTOS,
    "mixer_b16.py:imagenet2012": PHOTOS,
    "mixer_imagenet.py": PHOTOS,
    "photos.py": [*DIGITS, "--config.batch_size=4", "--config.eval_batch_size=6"],
    "photos.py:finetune": [*PHOTOS, "--config.init_from="],
    "mixer_imagenet.py:S/32": PHOTOS,
    "tabular.py": [],
    "tabular.py:original": [
        *ROWS,
        "--config.data.source=sklearn:breast_cancer",
        "--config.data.drop=",
        "--config.batch_size=4",
        "--config.model.num_blocks=1",
    ],
    "tabular.py:rows.csv": [*ROWS, "--config.data.source=sklearn:iris"],
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


@pytest.mark.parametrize("name", OVERRIDES)
def test_it_runs_for_two_steps_and_one_evaluation(name, idx, teacher, tmp_path):
    flags = [flag.format(idx=idx, teacher=teacher) for flag in OVERRIDES[name]]
    result = command(
        "main",
        f"--config=configs/{name}",
        f"--workdir={tmp_path}",
        "--config.steps=2",
        "--config.optim.warmup_steps=1",
        *flags,
    )
    assert result.returncode == 0, result.stderr
    *_, evaluation = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert evaluation["step"] == 2
    assert re.search(
        r"done: step 2 is the best, .*(accuracy|loss) [\d.]+; use the model: python -m .*predict", result.stdout
    )
    assert any(metric.endswith("/accuracy") for metric in evaluation)
    assert (tmp_path / "checkpoints/2").is_dir()


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
    assert set(config) == {field.name for field in dataclasses.fields(Config)}


def test_every_field_of_the_common_config_has_a_comment():
    lines = [line.strip() for line in (ROOT / "configs/common.py").read_text().splitlines()]
    for above, line in itertools.pairwise(lines):
        if line.startswith("config.") and not line.endswith("= ConfigDict()"):
            assert "  # " in line or above.startswith("# "), line


def test_the_imagenet_config_counts_300_epochs():
    config = importlib.import_module("configs.mixer_imagenet").get_config("L/16")
    assert config.model.name == "Mixer-L/16"
    assert config.steps * config.batch_size == pytest.approx(300 * 1_281_167, rel=1e-4)
