"""The command line: bad input ends with one clear sentence, and TensorFlow is never loaded."""

import json
import os
import signal
import subprocess
import sys

import pytest
from absl import flags
from PIL import Image

from tests.helpers import ROOT, assert_one_sentence, command, environment
from tests.test_sources import write_image
from vit_jax_mixer import command_line, main
from vit_jax_mixer.errors import UserError

QUICK = ["--config.steps=2", "--config.optim.warmup_steps=1", "--config.eval_batch_size=50"]


def run(workdir, *flags, config="configs/digits.py"):
    return command("main", f"--config={config}", f"--workdir={workdir}", *QUICK, *flags)


@pytest.mark.parametrize(
    ("flag", "parts"),
    [
        ("--config.optim.learing_rate=1", ["config.optim has no field 'learing_rate'", "did you mean 'learning_rate'"]),
        ("--config.batchsize=1", ["config has no field 'batchsize'", "did you mean 'batch_size'"]),
        ("--config.optim.lr.x=1", ["config.optim has no field 'lr'"]),
        ("--config.batch_size=many", ["batch_size", "many"]),
        ("--confg.x=1", ["Unknown command line flag 'confg.x'"]),
        ("steps=3", ["'steps=3' is no flag"]),
        ("--config.model.name=Mixer-B/61", ["'Mixer-B/61' is not known", "did you mean 'Mixer-B/16'"]),
        ("--config.task.name=clasification", ["config.task.name", "did you mean 'classification'"]),
        ("--config.task.loss=hinge", ["config.task.loss: 'hinge' is not known", "sigmoid"]),
        ("--config.parallel=pmapp", ["config.parallel", "did you mean 'pmap'"]),
        (
            "--config.data.source=tfds:cifar10",
            ["cifar10 is not prepared", "python -m vit_jax_mixer.data tfds:cifar10 --build"],
        ),
        ("--config.batch_size=63", ["config.batch_size is 63", "multiple of the 2 devices"]),
        ("--config.accum_steps=5", ["config.batch_size is 64", "2 devices times config.accum_steps (5)"]),
        ("--config.data.eval_ops=decode(1)|resize(4)|value_range(-1,1)", ["shape (8, 8, 1), eval_ops of (4, 4, 1)"]),
        ("--config.data.train_ops=decode(1)|flip", ["config.data.train_ops: 'flip'", "did you mean 'flip_lr'"]),
        (
            "--config.data.train_ops=random_shift(1)",
            ["config.data.train_ops, on the first example", "begin the operations with decode"],
        ),
        ("--config.data.train_ops=decode(1)", ["train_ops gives bytes", "end it with value_range"]),
        ("--config.data.train_ops=decode(1)|mixup(0.5)", ["train_ops gives bytes", "end it with value_range"]),
        (
            "--config.data.train_ops=decode_crop(0)|value_range(-1,1)",
            ["config.data.train_ops: decode_crop: ", "size is 0; it must be"],
        ),
        ("--config.seed=-1", ["config: seed is -1; it must be from 0"]),
        ("--config.loader.threads=-2", ["config.loader: threads is -2; it must be"]),
        ("--config.data.views=0", ["config.data.views is 0; it must be 1 or more"]),
        ("--config.data.on_bad_example=ignore", ["config.data.on_bad_example: 'ignore' is not known", "skip, stop"]),
        (
            "--config.data.eval_ops=decode(1)|value_range(-1, 1)|mixup(0.5)",
            ["config.data.eval_ops", "mixup and cutmix are for training alone"],
        ),
        ("--workdir=gs://b/x", ["gs://b/x is no local folder"]),
        ("--config.log_every=0", ["config: log_every is 0; it must be from 1"]),
        ("--config.init_from=/nowhere.npz", ["there is no file /nowhere.npz"]),
        ("--config.model.patch_size=3", ["images of 8x8 pixels cannot be cut into patches of 3x3"]),
    ],
)
def test_bad_flags_are_one_sentence(tmp_path, flag, parts):
    line = ["main", "--config=configs/digits.py", f"--workdir={tmp_path}", *QUICK, flag]
    with pytest.raises((UserError, flags.Error)) as found:
        main.main(command_line.parse_flags(line))
    command_line.FLAGS.unparse_flags()
    sentence = str(found.value)
    assert "\n" not in sentence
    for part in parts:
        assert part in sentence


def test_bad_flags_end_the_command_with_one_sentence(tmp_path):
    field = run(tmp_path, "--config.batchsize=1")
    assert_one_sentence(field, "config has no field 'batchsize'", "did you mean 'batch_size'")
    assert_one_sentence(run(tmp_path, "--confg.x=1"), "Unknown command line flag 'confg.x'")
    assert_one_sentence(run(tmp_path, "--config.init_from=/nowhere.npz"), "there is no file /nowhere.npz")


