"""A config file from anywhere, run once, and the fields that a command line sets in it."""

import os
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.helpers import ROOT
from vit_jax_mixer import command_line, models, specs
from vit_jax_mixer.config_file import load
from vit_jax_mixer.errors import UserError

COMMON = "from configs import common\n\n\ndef get_config():\n    c = common.get_config()\n"


def parse(*flags, file="configs/mixer_b16.py") -> Any:  # a ConfigDict, whose fields are of any type
    return command_line.parse_flags(["main", f"--config={file}", *flags]).config


@pytest.fixture
def mine(tmp_path):
    """Write a config file: the lines after the first of its get_config."""

    def write(*lines, name="mine.py"):
        path = tmp_path / name
        path.write_text(COMMON + "".join(f"    {line}\n" for line in lines))
        return path

    return write


# --- The file ---


def test_a_config_elsewhere_finds_the_common_one_and_its_neighbours_with_the_package_alone(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/vit_jax_mixer").symlink_to(ROOT / "vit_jax_mixer")  # as pip puts it, without the repository
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/sizes.py").write_text("STEPS = 7\n")
    (tmp_path / "mine/a.py").write_text("import sizes\n" + COMMON + "    c.steps = sizes.STEPS\n    return c\n")
    (tmp_path / "configs").mkdir()  # of the user's own, beside which ours is still found
    (tmp_path / "configs/b.py").write_text(COMMON + "    c.steps = 8\n    return c\n")
    code = (
        "from vit_jax_mixer.config_file import load\n"
        "print(load('mine/a.py').steps, load('configs/b.py').steps, load('configs/digits.py').steps)"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert found.stdout.split() == ["7", "8", "1500"], found.stderr


def test_neighbours_of_the_same_name_in_two_folders_are_not_mixed_up(tmp_path):
    for folder, steps in (("a", 3), ("b", 4)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "sizes.py").write_text(f"STEPS = {steps}\n")
        for name, imports in (("plain", "from sizes"), ("relative", "from .sizes")):
            lines = f"{imports} import STEPS\n{COMMON}    c.steps = STEPS\n    return c\n"
            (tmp_path / folder / f"{name}.py").write_text(lines)
    found = [load(f"{tmp_path}/{folder}/{name}.py").steps for name in ("plain", "relative") for folder in "ab"]
    assert found == [3, 4, 3, 4]


def test_a_config_may_define_dataclasses_whose_annotations_are_strings(tmp_path):
    sizes = (
        "from __future__ import annotations\nimport dataclasses\n@dataclasses.dataclass\nclass A:\n    steps: int = 6\n"
    )
    (tmp_path / "a.py").write_text(f"{sizes}{COMMON}    c.steps = A().steps\n    return c\n")
    assert load(f"{tmp_path}/a.py").steps == 6


def test_a_file_that_names_another_model_need_not_delete_what_it_lacks(mine):
    assert "dropout_rate" not in parse(file=mine("c.model.name = 'ResMLP-S12'", "return c")).model
    kept = parse(file=mine("c.model.name = 'ResMLP-S12'", "c.model.dropout_rate = 0.1", "return c")).model
    assert kept.dropout_rate == 0.1  # to be told that there is no such field


def test_a_config_runs_once(mine):
    path = mine(
        "from pathlib import Path", "with Path(__file__).with_name('runs').open('a') as f: f.write('x')", "return c"
    )
    parse("--config.steps=3", file=path)
    assert path.with_name("runs").read_text() == "x"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["c.stepz = 3"], r"mine\.py, line 6: did you mean 'steps'\? The config has no field 'stepz'"),
        (["c.optim['lerning_rate'] = 3"], r"line 6: did you mean 'learning_rate'\? The config has no"),
        (["x = c.data.evall"], r"line 6: did you mean 'eval'\? The config has no field 'evall'"),
        (["c.batch_size = 'many'"], r"line 6: Could not override field 'batch_size'"),
        (["raise ValueError('no such size')"], r"line 6: no such size"),
        (["import nowhere_to_be_found"], r"line 6: No module named 'nowhere_to_be_found'"),
        (["c.steps = = 3"], r"line 6: invalid syntax"),
        (["return 3"], r"returned a int, not a ConfigDict"),
    ],
)
def test_what_a_user_can_mend_in_a_config_is_one_short_sentence_with_its_line(mine, lines, words):
    with pytest.raises(UserError, match=words) as error:
        load(str(mine(*lines)))
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "kind"),
    [("None.x", AttributeError), ("len(3)", TypeError), ("assert False", AssertionError), ("{}['a']", KeyError)],
)
def test_a_defect_of_a_config_keeps_its_traceback(mine, line, kind):
    with pytest.raises(kind) as error:
        load(str(mine(line)))
    assert not isinstance(error.value, UserError)


