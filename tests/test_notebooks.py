"""The notebooks run from the first to the last cell, and are kept without what they print."""

import json
import re
import shlex
import shutil

import nbformat
import pytest
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient
from packaging.requirements import Requirement

from tests.helpers import ROOT, environment

NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def read(folder, name):
    notebook = nbformat.read(folder / "notebooks" / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    return notebook


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a notebook in a copy of the project, and return the values of expressions at its end, and its outputs."""
    for folder in ("configs", "notebooks"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    write_kernel_spec(str(tmp_path / "jupyter/kernels/python3"))  # of this Python, whatever others are installed
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))

    def run(name, *expressions):
        notebook = read(tmp_path, name)
        asked = nbformat.v4.new_code_cell(f"import json\nprint(json.dumps([{', '.join(expressions)}]))")
        notebook.cells.append(asked)
        place = {"metadata": {"path": str(tmp_path / "notebooks")}}
        client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place)
        client.execute(env=environment())  # a cell that fails is an error here
        values = json.loads(asked.outputs[0].text)
        return values, [output for cell in notebook.cells[:-1] for output in cell.get("outputs", ())]

    return run


def pictures(outputs):
    return sum("image/png" in output.get("data", {}) for output in outputs)


def warnings_in(outputs):
    return [output.text for output in outputs if output.get("name") == "stderr" and "Warning" in output.text]


@pytest.mark.slow
def test_finetune(run, tmp_path):
    values, outputs = run(
        "finetune",
        "found.figures['accuracy']",
        "[prediction.classes[0][1] in Path(prediction.file).stem[3:] for prediction in predictions]",
        "float(difference)",
        "trained.about.image_shape",
    )
    accuracy, right, difference, shape = values
    assert accuracy > 0.8
    assert len(right) == 12
    assert sum(right) >= 8
    assert difference < 1e-5
    assert shape == [16, 16, 1]
    assert pictures(outputs) == 3
    assert not warnings_in(outputs)
    export = tmp_path / "runs" / "finetune" / "export"
    assert {"model.safetensors", "model.stablehlo", "MODEL_CARD.md"} <= {path.name for path in export.iterdir()}
    assert (tmp_path / "runs" / "finetune" / "evaluation" / "confusion.png").is_file()


@pytest.mark.slow
def test_inspect(run):
    values, outputs = run("inspect", "total", "similar.tolist()", "resmlp.about.model['name']")
    total, similar, name = values
    assert total == 25_994
    assert [similar[i][i] for i in range(3)] == pytest.approx([1, 1, 1])
    assert similar[0][2] < similar[0][1]  # the nearer, the more alike
    assert name == "ResMlp"
    assert pictures(outputs) == 4
    assert not warnings_in(outputs)


@pytest.mark.slow
def test_table(run, tmp_path):
    values, outputs = run("table", "found.figures['accuracy']", "[answer.value for answer in answers]", "last['step']")
    accuracy, answers, step = values
    assert accuracy > 0.9
    assert len(answers) == 10
    assert set(answers) <= {"malignant", "benign"}
    assert step == 400
    assert pictures(outputs) >= 3  # the curves of training, those of the evaluation, what counts
    assert not warnings_in(outputs)
    export = tmp_path / "runs" / "table" / "export"
    assert {"model.safetensors", "model.stablehlo", "MODEL_CARD.md"} <= {path.name for path in export.iterdir()}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_without_outputs(name):
    for cell in read(ROOT, name).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert cell.get("metadata") == {}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_pip_is_given_requirements_that_a_shell_leaves_whole(name):
    code = "\n".join(cell.source for cell in read(ROOT, name).cells if cell.cell_type == "code")
    lines = re.findall(r"^\s*[%!]pip install (.*)$", code, re.MULTILINE)
    assert lines
    for line in lines:
        assert not re.search(r"[<>\[\]{}*~!=;]", re.sub(r'"[^"]*"', "", line)), f"not quoted: {line}"
        for word in shlex.split(line):
            if not word.startswith(("-", "{ROOT}")):
                Requirement(word)
