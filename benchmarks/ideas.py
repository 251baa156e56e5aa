"""Each idea on and off, several seeds, on rows and on images: accuracy, time of a step, curvature; one table a set.

python -m benchmarks.ideas --rows=unsw_nb15 [--out=runs/ideas --at_once=12 --seeds=0,1,2,3,4 --ideas=plain,sam]

Rows are a folder of train.csv and test.csv (UNSW-NB15); without --rows there are images alone. Images are the digits
of scikit-learn. Both have a small Mixer and 10 epochs (--epochs); what an idea changes is in `IDEAS`. In --out are
rows_10_epochs/table.md and digits_10_epochs/table.md (mean and deviation over the seeds), their .csv, ideas.json, and a
file of each idea, so that the same command goes on where it was stopped; --ideas of a later call are added.

It is fast, so that it says what ideas do, not how the loop reads data: a program takes all steps of an epoch, by the
step, the loss and the order of examples that `main` has; on an accelerator those of all seeds side by side. An idea is
a process; --at_once of them share the cores and the accelerator, which they train on one after another, so that a
step is timed alone: as the fastest epoch. The largest eigenvalue of the Hessian is that of the training loss of the
first 512 examples, its draws of dropout fixed.
"""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.parts import of_any_seed
from vit_jax_mixer import cli, config_file, files
from vit_jax_mixer.config import Config
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.landscape import spectrum
from vit_jax_mixer.landscape.objective import Batches, Objective
from vit_jax_mixer.run import parallel
from vit_jax_mixer.run import step as step_lib
from vit_jax_mixer.run.assemble import Parts, assemble
from vit_jax_mixer.run.evaluation import Evaluator
from vit_jax_mixer.sweep import plan, running, table
from vit_jax_mixer.tasks import Task, TrainState

_ROWS = flags.DEFINE_string("rows", "", "Folder of train.csv and test.csv; none for images alone.")
_DIGITS = flags.DEFINE_bool("digits", True, "Whether the digits are learnt too.")
_OUT = flags.DEFINE_string("out", "runs/ideas", "The folder that takes the results.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Seeds, trained side by side.")
_IDEAS = flags.DEFINE_list("ideas", [], "Names of `IDEAS`; all if not given.")
_EPOCHS = flags.DEFINE_integer("epochs", 10, "How long each run is.", lower_bound=1)
_AT_ONCE = flags.DEFINE_integer("at_once", 2, "Processes at the same time.", lower_bound=1)
_PRODUCTS = flags.DEFINE_integer("products", 30, "With the Hessian, for its largest eigenvalue.", lower_bound=2)
_JOB = flags.DEFINE_string("job", "", "What this process does, as rows/sam; not for you.")

_EXAMPLES = 512  # that the Hessian is of

_MODEL = {
    "model.num_blocks": 2,
    "model.hidden_dim": 32,
    "model.dropout_rate": 0.1,
    "model.stochastic_depth_rate": 0.1,
}


@dataclasses.dataclass(frozen=True)
class Set:
    """Data that ideas are tried on.

    Attributes:
        config: as ``--config`` takes it; {rows} is that flag.
        batch_size: examples of a step.
        epoch: steps of an epoch.
        fields: what is changed in the config, for all ideas.
    """

    config: str
    batch_size: int
    epoch: int
    fields: dict[str, Any]


