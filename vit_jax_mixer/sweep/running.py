"""The runs of a sweep, each the ordinary command in a process and a workdir of its own."""

import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

from vit_jax_mixer import config as config_lib
from vit_jax_mixer import files, specs
from vit_jax_mixer.checkpoints import best, checksums
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run.early_stopping import EarlyStopping
from vit_jax_mixer.run.workdir import CONFIG, DATA
from vit_jax_mixer.run.writers import METRICS
from vit_jax_mixer.sweep.plan import Run
from vit_jax_mixer.sweep.rungs import Rungs

# JAX else takes most of an accelerator's memory at once, and leaves nothing for a run beside.
_SHARING = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
_LOOKS = 1.0  # seconds between two looks at a run's evaluations
LOG = "output.txt"  # what a run's command printed, in its workdir


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a run.

    Attributes:
        run: which.
        status: 'complete', 'failed', 'ended' before others by a search, or 'begun' for one that is none of it.
        reason: why it failed or ended; '' else.
        metrics: the last value of each metric, by name; of runs that are complete or ended.
    """

    run: Run
    status: str
    reason: str = ""
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)


def result(run: Run, folder: Path, rungs: Rungs | None = None) -> Result:
    """Return what a workdir says of a run: whether it is complete, with this very config; or ended, by a search.

    Another config is left to the command itself, which says in what it differs.
    """
    path = folder / run.place
    checkpoints = path / "checkpoints"
    steps = best.steps(checkpoints) if checkpoints.is_dir() else []
    if not steps:
        return Result(run, "begun")
    try:
        fields = _in_steps(run, path)
        changed = config_lib.changes(checksums.read_json(path / CONFIG, may_lack_it=True), run.fields)
        last, metrics, evaluations = logged(path)
    except (ValueError, KeyError, AttributeError) as error:
        return Result(run, "begun", str(error))
    stopping = specs.call(EarlyStopping, fields.get("early_stopping", {}), "config.early_stopping")
    ends = last == fields["steps"] or stopping.reason(evaluations, fields["eval_every"])
    if not changed and last in steps and ends:
        return Result(run, "complete", "", metrics)
    reason = rungs.reason(run) if rungs and not changed else ""
    return Result(run, "ended", reason, metrics) if reason else Result(run, "begun")


def _in_steps(run: Run, workdir: Path) -> Mapping[str, Any]:
    """Return the config with steps where it counts epochs."""
    fields = config_lib.in_steps(run.fields, 0)
    if fields == run.fields:
        return fields
    data = checksums.read_json(workdir / DATA, may_lack_it=True)
    return config_lib.in_steps(run.fields, data["training"]["examples"])


def logged(workdir: Path) -> tuple[int, dict[str, float], dict[int, dict[str, float]]]:
    """Return the last step of a run's log, the last value of each metric, and all values by step.

    A line at the end that a run has not finished is left out.
    """
    last, metrics, evaluations = 0, {}, {}
    for line in files.read_text(workdir / METRICS, 4 << 30).splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        values = json.loads(line)
        last = values.pop("step")
        values = {name: value for name, value in values.items() if isinstance(value, int | float)}
        metrics |= values
        evaluations[last] = {**evaluations.get(last, {}), **values}
    return last, metrics, evaluations


def start_all(runs: Sequence[Run], folder: Path, at_once: int, rungs: Rungs | None = None) -> Iterator[Result]:
    """Run those that are not complete, ``at_once`` at a time, and yield what became of each as it ends.

    With ``rungs``, those that these end are asked to save a checkpoint and end, too.
    At an interruption (Ctrl-C or SIGTERM), those under way save a checkpoint and end, and no more begin.
    """
    children: set[subprocess.Popen[bytes]] = set()
    stopped = threading.Event()

    def stop(*_: object) -> None:
        stopped.set()
        for child in tuple(children):
            child.send_signal(signal.SIGTERM)

    def one(run: Run) -> Result:
        if stopped.is_set():
            return Result(run, "begun")
        return _start(run, folder, children, stopped, rungs)

    with _handled(stop), futures.ThreadPoolExecutor(at_once) as pool:
        for done in futures.as_completed([pool.submit(one, run) for run in runs]):
            yield done.result()


@contextlib.contextmanager
def _handled(stop: Callable[..., None]) -> Iterator[None]:
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(
    run: Run,
    folder: Path,
    children: set[subprocess.Popen[bytes]],
    stopped: threading.Event,
    rungs: Rungs | None,
) -> Result:
    path = folder / run.place
    command = [sys.executable, "-m", "vit_jax_mixer.main", *run.words, f"--workdir={path}"]
    try:
        path.mkdir(parents=True, exist_ok=True)
        with (path / LOG).open("wb") as log:
            # Of a session of its own, so that Ctrl-C reaches it once, through `stop`.
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=_SHARING | os.environ,
            )
            children.add(child)
            if stopped.is_set():
                child.send_signal(signal.SIGTERM)
            code = _wait(child, run, path, rungs) if rungs else child.wait()
            children.discard(child)
    except OSError as error:
        raise UserError(f"cannot write to {path} ({error.strerror}); choose another --out.") from error
    found = result(run, folder, rungs)
    if found.status in ("complete", "ended") or stopped.is_set():
        return found
    return Result(run, "failed", found.reason or _sentence(path / LOG, code))


def _wait(child: subprocess.Popen[bytes], run: Run, path: Path, rungs: Rungs) -> int:
    """Return the exit code of a run, which is asked to end where its evaluations are not good enough."""
    code, told = None, False
    while code is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = child.wait(_LOOKS)
        if not (path / METRICS).exists():
            continue
        with contextlib.suppress(ValueError, KeyError, AttributeError):  # `result` says that the file is damaged
            if rungs.compare(run, logged(path)[2], _in_steps(run, path)["steps"]) and not told:
                child.send_signal(signal.SIGTERM)
                told = True
    return code


def _sentence(log: Path, code: int) -> str:
    """Return what a command said when it failed: its sentence, or the last line of a traceback."""
    with log.open("rb") as file:
        file.seek(max(file.seek(0, 2) - 100_000, 0))
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")
    return said.removeprefix("error: ") or (f"killed by signal {-code}" if code < 0 else f"exit code {code}")


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and the deviation of a sample (by n - 1), not a number for one value."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
