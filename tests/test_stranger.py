"""A task and a predictor of somebody else, each in one file outside of the package: rows of a CSV, a regression."""

import csv
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tests.helpers import assert_one_sentence, environment

PREDICTOR = '''
"""How a model of rows is used: CSV in, CSV out."""

import csv
import dataclasses
import json
from collections.abc import Mapping

import flax.linen as nn
import jax
import numpy as np

from vit_jax_mixer.data.sources import Source
from vit_jax_mixer.predictors import Answer, Evaluated, Predictor


class Net(nn.Module):
    """Rows f32[B, F] to f32[B]."""

    @nn.compact
    def __call__(self, rows, train=False):
        return nn.Dense(1)(nn.gelu(nn.Dense(16)(rows)))[:, 0]


@dataclasses.dataclass(frozen=True)
class File:
    """The rows of a CSV file: {'row': f32[F], 'label': f32[]}, the label 0 where there is none."""

    path: str
    columns: tuple[str, ...]
    target: str

    def __post_init__(self):
        with open(self.path, newline="") as file:
            rows = list(csv.DictReader(file))
        object.__setattr__(self, "rows", [[float(row[name]) for name in self.columns] for row in rows])
        object.__setattr__(self, "labels", [float(row.get(self.target) or 0) for row in rows])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"row": np.float32(self.rows[index]), "label": np.float32(self.labels[index])}

    def where(self, index):
        return f"{self.path}, row {index + 1}"

    def source(self):
        return Source(self, (), self.where)


def read(example, rng):
    return {"row": example["row"]}


def read_labelled(example, rng):
    return dict(example)


@dataclasses.dataclass(frozen=True)
class Value(Answer):
    name: str
    value: float
    features = None

    def text(self, width):
        return f"{self.name:{width}}  {self.value:.3f}"

    def record(self):
        return {"row": self.name, "value": self.value}

    def cells(self):
        return {"row": self.name, "value": f"{self.value:.6f}"}


@dataclasses.dataclass(frozen=True)
class Error(Evaluated):
    figures: dict[str, float]

    def lines(self):
        return [f"  {name}  {value:.4f}" for name, value in self.figures.items()]

    def write(self, out, given):
        (out / "metrics.json").write_text(json.dumps({**given, **self.figures}))
        return ["metrics.json"]


def figures(errors):
    return {"squared_error": float(np.mean(errors, dtype=np.float64))}


@dataclasses.dataclass(frozen=True)
class Rows(Predictor):
    kind = "my_rows:Rows"
    field = "row"
    model: Mapping[str, int]
    columns: tuple[str, ...]
    target: str
    source: str
    licence: str = ""

    def create(self, where):
        return Net()

    def input(self):
        return jax.ShapeDtypeStruct((len(self.columns),), np.float32)

    def label(self):
        return jax.ShapeDtypeStruct((), np.float32)

    def outputs(self, module, params, inputs):
        return {"values": module.apply({"params": params}, inputs)}

    def meanings(self):
        return {"values": self.target}

    def open(self, arguments):
        (path,) = arguments
        return File(path, self.columns, self.target).source()

    def reader(self):
        return read

    def answer(self, name, row):
        return Value(name, float(row["values"]))

    def open_labelled(self, name, split, *, skip_bad):
        return File(name, self.columns, self.target).source()

    def labelled(self, source, where, *, by_number):
        return read_labelled

    def scores(self, outputs, labels):
        return {"errors": (outputs["values"] - labels) ** 2}

    def evaluated(self, rows, labelled, per_second, skipped):
        return Error(figures(**rows))
'''

TASK = '''
"""Learn a column of a CSV file from the others."""

import jax
import jax.numpy as jnp
import numpy as np
from my_rows import File, Net, Rows, figures, read_labelled

from vit_jax_mixer.data.pipeline import Dataset
from vit_jax_mixer.tasks import Aux, Task


def create(run, target):
    path, columns = run.data["source"], tuple(run.data["columns"])
    about = Rows({}, columns, target, f"trained on {path}")
    return Regression(about, Dataset(File(path, columns, target).source(), read_labelled))


class Regression(Task):
    def __init__(self, about, data):
        self._about = about
        self.model = Net()
        self.train_data = data
        self.eval_data = {"all": data}

    def about(self):
        return self._about

    def init(self, key):
        return self.model.init(key, jnp.zeros((1, len(self._about.columns))))["params"], {}

    def loss(self, params, state, batch, key):
        return jnp.mean((self.model.apply({"params": params}, batch["row"]) - batch["label"]) ** 2), Aux({})

    def eval_step(self, state, batch):
        return self._about.scores(self._about.outputs(self.model, state.params, batch["row"]), batch["label"])

    def evaluate(self, outputs):
        found = figures(np.concatenate([rows["errors"] for rows in outputs("all")]))
        return {f"all/{name}": value for name, value in found.items()}
'''

