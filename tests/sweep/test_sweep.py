"""Sweeps: from a file to runs, what is complete, the table."""

import csv
import dataclasses
import json
import sys

import pytest

from tests.helpers import assert_one_sentence, command
from vit_jax_mixer.checkpoints import best
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.sweep import plan, running, search, table
from vit_jax_mixer.sweep.plan import Run, Variant
from vit_jax_mixer.sweep.rungs import Rungs

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


SEARCH = """[search]
trials = 3
[search.ranges]
optim.learning_rate = "log(1e-4, 1e-2)"
model = {num_blocks = "whole(1, 3)", activation = ["gelu", "tanh"]}
"""


def test_a_search_draws_the_same_values_each_time(tmp_path):
    pytest.importorskip("optuna")
    sweep = read(tmp_path, f"seeds = [0, 1]\n{TINY}{SEARCH}")
    assert sweep == read(tmp_path, f"seeds = [0, 1]\n{TINY}{SEARCH}")
    assert len({run.place for run in sweep.runs}) == 6
    assert sweep.best == "test/accuracy"  # of config.checkpoint.best
    assert sweep.halving is None
    for run in sweep.runs:
        assert 1e-4 <= run.fields["optim"]["learning_rate"] <= 1e-2
        assert run.fields["model"]["num_blocks"] in (1, 2, 3)
        assert run.fields["model"]["activation"] in ("gelu", "tanh")
        assert run.place.startswith("trial_")
    assert "learning_rate" in sweep.runs[0].place


def test_draws_fill_their_ranges_and_none_comes_twice():
    pytest.importorskip("optuna")
    ranges = {"a": search.range_of("whole(1, 3)", ""), "b": search.range_of(["x", "y"], "")}
    drawn = search.Search(ranges, trials=10).draw()
    assert sorted((one["a"], one["b"]) for one in drawn) == [(f"{a}", b) for a in (1, 2, 3) for b in "xy"]
    ranges = {"a": search.log(1e-6, 1.0), "b": search.uniform(1e-6, 1.0)}
    drawn = search.Search(ranges, trials=300, seed=1).draw()
    share = [sum(float(one[name]) < 1e-3 for one in drawn) / 300 for name in "ab"]
    assert 0.4 < share[0] < 0.6
    assert share[1] < 0.02
    assert drawn != search.Search(ranges, trials=300).draw()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (SEARCH + "[grid]\nsteps = [1, 2]\n", ["[search] and [grid]"]),
        (SEARCH.replace("trials = 3", "trials = 0"), ["search: trials is 0"]),
        (SEARCH.replace("trials = 3", 'trials = 3\nmethod = "grid"'), ["search.method", "grid"]),
        (SEARCH.replace("trials = 3", 'trials = 3\nmethod = "halving"'), ["lacks the field 'first'"]),
        (SEARCH.replace("log(", "lag("), ["search.ranges.optim.learning_rate", "did you mean 'log'"]),
        (SEARCH.replace("whole(1, 3)", "whole(3, 3)"), ["from 3 to 3"]),
        (SEARCH.replace('"log(1e-4, 1e-2)"', "0.1"), ["list of values"]),
        ("[search]\ntrials = 3\n", ["search.ranges has no fields"]),
        (SEARCH.replace("trials = 3", 'trials = 3\nmethod = "halving(2)"'), ["compares runs of one seed"]),
    ],
)
def test_what_is_wrong_with_a_search_is_told(tmp_path, text, parts):
    pytest.importorskip("optuna")
    seeds = [0, 1] if "halving" in text else [0]
    with pytest.raises(UserError) as error:
        read(tmp_path, f"seeds = {seeds}\n{TINY}{text}")
    for part in parts:
        assert part in str(error.value)


def test_without_optuna_a_search_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[sweep\]'"):
        read(tmp_path, TINY + SEARCH)


@pytest.mark.parametrize("metric", ["test/accuracy", "min test/skill"])
def test_runs_that_are_worse_than_others_end_and_a_sweep_that_goes_on_knows_them(tmp_path, metric):
    pytest.importorskip("optuna")
    halving, sign = search.Halving(2, 2), -1 if metric.startswith("min") else 1
    runs = [Run(Variant(f"trial_{i}", {}, ()), 0, (), {"steps": 8}) for i in range(4)]
    each = [(0.5, 0.6), (0.4,), (0.7, 0.5), (0.9, 0.9, 0.9, 0.1)]  # evaluations after 2, 4, ... steps
    at = lambda values: {2 * i + 2: {best.metric(metric): sign * value} for i, value in enumerate(values)}
    said = []
    for run, values in zip(runs, each, strict=True):
        rungs = Rungs(tmp_path, halving, metric)  # each time as another process would
        reasons = [rungs.compare(run, {1: {"train/loss": 1.0}, **at(values[: n + 1])}, 8) for n in range(len(values))]
        assert not any(reasons[:-1])
        assert reasons[-1] == rungs.compare(run, at(values), 8) == Rungs(tmp_path, halving, metric).reason(run)
        said.append(reasons[-1])
    assert not said[0]
    assert said[1] == f"ended after step 2: others had a better {best.metric(metric)} than {sign * 0.4:.4g} there"
    assert "ended after step 4" in said[2]
    assert not said[3]  # at its last step it is complete
    changed = dataclasses.replace(runs[1], fields={"steps": 9})
    assert not Rungs(tmp_path, halving, metric).reason(changed)


def test_the_best_variant_of_a_search_is_named_and_those_that_ended_are_told(tmp_path):
    runs = [Run(Variant(f"trial_{i}", {}, ()), 0, (), {}) for i in range(3)]
    sweep = plan.Sweep((), tuple(runs), "val/loss")
    results = [running.Result(run, "complete", "", {"val/loss": 2.0 - i}) for i, run in enumerate(runs[:2])]
    results.append(running.Result(runs[2], "ended", "ended after step 2", {"val/loss": 0.1}))
    assert table.best_of(sweep, results) == "best: trial_1 with val/loss 1"
    assert "| trial_2 | 0 of 1, 1 ended before | 0.1 |" in table.write(tmp_path, sweep, results)


@pytest.mark.slow
def test_a_search_by_halving_ends_runs_and_is_complete_when_it_is_called_again(tmp_path):
    pytest.importorskip("optuna")
    file, out = tmp_path / "sweep.toml", tmp_path / "out"
    halving = SEARCH.replace("trials = 3", 'trials = 4\nmethod = "halving(first=2, factor=4)"')
    file.write_text(TINY.replace("steps = 4", "steps = 60", 1) + halving)
    first = command("sweep", file, f"--out={out}")
    assert first.returncode == 0, first.stderr
    with (out / "runs.csv").open() as rows:
        statuses = [row["status"] for row in csv.DictReader(rows)]
    assert statuses[0] == "complete"
    assert "ended" in statuses
    assert {*statuses} <= {"complete", "ended"}
    assert "best: trial_" in first.stdout
    before = (out / "halving.jsonl").read_bytes()
    again = command("sweep", file, f"--out={out}")
    assert again.returncode == 0, again.stderr
    assert f"{statuses.count('complete')} of them complete" in again.stdout
    assert (out / "halving.jsonl").read_bytes() == before


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