SETS = {
    "rows": Set(
        "configs/tabular.py:{rows}",
        256,
        20_000 // 256,
        _MODEL
        | {"model.patch_size": 6}
        | {"data.train": "train", "data.eval": "test", "data.test": "", "data.drop": "id"}
        | {"task.threshold": "half", "task.beside": "", "optim.learning_rate": 2e-3},
    ),
    "digits": Set("configs/digits.py", 16, 1_437 // 16, _MODEL),
}

# What each idea changes; {epoch} is the steps of an epoch.
IDEAS: dict[str, dict[str, str]] = {
    "plain": {},
    "convnext": {"model.conv_blocks": "(1, 1)", "model.conv_block": "convnext(kernel_size=3)"},
    "convnext_early": {"model.conv_blocks": "(2,)", "model.conv_block": "convnext(kernel_size=3)"},
    "inception_block": {"model.conv_blocks": "(1, 1)", "model.conv_block": "inception_next(band=5)"},
    "inception_stem": {"model.stem": "inception"},
    "lambda": {"model.token_mixer": "lambda_layer"},
    "sam": {"sharpness": "sam(rho=0.05)"},
    "asam": {"sharpness": "sam(rho=0.5, adaptive=True)"},
    "gsam": {"sharpness": "gsam(rho=0.1, rho_min=0.02, alpha=0.4)"},
    "ssam": {"sharpness": "ssam(rho=0.05)"},
    "s2sam": {"sharpness": "s2sam(rho=0.05)"},
    "noise": {"optim.noise": "gaussian(eta=1e-6)"},
    "tanh": {"model.activation": "tanh"},
    "no_dropout": {"model.dropout_rate": "0.0"},
    "no_depth": {"model.stochastic_depth_rate": "0.0"},
    "sharp_cosine": {"optim.schedule": "cosine(decay_steps={sharp}, floor=1e-6)"},
    "restarts": {"optim.schedule": "restarts(first={epoch}, factor=2)"},
}


def main(argv: list[str]) -> None:
    """Do one job, or start all of them and write the tables."""
    del argv
    if bad := [idea for idea in _IDEAS.value if idea not in IDEAS]:
        raise UserError(f"--ideas has {bad[0]!r}; choose from {', '.join(IDEAS)}.")
    seeds = [int(seed) for seed in _SEEDS.value]
    out = Path(_OUT.value)
    if _JOB.value:
        kind, name = _JOB.value.split("/")
        return read(kind, int(name), out) if name.isdigit() else train(kind, name, seeds, out)
    sets = [*(["rows"] if _ROWS.value else []), *(["digits"] if _DIGITS.value else [])]
    ideas = _IDEAS.value or [*IDEAS]
    begun = time.monotonic()
    for jobs in ([(kind, str(seed)) for kind in sets for seed in seeds], [(k, idea) for idea in ideas for k in sets]):
        waiting = [job for job in jobs if not _done(out, *job, seeds)]
        with futures.ThreadPoolExecutor(_AT_ONCE.value) as pool:
            for (kind, name), error in zip(waiting, pool.map(partial(_start, out), waiting), strict=True):
                print(f"{time.monotonic() - begun:5.0f} s  {kind}/{name}  {error}", flush=True)
    found = {kind: told(kind, seeds, out) for kind in sets}
    files.write_atomically(out / "ideas.json", json.dumps(found, indent=1) + "\n")


def place(out: Path, kind: str, name: str) -> Path:
    """Return the file that a job makes; runs of another length have others."""
    end = "npz" if name.isdigit() else "json"
    return out / f"{kind}_{_EPOCHS.value}_epochs" / f"{name}.{end}"


def _done(out: Path, kind: str, name: str, seeds: Sequence[int]) -> bool:
    path = place(out, kind, name)
    return path.exists() and (name.isdigit() or {*map(str, seeds)} <= json.loads(path.read_text())["seeds"].keys())


def _start(out: Path, job: tuple[str, str]) -> str:
    """Do a job in a process of its own, and return why it failed; '' if it did not."""
    kind, name = job
    log = place(out, kind, name).with_suffix(".txt")
    log.parent.mkdir(parents=True, exist_ok=True)
    # All processes share an accelerator's memory; examples are made without it.
    env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | ({"JAX_PLATFORMS": "cpu"} if name.isdigit() else {})
    with log.open("wb") as file:
        words = [sys.executable, "-m", "benchmarks.ideas", *sys.argv[1:], f"--job={kind}/{name}"]
        code = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, env=os.environ | env).returncode
    return f"exit code {code}: {log} says why" if code else ""


# --- One job ---