CONFIG = """
from configs import common
from ml_collections import ConfigDict


def get_config():
    config = common.get_config()
    config.task = ConfigDict({"name": "my_task", "target": "y"})
    config.model = ConfigDict({})
    config.data = ConfigDict({"source": "rows.csv", "columns": ("a", "b"), "eval": "all"})
    config.steps = config.eval_every = config.checkpoint.every = 300
    config.batch_size = config.eval_batch_size = 32
    config.log_every = 100
    config.optim.optimizer = "adamw"
    config.optim.learning_rate = 0.01
    config.optim.warmup_steps = 0
    return config
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of a stranger's: two modules, a config and a table."""
    home = tmp_path_factory.mktemp("stranger")
    for name, text in (("my_rows", PREDICTOR), ("my_task", TASK), ("config", CONFIG)):
        (home / f"{name}.py").write_text(textwrap.dedent(text).lstrip())
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 256))
    with (home / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("a", "b", "y"), *zip(a, b, a - 2 * b, strict=True)])
    return home


def run(home, *args):
    line = [sys.executable, "-m", f"vit_jax_mixer.{args[0]}", *map(str, args[1:])]
    return subprocess.run(line, cwd=home, env=environment(), capture_output=True, text=True, check=False)


def succeeds(home, *args):
    result = run(home, *args)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def workdir(home):
    succeeds(home, "main", "--config=config.py", "--workdir=run")
    return home / "run"


@pytest.mark.slow
def test_a_task_of_rows_is_trained_evaluated_and_asked(home, workdir):
    logged = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert json.loads((workdir / "model.json").read_text())["kind"] == "my_rows:Rows"
    assert logged["all/squared_error"] < 0.05
    own = "--module=my_rows"
    text = succeeds(home, "evaluate", "--model=run", own, "--data=rows.csv", "--split=all")
    found = json.loads((workdir / "evaluation/metrics.json").read_text())
    assert found["squared_error"] == pytest.approx(logged["all/squared_error"], rel=1e-6)
    assert f"squared_error  {found['squared_error']:.4f}" in text
    (home / "new.csv").write_text("a,b\n1,0\n0,1\n")
    lines = succeeds(home, "predict", "--model=run", own, "--csv", "new.csv").splitlines()
    rows = list(csv.DictReader(lines))
    assert [row["row"] for row in rows] == ["new.csv, row 1", "new.csv, row 2"]
    assert [float(row["value"]) for row in rows] == pytest.approx([1, -2], abs=0.5)
    told = succeeds(home, "predict", "--model=run", own, "--json", "new.csv").splitlines()
    assert [json.loads(line)["value"] for line in told] == pytest.approx(
        [float(row["value"]) for row in rows], abs=1e-5
    )


@pytest.mark.slow
def test_a_description_names_code_that_only_a_user_lets_run(home, workdir):
    assert_one_sentence(run(home, "predict", "--model=run", "new.csv"), "my_rows", "--module=my_rows")


@pytest.mark.slow
def test_it_is_exported_and_planned(home, workdir):
    import onnxruntime

    succeeds(home, "export", "--model=run", "--module=my_rows", "exported")
    card = json.loads((home / "exported/card.json").read_text())
    assert card["input"] == {"name": "rows", "dtype": "float32", "shape": ["b", 2]}
    assert card["outputs"] == {"values": {"dtype": "float32", "shape": ["b"]}}
    rows = np.array([[1, 0], [0, 1], [3, 3]], np.float32)
    (values,) = onnxruntime.InferenceSession(home / "exported/model.onnx").run(None, {"rows": rows})
    np.save(home / "rows.npy", rows)
    line = [sys.executable, home / "exported/run_stablehlo.py", home / "rows.npy", home / "out.npz"]
    subprocess.run(line, check=True, env=environment())
    with np.load(home / "out.npz") as found:
        np.testing.assert_allclose(found["values"], values, rtol=1e-4, atol=1e-5)
    plan = json.loads(succeeds(home, "plan", "--config=config.py", "--target=cpu", "--json", "--nosearch"))
    assert plan["fits"]
    assert plan["memory"]["batch"] == 32 * 3 * 4