def test_an_argument_that_get_config_does_not_take_is_one_sentence(mine):
    with pytest.raises(UserError, match="takes no argument after a colon"):
        load(f"{mine('return c')}:cifar10")


# --- Fields by flags ---


FIELDS = {name: specs.parameters_of(entry.module, ()) for name, entry in models.MODELS.items()}
CLASSIFIERS = [name for name in models.MODELS if "num_classes" in FIELDS[name]]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_can_be_chosen_by_a_flag(name):
    sizes = {}
    if models.MODELS[name].image_shape is None:  # a bare family
        sizes = {"num_blocks": 2, "patch_size": 4, "hidden_dim": 8, "tokens_mlp_dim": 8, "channels_mlp_dim": 8}
        sizes = {field: size for field, size in {**sizes, "layerscale_init": 0.1}.items() if field in FIELDS[name]}
    for file in ("configs/mixer_b16.py", "configs/digits.py", "configs/mnist.py"):
        flags = [f"--config.model.name={name}", *(f"--config.model.{field}={size}" for field, size in sizes.items())]
        fields = parse(*flags, file=file).model.to_dict()
        made = models.create(fields.pop("name"), 10, **fields)
        for field, size in {**models.MODELS[name].sizes, **sizes}.items():
            assert getattr(made, field) == size  # also where the file's own model had another


def test_any_attribute_of_the_model_can_be_set():
    assert parse("--config.model.patch_size=16").model.patch_size == 16
    assert parse("--config.model.patch_size=(8, 16)", file="configs/digits.py").model.patch_size == (8, 16)
    assert parse("--config.model.head_dim=1e2", "--config.model.name=MnistMixer").model.head_dim == 100


def test_a_field_that_the_chosen_model_lacks_is_never_lost_in_silence():
    with pytest.raises(UserError, match=r"dropout_rate is 0.1, but ResMLP-S12 has no such field"):
        parse("--config.model.name=ResMLP-S12", "--config.model.dropout_rate=0.1")


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--config.steps=1e3"], "steps", 1000),
        (["--config.steps", "20"], "steps", 20),
        (["--config.steps=1", "--config.steps=2"], "steps", 2),
        (["--config.ema_decay=0"], "ema_decay", 0.0),
        (["--config.debug_nans"], "debug_nans", True),
        (["--noconfig.debug_nans"], "debug_nans", False),
        (["--config.debug_nans", "--config.steps=3"], "steps", 3),
        (["--config.init_from=1"], "init_from", "1"),
    ],
)
def test_values_are_read_as_their_fields_want_them(flags, field, value):
    found = parse(*flags)[field]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.model.pacth_size=8", "config.model has no field 'pacth_size'; did you mean 'patch_size'"),
        ("--config.task.los=x", "config.task has no field 'los'; did you mean 'loss'"),
        ("--config.steps=1.5", "config.steps is '1.5'; it must be of type int"),
        ("--config.steps=" + "9" * 5000, "it must be"),
        ("--config.debug_nans=maybe", "it must be true or false"),
        ("--config.steps", "--config.steps has no value"),
        ("--config.model=x", "config.model is a section"),
        ("--config.steps.x=1", "config.steps is a value"),
        ("extra", "'extra' is no flag"),
    ],
)
def test_a_flag_that_does_not_fit_is_one_sentence(flag, words):
    with pytest.raises(UserError, match=re.escape(words)):
        parse(flag)


def test_a_blank_for_the_equals_sign_is_taken():
    assert (
        command_line.parse_flags(["main", "--config", "configs/digits.py", "--workdir", "x"]).name
        == "configs/digits.py"
    )