def test_bad_config_files_are_one_sentence(tmp_path):
    assert_one_sentence(run(tmp_path, config="configs/digit.py"), "no config file configs/digit.py", "digits, ")
    assert_one_sentence(run(tmp_path, config="configs/mixer_b16.py:cifar"), "no dataset 'cifar'", "cifar100")
    assert_one_sentence(command("main"), "no --config given")
    assert_one_sentence(command("main", "--config"), "no --config given")
    mine = tmp_path / "mine.py"
    mine.write_text("from configs import digits\n\n\ndef get_config():\n    c = digits.get_config()\n    c.stepz = 3\n")
    assert_one_sentence(run(tmp_path, config=mine), "stepz", "steps")


def test_a_field_that_nobody_reads_is_one_sentence(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from configs import digits\n\n\ndef get_config():\n    c = digits.get_config()\n"
        "    with c.unlocked():\n        c.data.shufle = True\n    return c\n"
    )
    assert_one_sentence(
        run(tmp_path, config=mine), "config.data has no field 'shufle'", "Known: balance, cache, cache_mib, eval"
    )


def test_a_workdir_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    assert_one_sentence(run(tmp_path / "file/run"), f"cannot write to the workdir {tmp_path}/file/run")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_truncated_image_is_named(tmp_path, split):
    for i in range(8):
        for where in ("train/cat", "train/dog", "test/cat", "test/dog"):
            write_image(tmp_path / where / f"{i}.png", i, (16, 16))
    bad = tmp_path / split / "dog/3.png"
    Image.effect_noise((16, 16), 50).save(bad)
    bad.write_bytes(bad.read_bytes()[:100])
    flags = [
        f"--config.data.source=folder:{tmp_path}",
        "--config.data.train_ops=decode(1)|resize(8)|value_range(-1,1)",
        "--config.data.eval_ops=decode(1)|resize(8)|value_range(-1,1)",
        "--config.batch_size=16",
    ]
    result = run(tmp_path / "run", *flags)
    assert_one_sentence(result, str(bad), "cannot be decoded as an image")
    if split == "test":  # what was trained before the evaluation is saved, and the evaluation made up for
        assert (tmp_path / "run/checkpoints/2").is_dir()
        bad.unlink()
        assert_one_sentence(run(tmp_path / "run", *flags), "15 examples instead of 16", "--change_data")
        again = run(tmp_path / "run", *flags, "--change_data")
        assert again.returncode == 0, again.stderr
        last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
        assert last["step"] == 2
        assert "test/accuracy" in last


def test_an_empty_class_folder_is_named(tmp_path):
    write_image(tmp_path / "train/cat/x.png")
    (tmp_path / "train/dog").mkdir()
    result = run(tmp_path / "run", f"--config.data.source=folder:{tmp_path}")
    assert_one_sentence(result, f"{tmp_path}/train/dog (no image in it)")


def test_tensorflow_is_never_loaded(tmp_path):
    """A package of that name, which notes that it is loaded, lies on the path of a whole run."""
    package = tmp_path / "site/tensorflow"
    package.mkdir(parents=True)
    loaded = tmp_path / "loaded"
    package.joinpath("__init__.py").write_text(f"open({str(loaded)!r}, 'w').close()\nraise ImportError('not here')\n")
    env = {**environment(), "TFDS_DATA_DIR": str(tmp_path / "tfds")}  # where the digits are not prepared yet
    env["PYTHONPATH"] = f"{tmp_path / 'site'}:{env['PYTHONPATH']}"
    code = (
        "import sys; from configs import digits; from vit_jax_mixer.train import train_and_evaluate\n"
        "c = digits.get_config(); c.steps = 2; c.optim.warmup_steps = 1\n"
        f"train_and_evaluate(c, {str(tmp_path / 'run')!r})\n"
        "assert 'tensorflow' not in sys.modules"
    )
    result = command_of(code, env)
    assert result.returncode == 0, result.stderr
    assert not loaded.exists()
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])["step"] == 2
    assert command_of("import tensorflow", env).returncode != 0  # the trap works
    assert loaded.exists()


def command_of(code, env):
    import subprocess
    import sys

    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


def test_the_workdir_is_named_after_the_config():
    from vit_jax_mixer.main import _config_name

    assert _config_name("configs/mixer_b16.py:cifar100") == "mixer_b16_cifar100"
    assert _config_name("configs/mixer_imagenet.py:B/16") == "mixer_imagenet_B_16"
    assert _config_name("/elsewhere/digits.py") == "digits"


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_leaves_the_data_workers_to_their_parent(tmp_path):
    # A terminal sends it to the whole group, and the workers must go on to deliver what the last step needs.
    command = [sys.executable, "-m", "vit_jax_mixer.main", "--config=configs/digits.py", f"--workdir={tmp_path}"]
    flags = ["--config.steps=100000", "--config.loader.workers=2", "--config.log_every=1", "--config.eval_every=100000"]
    run = subprocess.Popen(
        [*command, *flags],
        cwd=ROOT,
        env=environment(),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in run.stdout:
        if line.startswith("step 20/"):
            break
    os.killpg(run.pid, signal.SIGINT)
    said, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    assert errors == ""
    assert "SIGINT: stopped after step" in said
    assert "go on with: python -m vit_jax_mixer.main" in said
