"""A stranger moves in: a task, a predictor and a writer of a user's own, as docs/extending.md has them.

Rows of a CSV file, a regression: trained, killed and resumed, evaluated, predicted, exported and planned.
"""

import csv
import json
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.helpers import ROOT, assert_one_sentence, assert_same, blocks, environment
from tests.test_train import logged
from vit_jax_mixer import config_file, convert, plugins, pretrained
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.evaluation import evaluate
from vit_jax_mixer.export import run_stablehlo
from vit_jax_mixer.export.writing import export
from vit_jax_mixer.predictions import predict
from vit_jax_mixer.run.assemble import open_run
from vit_jax_mixer.train import train_and_evaluate
from vit_jax_mixer.trained import open_model

MODULE, DATA = "--module=my_rows_predictor", "--data=my_rows_predictor:table:rows.csv"


def write_files(folder):
    """Write what the page has, and the rows: y is a function of a, b and c, and some noise."""
    for name, text in blocks("docs/extending.md").items():
        (folder / name).write_text(text)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(150, 3)) * [1, 10, 0.1] + [0, 50, 0]
    targets = rows[:, 0] * rows[:, 2] * 10 + (rows[:, 1] - 50) / 10 + rng.normal(size=150) * 0.01
    with (folder / "rows.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["a", "b", "c", "y", "split"])
        table.writerows(
            [*row, y, "train" if i < 100 else "test"] for i, (row, y) in enumerate(zip(rows, targets, strict=True))
        )
    with (folder / "asked.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["a", "b", "c"])
        table.writerows(rows[100:105].tolist())
    return folder


@pytest.fixture
def stranger(write_modules, tmp_path, monkeypatch):
    """The files in a folder of their own, which this process is in."""
    monkeypatch.chdir(tmp_path)
    return write_files(tmp_path)


def test_it_is_learnt_asked_and_scored_in_one_process(stranger, capsys):
    config = config_file.load("rows.py")
    config.steps, config.checkpoint.best = 4, ""
    train_and_evaluate(config, "run")
    said = capsys.readouterr().out
    assert "use the model: python -m vit_jax_mixer.predict --model=run --module=my_rows_predictor FILE.csv" in said
    assert "rows/s" in said
    assert "images" not in said
    told = json.loads((stranger / "run/model.json").read_text())
    assert told["kind"] == "my_rows_predictor:Rows"

    trained = open_model("run")
    answers = list(predict(trained, trained.about.open(["asked.csv"]), top=5, batch_size=2, on_bad=pytest.fail))
    assert [answer.name for answer in answers] == [f"asked.csv, line {n}" for n in range(2, 7)]
    source = trained.about.open_labelled("my_rows_predictor:table:rows.csv", "test", skip_bad=False)
    found = evaluate(trained, source, "rows", batch_size=50)
    trained_as = {name: value for name, value in logged(stranger / "run")[-1].items() if name != "step"}
    assert {f"test/{name}": value for name, value in found.figures.items()} == trained_as

    mine = [line.split(",") for line in (stranger / "run/figures.csv").read_text().splitlines()]
    known = [(line["step"], name) for line in logged(stranger / "run") for name in line if name != "step"]
    assert {(int(step), name) for step, name, _ in mine if "perf" not in name} == set(known)

    opened = open_run("run")
    assert_same(opened.state.params, trained.params)
    with pytest.raises(UserError, match=r"kind 'my_rows_predictor:Rows' tells no features; leave out --features"):
        trained.about.check_features()


def test_its_code_runs_only_where_its_module_is_named(stranger):
    (stranger / "model.json").write_text('{"kind": "my_rows_predictor:Rows", "model": {}, "source": ""}')
    with pytest.raises(
        UserError, match=r"model.json: kind: 'my_rows_predictor:Rows' is code of .*--module=my_rows_pre"
    ):
        open_model_of(stranger)
    assert "my_rows_predictor" not in sys.modules
    plugins.allow("my_rows_predictor")
    with pytest.raises(UserError, match=r"model.json lacks the field 'mean'"):
        open_model_of(stranger)
    (stranger / "model.json").write_text('{"kind": "my_rows_predictor:Table"}')
    with pytest.raises(UserError, match=r"model.json: kind 'my_rows_predictor:Table' is no Predictor; name a class"):
        open_model_of(stranger)


def open_model_of(folder):
    from vit_jax_mixer import predictors

    return predictors.read(folder)


@pytest.mark.slow
def test_a_run_of_it_becomes_programs_that_agree(stranger):
    config = config_file.load("rows.py")
    config.steps, config.checkpoint.best, config.parallel = 4, "", "pmap"
    train_and_evaluate(config, "run")
    said = export("run", "exported")
    assert not [line for line in said if "left out" in line]
    trained = open_model("run")
    rows = np.random.default_rng(1).normal(size=(7, 3)).astype(np.float32)
    expected = jax.jit(trained.outputs)(trained.params, rows)["value"]
    np.testing.assert_allclose(run_stablehlo.load("exported")(rows)["value"], expected, rtol=1e-5, atol=1e-6)
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession("exported/model.onnx")
    np.testing.assert_allclose(session.run(["value"], {"rows": rows})[0], expected, rtol=1e-5, atol=1e-6)
    card = (stranger / "exported/MODEL_CARD.md").read_text()
    assert "the number that is asked for" in card
    assert "class" not in card.lower().replace("classification", "")
    assert_same(open_model("exported").params, trained.params)
    convert.convert("run", "weights.safetensors")
    assert_same(pretrained.load("weights.safetensors"), pretrained.load("run"))


# --- Through the commands ---


def started(folder, *args):
    line = [sys.executable, "-m", f"vit_jax_mixer.{args[0]}", *args[1:]]
    return subprocess.Popen(
        line, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def command(folder, *args):
    """Run a command in the stranger's folder; return its result."""
    with started(folder, *args) as process:
        out, err = process.communicate()
    return subprocess.CompletedProcess(args, process.returncode, out, err)


def succeeded(folder, *args):
    result = command(folder, *args)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_killed_and_gone_on_with_it_is_the_run_that_was_not(tmp_path, parallel):
    folder = write_files(tmp_path)
    train = ("main", "--config=rows.py", f"--config.parallel={parallel}")
    said = succeeded(folder, *train, "--workdir=whole")
    assert said.splitlines()[-1].endswith(f"predict --model=whole {MODULE} FILE.csv")

    with started(folder, *train, "--workdir=killed", "--config.log_every=1") as process:
        while not (folder / "killed/checkpoints/100").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (folder / "killed/checkpoints/300").exists()
    succeeded(folder, *train, "--workdir=killed")
    for step in ("200", "300"):
        whole, killed = (pretrained.load(folder / name / "checkpoints" / step) for name in ("whole", "killed"))
        assert_same(killed, whole)
    evaluations = lambda name: [line for line in logged(folder / name) if "test/mse" in line]
    assert evaluations("killed") == evaluations("whole")
    assert len(evaluations("whole")) == 3

    # Evaluated it has the figures of its training, to the digit.
    assert "r2  0.9" in succeeded(folder, "evaluate", "--model=whole", MODULE, DATA)
    figures = json.loads((folder / "whole/evaluation/metrics.json").read_text())
    best = min(evaluations("whole"), key=lambda line: line["test/mse"])
    assert {name: figures[name] for name in ("mse", "r2")} == {name: best[f"test/{name}"] for name in ("mse", "r2")}


@pytest.mark.slow
def test_every_command_takes_it(tmp_path):
    folder = write_files(tmp_path)
    train = ("main", "--config=rows.py", "--config.steps=100")
    succeeded(folder, *train, "--workdir=whole")

    # Asked
    ask = ("predict", "--model=whole", MODULE, "asked.csv")
    lines = succeeded(folder, *ask).splitlines()
    records = [json.loads(line) for line in succeeded(folder, *ask, "--json").splitlines()]
    cells = list(csv.DictReader(succeeded(folder, *ask, "--csv").splitlines()))
    assert len(lines) == len(records) == len(cells) == 5
    for line, record, row in zip(lines, records, cells, strict=True):
        assert line == f"{record['row']}  {record['value']:.6g}"
        assert row == {name: str(value) for name, value in record.items()}
    (folder / "bad.csv").write_text("a,b,c\n1,2,three\n1,2,3\n")
    result = command(folder, "predict", "--model=whole", MODULE, "bad.csv")
    assert result.returncode == 1
    assert "bad.csv, line 2: could not convert string to float: 'three'; mend the cell." in result.stderr
    assert len(result.stdout.splitlines()) == 1
    for name, more in (("predict", ["asked.csv"]), ("evaluate", ["--data=tfds:sklearn_digits"]), ("export", ["e"])):
        assert_one_sentence(
            command(folder, name, "--model=whole", *more), "pass --module=my_rows_predictor if you trust"
        )
    assert_one_sentence(command(folder, *ask, "--features=f.npz"), "tells no features")

    # Exported, and read back
    said = succeeded(folder, "export", "--model=whole", MODULE, "exported")
    assert "onnx, " in said
    assert "left out" not in said
    assert succeeded(folder, "predict", "--model=exported", MODULE, "asked.csv").splitlines() == lines
    table = csv.DictReader((folder / "asked.csv").read_text().splitlines())
    asked = np.array([[float(row[name]) for name in "abc"] for row in table])
    np.save(folder / "rows.npy", asked.astype(np.float32))
    line = [sys.executable, "exported/run_stablehlo.py", "rows.npy"]
    told = subprocess.run(line, cwd=folder, env=environment(), capture_output=True, text=True, check=True).stdout
    assert [float(one.removeprefix("value ")) for one in told.splitlines()] == pytest.approx(
        [record["value"] for record in records], rel=1e-4
    )
    succeeded(folder, "convert", "whole", "weights.npz", MODULE)

    # Planned
    planned = succeeded(folder, "plan", *train[1:], "--target=cpu", "--nosearch")
    assert "examples a second" in planned


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["jit", "pmap", "jit(fsdp=4)"])
def test_it_is_planned_for_a_tpu(tmp_path, parallel):
    pytest.importorskip("libtpu", reason="needs pip install -e '.[plan]'")
    folder = write_files(tmp_path)
    train = ("--config=rows.py", f"--config.parallel={parallel}", "--nosearch", "--json")
    plan = json.loads(succeeded(folder, "plan", *train, "--target=v5e:2x2"))
    assert (plan["chips"], plan["fits"]) == (4, True)
    # Forward and backward of 4 rows of each chip; the rows need no gradient, and what has one number is no product.
    assert sum(plan["cost"]["flop"].values()) == 2 * 4 * (2 * 3 * 16)


@pytest.mark.slow
def test_a_config_finds_its_neighbours_from_any_folder(tmp_path):
    folder = write_files(tmp_path)
    (folder / "rows.py").write_text(
        (folder / "rows.py").read_text().replace("table:rows.csv", f"table:{folder}/rows.csv")
    )
    said = succeeded(ROOT, "main", f"--config={folder}/rows.py", f"--workdir={folder}/run", "--config.steps=100")
    assert "--module=my_rows_predictor FILE.csv" in said
