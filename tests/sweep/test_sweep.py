"""Sweeps: from a file to runs, what is complete, the table."""

import csv
import json

import pytest

from tests.helpers import assert_one_sentence, command
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.sweep import plan, running, table

TINY = """
config = "configs/digits.py"
[set]
steps = 4
log_every = 2
eval_every = 2
optim.warmup_steps = 1
model = {num_blocks = 1, hidden_dim = 8, tokens_mlp_dim = 4, channels_mlp_dim = 8}
"""


def read(tmp_path, text):
    (tmp_path / "sweep.toml").write_text(text)
    return plan.read(str(tmp_path / "sweep.toml"))


def test_a_file_becomes_runs(tmp_path):
    grid = "[grid]\noptim.learning_rate = [1e-3, 0.01]\n[variants]\na = {}\nb = {model.dropout_rate = 0.5}\n"
    sweep = read(tmp_path, f"seeds = [3, 0]\n{TINY}{grid}")
    names = ["a,learning_rate=0.001", "a,learning_rate=0.01", "b,learning_rate=0.001", "b,learning_rate=0.01"]
    assert [run.place for run in sweep.runs] == [f"{name}/seed_{seed}" for seed in (3, 0) for name in names]
    last = sweep.runs[-1]
    assert last.variant.overrides == {"model.dropout_rate": "0.5", "optim.learning_rate": "0.01"}
    assert (last.fields["seed"], last.fields["steps"], last.fields["model"]["dropout_rate"]) == (0, 4, 0.5)
    assert "--config.optim.learning_rate=0.01" in last.words


def test_names_of_folders_are_short_and_differ():
    folders = {plan._folder("", {"a.ops": text}) for text in ("x/y", "x|y", "x" * 500, "x" * 501)}
    assert len(folders) == 4
    assert all(len(name) < 120 and "/" not in name for name in folders)
    assert not plan._folder("..", {}).startswith(".")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("config = ", ["is no TOML"]),
        ('config = "configs/no.py"', ["no config file"]),
        (f"sedes = [1]\n{TINY}", ["sedes"]),
        (f"seeds = [1, 1]\n{TINY}", ["give each once"]),
        (f"seeds = [-1]\n{TINY}", ["-1"]),
        (f"{TINY}[grid]\noptim.learning_rat = [1]\n", ["learning_rat=1", "did you mean"]),
        (f"{TINY}[grid]\noptim.learning_rate = 1\n", ["list of values"]),
        (f"{TINY}[grid]\noptim.learning_rate = [0.1, 0.1]\n", ["twice"]),
        (f"{TINY}[grid]\nseed = [1, 2]\n", ["seeds = [0, 1, 2]"]),
        (f'{TINY}[grid]\noptim.optimizer = ["adamw(weight_dcay=1)"]\n', ["weight_dcay"]),
        (f"{TINY}[grid]\nsteps = {list(range(1, 10_003))}\n", ["more than 10,000 runs"]),
    ],
)
def test_what_is_wrong_with_a_file_is_told_before_the_first_run(tmp_path, text, parts):
    with pytest.raises(UserError) as error:
        read(tmp_path, text)
    for part in parts:
        assert part in str(error.value)


def test_a_run_is_complete_at_its_last_step_or_where_it_stopped_early(tmp_path):
    early = 'early_stopping = {metric = "test/accuracy", patience = 1}\n'
    runs = [read(tmp_path, TINY + more).runs[0] for more in ("", early)]
    path = tmp_path / runs[0].place

    def status(run, accuracies, saved, **changes):
        for step in saved:
            (path / f"checkpoints/{step}/default").mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps({**run.fields, **changes}))
        lines = [{"step": 2 * i + 2, "test/accuracy": value} for i, value in enumerate(accuracies)]
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return running.result(run, tmp_path).status

    path.mkdir(parents=True)
    assert status(runs[0], [0.5], []) == "begun"
    assert status(runs[0], [0.5], [2]) == "begun"
    assert status(runs[0], [0.5, 0.6], [2]) == "begun"  # the last step is not saved
    assert status(runs[0], [0.5, 0.6], [2, 4]) == "complete"
    assert status(runs[0], [0.5, 0.6], [2, 4], batch_size=3) == "begun"
    long = [read(tmp_path, TINY.replace("steps = 4", "steps = 40", 1) + early).runs[0]]
    assert status(long[0], [0.5, 0.6], [4]) == "begun"
    assert status(long[0], [0.6, 0.5], [4]) == "complete"
    epochs = read(tmp_path, TINY.replace("steps = 4", "steps = '2 epochs'", 1)).runs[0]
    size = epochs.fields["batch_size"]
    (path / "data.json").write_text(json.dumps({"training": {"examples": 2 * size}}))
    assert status(epochs, [0.5], [2]) == "begun"
    assert status(epochs, [0.5, 0.6], [2, 4]) == "complete"


def test_the_table_has_means_deviations_and_failures(tmp_path):
    sweep = read(tmp_path, f"seeds = [0, 1, 2]\n{TINY}[grid]\nmodel.dropout_rate = [0.0, 0.5]\n")
    results = [
        running.Result(run, "failed", "a | <b>\x1b")
        if run.place == "dropout_rate=0.5/seed_2"
        else running.Result(run, "complete", "", {"test/accuracy": [0.5, 0.75, 1.0][run.seed], "perf/x": 1.0})
        for run in sweep.runs
    ]
    text = table.write(tmp_path, sweep, results)
    assert "| dropout_rate=0.0 | 3 of 3 | 0.75 ± 0.25 |" in text
    assert "| dropout_rate=0.5 | 2 of 3, 1 failed | 0.625 ± 0.18 |" in text
    assert "a \\| &lt;b>\\x1b" in text
    with (tmp_path / "table.csv").open() as file:
        row = next(csv.DictReader(file))
    assert (float(row["test/accuracy mean"]), float(row["test/accuracy deviation"]), row["runs"]) == (0.75, 0.25, "3")
    with (tmp_path / "runs.csv").open() as file:
        assert [one["status"] for one in csv.DictReader(file)].count("failed") == 1


@pytest.mark.slow
def test_a_sweep_goes_on_and_its_runs_are_those_by_hand(tmp_path):
    file, out = tmp_path / "sweep.toml", tmp_path / "out"
    file.write_text(f"seeds = [1]\n{TINY}[grid]\noptim.learning_rate = [1e-3, 1e18]\n")
    first = command("sweep", file, f"--out={out}", "--at_once=2")
    assert_one_sentence(first, "1 of 2 runs failed")
    assert "learning_rate=1e+18/seed_1: step" in (out / "table.md").read_text()
    done = out / "learning_rate=0.001/seed_1"
    before = (done / "metrics.jsonl").stat().st_mtime_ns
    words = plan.read(str(file)).runs[0].words
    assert command("main", *words, f"--workdir={tmp_path / 'hand'}").returncode == 0

    def logged(workdir):
        lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        return [{name: value for name, value in line.items() if not name.startswith("perf/")} for line in lines]

    assert logged(done) == logged(tmp_path / "hand")
    again = command("sweep", file, f"--out={out}")
    assert "1 of them complete" in again.stdout
    assert (done / "metrics.jsonl").stat().st_mtime_ns == before