def words(kind: str, idea: str) -> tuple[str, ...]:
    """Return the command line of `main` for an idea on a set, without seed and workdir."""
    of = SETS[kind]
    steps = of.epoch * _EPOCHS.value
    named = dict(epoch=of.epoch, sharp=round(0.15 * steps))
    changes = {name: value.format(**named) for name, value in IDEAS[idea].items()}
    fields = {"batch_size": of.batch_size, "steps": steps, "optim.warmup_steps": of.epoch // 2} | of.fields | changes
    return (f"--config={of.config.format(rows=_ROWS.value)}", *(f"--config.{k}={v}" for k, v in fields.items()))


def assembled(kind: str, idea: str) -> Parts:
    """Return the parts of a run, as `main` has them."""
    return assemble(Config.of(config_file.take(words(kind, idea))[2]))


def read(kind: str, seed: int, out: Path) -> None:
    """Write all batches of a seed, [steps, B, ...] of each field."""
    parts = assembled(kind, "plain")
    run, data = parts.run, parts.task.train_data
    batches = parts.loader.train_batches(data, seed=seed, batch_size=run.batch_size, start=0)
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *itertools.islice(batches, run.steps))
    file = io.BytesIO()
    np.savez(file, **stacked)
    files.write_atomically(place(out, kind, f"{seed}"), file.getvalue())


def train(kind: str, idea: str, seeds: Sequence[int], out: Path) -> None:
    """Train an idea with all seeds side by side, and write what came of each."""
    read = [np.load(place(out, kind, f"{seed}")) for seed in seeds]
    batches = {name: np.stack([one[name] for one in read], 1) for name in read[0].files}  # [steps, seeds, B, ...]
    parts = assembled(kind, idea)
    states, loss, milliseconds = learn(parts, seeds, batches, out)
    evaluate = Evaluator(parts.run, parts.task, parts.devices, parts.loader, lambda *_: None)
    first = {name: one[:, 0].reshape(-1, *one.shape[3:])[:_EXAMPLES] for name, one in batches.items()}
    first = step_lib.augmented(parts.task.train_data, seeds[0], jax.tree.map(jnp.asarray, first))
    around, found = objective(parts.task, _of_seed(states, 0), first), {}
    for i, seed in enumerate(seeds):
        state = _of_seed(states, i)
        scores = evaluate(parts.run.steps, parts.devices.put_state(state))
        around.params = state.params
        [start] = spectrum.starts(around.size, 1, around.dtype, seed)
        ritz = spectrum.lanczos(around.product, start, _PRODUCTS.value)
        found[seed] = scores | {
            "train loss": float(loss[i]),
            "largest eigenvalue": float(ritz.values[-1]),
            "its bound": float(ritz.errors[-1]),
            "ms a step": milliseconds,
        }
    device = jax.local_devices()[0].device_kind
    about = {"idea": idea, "command": words(kind, idea), "device": device, "jax": jax.__version__}
    files.write_atomically(place(out, kind, idea), json.dumps(about | {"seeds": found}, indent=1) + "\n")


def learn(
    parts: Parts, seeds: Sequence[int], batches: dict[str, np.ndarray], out: Path
) -> tuple[TrainState, np.ndarray, float]:
    """Return the last states, the mean losses of the last epoch, and the milliseconds of a step in the fastest.

    On an accelerator a step is that of all seeds; on a CPU, which gains nothing by it, of one.
    """
    together = 1 if jax.default_backend() == "cpu" else len(seeds)
    numbers = np.asarray(seeds, np.uint32).reshape(-1, together)
    fresh, run_epoch = side_by_side(parts)
    epoch = parts.run.steps // _EPOCHS.value
    of = lambda i, group: jax.tree.map(
        lambda x: x[i * epoch : (i + 1) * epoch, group * together : (group + 1) * together], batches
    )
    compiled = jax.jit(run_epoch, donate_argnums=1).lower(numbers[0], fresh(numbers[0]), of(0, 0))
    compiled = compiled.compile(parallel.COMPILER_OPTIONS)
    seconds, groups, last = [], [], []
    with alone(out):
        for group, some in enumerate(numbers):
            states, losses = fresh(some), np.zeros(0)
            for i in range(_EPOCHS.value):
                of_this = jax.block_until_ready(jax.device_put(of(i, group)))
                begun = time.perf_counter()
                states, losses = jax.block_until_ready(compiled(some, states, of_this))
                seconds.append(time.perf_counter() - begun)
            groups.append(states)
            last.append(np.mean(losses, 0))
    together = lambda *leaves: jnp.concatenate(leaves) if np.ndim(leaves[0]) else leaves[0]  # one count of steps
    return jax.tree.map(together, *groups), np.concatenate(last), 1e3 * min(seconds) / epoch


