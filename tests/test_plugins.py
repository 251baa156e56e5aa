"""Names of a user's own code: where it is found, when it may run, and what is said of what is wrong."""

import re
import subprocess
import sys

import pytest

from tests.helpers import ROOT, assert_one_sentence, blocks, command, environment
from vit_jax_mixer import models, plugins, specs
from vit_jax_mixer.errors import UserError

OURS = {"blur": lambda: "ours"}


def test_a_name_of_ours_or_of_a_module(write_modules):
    write_modules(mine="def blur(size=1):\n    return size\n")
    plugins.allow("mine")
    assert specs.build(OURS, "blur", "here") == "ours"
    assert specs.build(OURS, "mine:blur", "here") == 1
    assert specs.build(OURS, " mine:blur(size=2) ", "here") == 2
    assert plugins.lookup({}, "mine", "here", alone="blur")() == 1


def test_a_module_runs_only_where_the_user_names_it(write_modules):
    folder = write_modules(mine="open(__file__ + '.ran', 'w').close()\nblur = 3\n")
    with pytest.raises(UserError, match=r"^a.json: 'mine:blur' is code of the module mine.*pass --module=mine if you"):
        plugins.lookup(OURS, "mine:blur", "a.json")
    with pytest.raises(UserError, match="pass --module=mine"):
        plugins.lookup(OURS, "mine", "a.json", alone="blur")
    with pytest.raises(UserError, match="pass --module=subprocess"):
        plugins.lookup(OURS, "subprocess:run", "a.json")
    assert not list(folder.glob("*.ran"))
    plugins.allow("mine")
    assert plugins.lookup(OURS, "mine:blur", "a.json") == 3


@pytest.mark.parametrize(
    ("config", "allowed"),
    [
        ({"model": {"name": "mine:Mixer"}}, {"mine", "mine:Mixer"}),
        ({"task": {"name": "my.task"}}, {"my.task"}),
        ({"task.name": "mine"}, {"mine"}),
        ({"data": {"ops": "decode(3)|mine:blur(2)| yours.ops:noise"}}, {"mine", "yours.ops"}),
        (["--data=mine:rows:/place", "--x=http://a:80/b"], {"mine"}),
        ({"sizes": (1, 2.5, None, True)}, set()),
    ],
)
def test_what_a_config_or_a_command_line_names_may_run(write_modules, config, allowed):
    plugins.allow_all_in(config)
    assert plugins._allowed == allowed


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("blurr", r"^here: 'blurr' is not known; did you mean 'blur'\? Known: blur\.$"),
        ("min:blur", r"^here: 'min:blur': there is no module 'min' in /.*, what is installed.* Known: blur\.$"),
        ("mine:blurr", r"^here: the module mine has no 'blurr'; did you mean 'blur'\? Known: blur, number\.$"),
        ("mine.sub:blur", r"there is no module 'mine\.sub'"),
        ("mine:number", r"^here: mine:number is of type int; name a function or a class\.$"),
        ("mine:blur(3, 4)", r"^here: 'mine:blur\(3, 4\)' has too many arguments; mine:blur takes size\.$"),
        ("mine:blur(width=3)", r"^here: mine:blur has no field 'width'.*Known: size\.$"),
        ("mine:blur:x", r"^here: 'mine:blur:x' is not of the form name or name\(1, key=2\)"),
        ("mine:", "is not of the form"),
        (":blur", "is not of the form"),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence(write_modules, name, sentence):
    write_modules(mine="def blur(size=1):\n    return size\nnumber = 3\n")
    plugins.allow("mine", "min", "mine.sub")
    with pytest.raises(UserError, match=sentence):
        specs.build(OURS, name, "here")


@pytest.mark.parametrize(
    ("text", "error"),
    [("import no_such_package\n", ModuleNotFoundError), ("x = {}['a']\n", KeyError), ("def x(:\n", SyntaxError)],
)
def test_a_defect_of_a_module_keeps_its_traceback(write_modules, text, error):
    write_modules(mine=text)
    plugins.allow("mine")
    with pytest.raises(error):
        plugins.lookup(OURS, "mine:x", "here")


def test_a_file_that_another_module_hides_is_told(write_modules):
    folder = write_modules(colorsys="def blur():\n    return 1\n")
    plugins.allow("colorsys")
    with pytest.raises(UserError, match=re.escape(f"which hides {folder / 'colorsys.py'}; rename your file.")):
        plugins.lookup(OURS, "colorsys:blur", "here")


@pytest.mark.slow
def test_the_examples_of_the_docs_run(tmp_path):
    text = (ROOT / "docs/extending.md").read_text()
    assert text.count("```python") == len(blocks("docs/extending.md"))
    for name, content in blocks("docs/extending.md").items():
        (tmp_path / name).write_text(content)
    commands = re.search(r"```sh\n(.*?)```", text, re.DOTALL)
    assert commands
    line = commands[1].replace("python -m", f"{sys.executable} -m")
    done = subprocess.run(
        ["bash", "-euc", line], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "accuracy            100.00 %" in done.stdout
    assert (tmp_path / "exported/model.stablehlo").exists()
    sentence = command("predict", f"--model={tmp_path / 'run'}", ROOT / "docs")
    assert_one_sentence(sentence, "there is no module 'mine'")


def test_a_model_of_a_users_own_knows_classes_where_it_is_to_be_a_classifier(write_modules):
    text = "import flax.linen as nn\n\nclass Plain(nn.Module):\n    width: int\n\n"
    write_modules(nets=f"{text}class Head(Plain):\n    num_classes: int = 0\n")
    plugins.allow("nets")
    assert models.create("nets:Plain", width=3).width == 3
    assert models.create("nets:Head", 2, width=3).num_classes == 2
    with pytest.raises(UserError, match=r"^model nets:Plain has no attribute num_classes, which a classifier needs"):
        models.create("nets:Plain", 2, width=3)
    with pytest.raises(UserError, match=r"^model nets:Plain lacks the field 'width'"):
        models.create("nets:Plain")
    with pytest.raises(UserError, match=r"^model name: 'nets:nn' is no flax.linen.Module; name one"):
        models.create("nets:nn")
