"""The package as its users have it: `vit-mixer`, its help, completion, other systems, the wheel and the sdist."""

import importlib
import os
import shutil
import subprocess
import sys
import tarfile
import venv
from importlib import metadata

import numpy as np
import pytest
from absl import flags
from PIL import Image

from tests.helpers import ROOT, environment
from vit_jax_mixer import __main__ as console
from vit_jax_mixer import cli, completion, config_file


def vit_mixer(*args, **kwargs):
    line = [sys.executable, "-c", "from vit_jax_mixer.__main__ import main; main()", *args]
    return subprocess.run(line, env=environment(), capture_output=True, text=True, check=False, **kwargs)


def module(name):
    found = importlib.import_module(f"vit_jax_mixer.{console._door(name)}")
    return importlib.import_module(f"{found.__name__}.__main__") if hasattr(found, "__path__") else found


@pytest.mark.parametrize("name", console.COMMANDS)
def test_the_help_of_a_command_fits_80_columns_and_begins_with_purpose_and_examples(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(cli, "program", "vit-mixer")
    door = module(name)
    monkeypatch.setitem(sys.modules, "__main__", door)
    values = next((v for v in vars(door).values() if isinstance(v, flags.FlagValues)), flags.FlagValues())
    lines = cli._help(values).splitlines()
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    assert lines[0].removesuffix(".") == console._about(name)
    assert not lines[1]
    assert lines[2].startswith(f"  vit-mixer {name}")
    text = "\n".join(lines)
    assert "python -m" not in text
    assert all(f"--{'[no]' if values[flag].boolean else ''}{flag}" in text for flag in values)
    assert "--jax_" not in text  # flags of libraries


def test_the_commands_are_the_doors_that_there_are():
    package = ROOT / "vit_jax_mixer"
    doors = {path.stem for path in package.glob("*.py") if "cli.run(" in path.read_text()} - {"cli"}
    doors |= {path.parent.name for path in package.glob("*/__main__.py")}
    assert {console._door(name) for name in console.COMMANDS} == doors


def test_a_command_by_its_name_its_help_and_the_command_that_goes_on(tmp_path):
    told = vit_mixer(cwd=tmp_path).stdout
    assert "  evaluate    Evaluate a model on labelled examples\n" in told
    assert told.startswith("Train, fine-tune and study all-MLP vision models")
    assert vit_mixer("help", "convert").stdout == vit_mixer("convert", "--help").stdout
    assert vit_mixer("trian").stderr.startswith("error: 'trian' is no command; did you mean 'train'?")
    assert "as in `vit-mixer convert resmlp.pth resmlp.safetensors`" in vit_mixer("convert", "a").stderr
    version = vit_mixer("--version").stdout
    assert "jax " in version
    assert version.startswith("vit_jax_mixer 0.")


def test_a_config_by_its_bare_name_and_all_of_them_with_a_line_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    same = [config_file.load(name).to_dict() for name in ("mixer_b16:cifar100", "configs/mixer_b16.py:cifar100")]
    assert same[0] == same[1]
    (tmp_path / "digits.py").write_text("from configs import common\nget_config = common.get_config")
    assert config_file.load("digits").steps == 10_000  # one's own first
    (tmp_path / "mnist").write_text("")
    assert config_file.load("mnist").to_dict()["data"]["source"].startswith("idx:")
    listed = config_file.listed()
    assert [name for name in config_file.ours() if f"  {name} " not in listed] == []
    assert "98.1 % test accuracy" in " ".join(listed.split())


def test_a_drive_is_no_argument():
    assert config_file.split(r"C:\photos\mine.py:small,2") == (r"C:\photos\mine.py", "small,2")
    assert config_file.split("configs/x.py:") == ("configs/x.py", "")
    assert config_file.split("x") == ("x", None)


def test_bash_completes_commands_flags_configs_and_fields():
    commands = {
        "train": completion.Command("", completion.flags_of("vit_jax_mixer.main", True)),
        "data": completion.Command("", completion.flags_of("vit_jax_mixer.data", False)),
    }
    script = completion.bash(commands)
    cases = {
        "vit-mixer tr": "train",
        "vit-mixer train --work": "--workdir=",
        "vit-mixer train --config=dig": "digits",  # bash itself keeps what is before the sign
        "vit-mixer train --config.optim.lea": "--config.optim.learning_rate=",
        "vit-mixer data --che": "--check",
        "vit-mixer data --config": "",
    }
    for line, expected in cases.items():
        words = " ".join(f"'{word}'" for word in line.split())
        ask = f"COMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDS=({words}) COMP_CWORD={len(line.split()) - 1}"
        run = f'{script}\n{ask}\ncompopt() {{ :; }}\n_vit_mixer\necho "${{COMPREPLY[*]}}"'
        result = subprocess.run(["bash", "-c", run], capture_output=True, text=True, check=True)
        assert result.stdout.strip() == expected, line
    for script in (completion.zsh(commands), completion.fish(commands)):
        assert "--config.optim.learning_rate=" in script


ELSEWHERE = """
import importlib, os, pkgutil, signal, sys
import flax, grain, jax, orbax.checkpoint  # what libraries need is their affair
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("sched_getaffinity", "sysconf", "geteuid", "getuid", "fork", "O_NOFOLLOW", "O_NONBLOCK"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("alarm", "SIGALRM", "SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2"):
    if hasattr(signal, name):
        delattr(signal, name)
import vit_jax_mixer
"""


def test_nothing_at_import_needs_what_windows_has_not():
    code = ELSEWHERE
    code += "for found in pkgutil.walk_packages(vit_jax_mixer.__path__, 'vit_jax_mixer.'):\n"
    code += "    if '.configs.' not in found.name and 'run_stablehlo' not in found.name:\n"
    code += "        importlib.import_module(found.name)\n"
    code += "from vit_jax_mixer.plan import this_machine\n"
    code += "try:\n    this_machine.memory()\nexcept vit_jax_mixer.errors.UserError as error:\n    print(error)\n"
    line = [sys.executable, "-c", code]
    result = subprocess.run(line, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "cannot be told on this system" in result.stdout


@pytest.mark.slow
def test_a_run_is_trained_goes_on_and_is_asked_without_what_windows_has_not(tmp_path):
    def run(*words):
        code = ELSEWHERE + f"sys.argv = {['vit-mixer', *words]!r}\nfrom vit_jax_mixer.__main__ import main\nmain()"
        line = [sys.executable, "-c", code]
        result = subprocess.run(line, env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    words = ("train", "--config=digits", "--config.optim.warmup_steps=0", "--config.optim.schedule=constant")
    run(*words, "--config.steps=2", "--config.eval_every=2")
    assert "from step 2" in (said := run(*words, "--config.steps=4", "--config.eval_every=2", "--change_config"))
    assert "vit-mixer predict --model=runs/digits" in said
    assert "accuracy" in run("evaluate", "--model=runs/digits", "--data=tfds:sklearn_digits")


@pytest.mark.slow
def test_the_wheel_alone_in_an_empty_folder_trains_and_predicts_and_the_sdist_is_whole(tmp_path):
    pytest.importorskip("build")
    if not (ROOT / ".git").exists() or int(metadata.version("setuptools").partition(".")[0]) < 77:
        pytest.skip("needs a clone, and setuptools 77")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = set(listed.stdout.split()) - {"configs"}
    source = tmp_path / "source"
    for name in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    (source / "configs").symlink_to("vit_jax_mixer/configs")
    built = [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, source]
    subprocess.run(built, check=True, capture_output=True)

    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert files - held == set()

    # The environment has the wheel alone, and is lent the libraries.
    environment, empty = tmp_path / "environment", tmp_path / "empty"
    venv.create(environment, with_pip=True)
    (wheel,) = tmp_path.glob("*.whl")
    python = environment / "bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    (place,) = environment.glob("lib/*/site-packages")
    (place / "lent.pth").write_text("\n".join(folder for folder in sys.path if folder.endswith("site-packages")))
    empty.mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(empty / "black.png")

    def run(*words):
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        line = [environment / "bin" / words[0], *words[1:]]
        result = subprocess.run(line, cwd=empty, env=variables, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert str(environment) in run("python", "-c", "import vit_jax_mixer; print(vit_jax_mixer.__file__)")
    said = run("vit-mixer", "train", "--config=digits", "--config.steps=2", "--config.optim.warmup_steps=0")
    assert "use the model: vit-mixer predict --model=runs/digits" in said
    assert "black.png" in run("vit-mixer", "predict", "--model=runs/digits", "black.png")
    short = ("--config.steps=1", "--config.optim.warmup_steps=0", "--workdir=again")
    run("python", "-m", "vit_jax_mixer.main", "--config=configs/digits.py", *short)
    assert (empty / "again/model.json").exists()