def side_by_side(parts: Parts) -> tuple[Callable[..., TrainState], Callable[..., Any]]:
    """Return what makes the states of so many seeds, and what takes the steps of batches [n, seeds, B, ...].

    A state is [seeds, ...] in each leaf but the count of steps, so that what is done at some steps alone stays so.
    """
    of = of_any_seed(parts)

    def new(seed: Any, params: Any, extra: Any) -> TrainState:
        return of(seed).new_state(params, extra)

    def step(seed: Any, state: TrainState, batch: Any) -> tuple[TrainState, jax.Array]:
        state, metrics = of(seed).train_step(step_lib.Across(), state, batch)
        return state, metrics["loss"]

    one = jax.ShapeDtypeStruct((), np.uint32)
    like = jax.eval_shape(lambda seed: new(seed, *of(seed).init()), one)
    axes: Any = dataclasses.replace(jax.tree.map(lambda _: 0, like), step=None)
    # Apart, so that a compilation cache has the first for all ideas of one model.
    init = jax.jit(jax.vmap(lambda seed: of(seed).init()))
    state = jax.jit(jax.vmap(new, out_axes=axes))
    steps = jax.vmap(step, in_axes=(0, axes, 0), out_axes=(axes, 0))
    return lambda seeds: state(seeds, *init(seeds)), lambda seeds, states, batches: jax.lax.scan(
        partial(steps, seeds), states, batches
    )


@jax.jit
def _of_seed(states: TrainState, i: Any) -> TrainState:
    each = jax.tree.map(lambda x: x[i], dataclasses.replace(states, step=()))
    return dataclasses.replace(each, step=states.step)


def objective(task: Task, state: TrainState, examples: Any) -> Objective:
    """Return the training loss of examples, its draws fixed, as a function of the parameters."""

    def loss(params: Any, batch: Any, number: Any) -> tuple[jax.Array, jax.Array]:
        value, aux = task.loss(params, state, batch, step_lib.step_key(0, number))
        return value, jnp.float32(1) if aux.weight is None else aux.weight

    return Objective(loss, state.params, Batches(lambda: [examples], 1))


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Let one process at a time be here."""
    import fcntl  # which Windows has not

    with (out / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- The tables ---


def told(kind: str, seeds: Sequence[int], out: Path) -> dict[str, Any]:
    """Write and print the table of a set, of all ideas that are done, and return what is in it."""
    made = {idea: place(out, kind, idea) for idea in IDEAS}
    known = {idea: json.loads(path.read_text()) for idea, path in made.items() if path.exists()}
    plain = known.get("plain", {}).get("seeds", {})
    results = []
    for idea, about in known.items():
        for seed in seeds:
            metrics = about["seeds"].get(f"{seed}", {})
            if f"{seed}" in plain:
                metrics["less plain"] = metrics["test/accuracy"] - plain[f"{seed}"]["test/accuracy"]
            variant = plan.Variant(idea, IDEAS[idea], tuple(about["command"]))
            run = plan.Run(variant, seed, (*variant.words, f"--config.seed={seed}"), {})
            results.append(running.Result(run, "complete" if metrics else "failed", "", metrics))
    columns = ("test/accuracy", "less plain", "train loss", "largest eigenvalue", "ms a step")
    sweep = plan.Sweep(columns, tuple(one.run for one in results))
    print(f"\n{kind}\n\n{table.write(place(out, kind, 'plain').parent, sweep, results)}", flush=True)
    return known


if __name__ == "__main__":
    cli.run(main)
