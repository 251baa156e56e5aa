"""A task over its evaluation data: what is due when, and that each example counts once."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.test_train import lines, logged, small
from vit_jax_mixer import tasks
from vit_jax_mixer.config import Config
from vit_jax_mixer.data.pipeline import Dataset, Loader
from vit_jax_mixer.data.sources import Source
from vit_jax_mixer.run import parallel, step
from vit_jax_mixer.run.checkpoint import Checkpoints
from vit_jax_mixer.run.evaluation import Evaluator
from vit_jax_mixer.tasks import Task
from vit_jax_mixer.tasks.classification import PROBE_DATA
from vit_jax_mixer.train import train_and_evaluate


def numbers(count):
    source = Source([{"x": np.float32(i)} for i in range(count)], (), str)
    return Dataset(source, lambda example, rng: example)


class Sums(Task):
    """Sums of the examples of two datasets, of which the costly one is read in each third evaluation."""

    train_data = numbers(4)

    def __init__(self, **every):
        self.eval_data = {"test": numbers(5), "costly": numbers(7)}
        self.every = every

    def init(self, key):
        return {"factor": jnp.float32(2)}, ()

    def loss(self, params, state, batch, key):
        raise NotImplementedError

    def eval_step(self, state, batch):
        return {"x": batch["x"] * state.params["factor"]}

    def evaluate(self, outputs):
        rows = {name: list(outputs(name)) for name in self.eval_data}
        return {f"{name}/sum": float(sum(b["x"].sum() for b in batches)) for name, batches in rows.items() if batches}


def evaluator(task, **changes):
    run = Config.of(small(eval_every=2, steps=13, eval_batch_size=4, **changes))
    devices = parallel.create("jit")
    state = devices.put_state(step.new_state(optax.identity(), *task.init(jax.random.key(0))))
    evaluate = Evaluator(run, task, devices, Loader(0, 1, 1), lambda *bad: None)
    return evaluate, lambda number: evaluate(number, state)


def test_a_costly_dataset_is_read_when_it_is_due_and_at_the_end():
    evaluate, scores = evaluator(Sums(costly=3))
    assert [(scores(n).keys(), evaluate.is_whole(n)) for n in (2, 4, 6, 13)] == [
        ({"test/sum"}, False),
        ({"test/sum"}, False),
        ({"test/sum", "costly/sum"}, True),
        ({"test/sum", "costly/sum"}, True),
    ]
    assert scores(6) == {"test/sum": 20, "costly/sum": 42}


def test_an_evaluation_without_a_dataset_that_is_due_is_none():
    class Rare(Sums):
        def evaluate(self, outputs):
            assert any(list(outputs(name)) for name in self.eval_data)
            return {"test/sum": 0.0}

    _, scores = evaluator(Rare(test=2, costly=2))
    assert [scores(n) for n in (2, 4, 6, 13)] == [{}, {"test/sum": 0.0}, {}, {"test/sum": 0.0}]


def test_a_rhythm_of_what_is_no_dataset_is_a_defect():
    with pytest.raises(ValueError, match=r"Sums.every names \['cosstly'\]"):
        evaluator(Sums(cosstly=2))


def test_probes_have_rhythms_of_their_own():
    config = small(model__num_blocks=1, task__probe="ridge(1)|knn(1, every=3)", task__probe_examples=50)
    task = tasks.create(Config.of(config))
    rare = f"{PROBE_DATA}, every 3"
    assert dict(task.every) == {PROBE_DATA: 1, rare: 3}
    row = {"features": np.eye(8, dtype=np.float32), "labels": np.arange(8), "losses": np.ones(8)}
    row["predictions"] = row["labels"]
    metrics = [f"test/{name}" for name in ("loss", "accuracy", "ridge_1shot", "knn_1")]
    assert list(task.evaluate(lambda name: iter([row]))) == metrics
    assert list(task.evaluate(lambda name: iter([row] if name != rare else []))) == metrics[:3]


def test_a_best_metric_that_was_not_due_is_no_error_and_no_score(tmp_path):
    checkpoints = Checkpoints(tmp_path, every=1, keep=1, best="costly/sum")
    state = step.new_state(optax.identity(), {"x": jnp.zeros(2)}, ())
    checkpoints.save(1, state, {"test/sum": 9.0, "costly/sum": 1.0})
    checkpoints.save(2, state, {"test/sum": 9.0}, whole=False)
    checkpoints.save(3, state, {}, last=True)  # which waits until it is written
    checkpoints.score(3, {"test/sum": 9.0}, whole=False)
    assert checkpoints.conclusion().startswith("step 1 is the best")
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, every=1, keep=1, best="costly/sum")  # from what is on disk
    assert checkpoints.conclusion().startswith("step 1 is the best")
    checkpoints.close()


@pytest.mark.slow
def test_a_run_whose_best_is_due_now_and_then_resumes_to_the_same_log(tmp_path):
    costly = dict(eval_every=2, checkpoint__best="test/knn_1", task__probe="knn(1, every=2)", task__probe_examples=50)
    costly |= dict(checkpoint__keep=3)
    train_and_evaluate(small(steps=6, **costly), tmp_path / "whole")
    found = [(line["step"], "test/knn_1" in line) for line in lines(tmp_path / "whole") if "test/loss" in line]
    assert found == [(2, False), (4, True), (6, True)]
    log = (tmp_path / "whole/metrics.jsonl").read_text().splitlines(keepends=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")  # as if killed after step 2 was saved, before it was scored
    for name in ("4", "6"):
        shutil.rmtree(tmp_path / f"again/checkpoints/{name}")
    (tmp_path / "again/metrics.jsonl").write_text("".join(log[:2]))
    train_and_evaluate(small(steps=6, **costly), tmp_path / "again")
    assert logged(tmp_path / "again") == logged(tmp_path / "whole")
