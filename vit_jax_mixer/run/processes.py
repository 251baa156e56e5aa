"""Several processes as one run: how they find each other, and how the end of one ends the others."""

import os
import re
import secrets
import socket
import sys
import threading
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from vit_jax_mixer.errors import UserError

_PLAIN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# What other launchers, which JAX may not know, call the number of processes.
_OTHERS = {
    "OMPI_COMM_WORLD_SIZE": "Open MPI's mpirun",
    "PMI_SIZE": "mpiexec",
    "MV2_COMM_WORLD_SIZE": "MVAPICH's mpirun",
    "FLUX_JOB_SIZE": "flux",
    "JSM_NAMESPACE_SIZE": "jsrun",
    "WORLD_SIZE": "torchrun, or another launcher for PyTorch,",
}
# The same for the number of this process, where a container passes on only some variables.
_RANKS = {
    "OMPI_COMM_WORLD_RANK": "Open MPI's mpirun",
    "PMI_RANK": "mpiexec",
    "PMIX_RANK": "a launcher that has PMIx",
    "MV2_COMM_WORLD_RANK": "MVAPICH's mpirun",
    "FLUX_TASK_RANK": "flux",
    "JSM_NAMESPACE_RANK": "jsrun",
    "PALS_RANKID": "PALS' aprun",
    "RANK": "torchrun, or another launcher for PyTorch,",
}
_PEER = "(?i)gloo|nccl|peer|coordination|heartbeat|UNAVAILABLE|DEADLINE_EXCEEDED"  # in what JAX says of others


@contextmanager
def processes(wanted: bool | None = None) -> Iterator[None]:
    """Join the other processes of the run, if there are any, while the block runs.

    An error in the block ends this process at once: at a normal end it would wait for the others,
    which wait for it.

    Args:
        wanted: whether there are others; None to see it from the environment (`arguments`).

    Raises:
        UserError: the environment says it by halves, or the others cannot be reached.
    """
    found = arguments(os.environ, wanted)
    if found is None:
        yield
        return
    _join(found)
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        end(error)


def end(error: BaseException) -> NoReturn:
    """End this process, one of several, with an error's last words; the others notice it."""
    _end(_last_words(error))


def arguments(environ: Mapping[str, str], wanted: bool | None = None) -> dict[str, Any] | None:
    """Return what to call `jax.distributed.initialize` with; None for a process that is alone.

    The environment asks for it by the three variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID, or as SLURM sets it for a step of several tasks, or as GKE does for a TPU slice of
    several hosts. JAX itself reads the latter two.

    Raises:
        UserError: some variables are missing or make no sense, or another launcher has started several.
    """
    if wanted is False:
        return None
    if any(environ.get(name) for name in _PLAIN):
        return _plain(environ)
    in_step = "SLURM_STEP_NODELIST" in environ or environ.get("SLURM_STEP_NUM_TASKS")
    if in_step and (tasks := _slurm_tasks(environ)) > 1:
        _check_slurm(environ, tasks)
        if wanted is None:
            _check_others(environ, tasks)  # as mpirun's, whose daemons are the tasks of the step
        found: dict[str, Any] = {} if environ["SLURM_NTASKS"] == str(tasks) else {"num_processes": tasks}
        # JAX would give each task one device, also where it has the whole node; [] means all.
        return found | ({"local_device_ids": []} if environ.get("SLURM_STEP_NUM_NODES") == str(tasks) else {})
    if environ.get("SLURM_PROCID", "0") != "0" and not environ.get("SLURM_STEP_NODELIST"):
        _check_slurm(environ, 0)  # a batch script is always process 0
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES") or ""
    if "," in hosts:
        return {}
    if wanted is None:
        _check_others(environ, 1)
    return {} if wanted else None


def _check_others(environ: Mapping[str, str], expected: int) -> None:
    """Raise a `UserError` if another launcher has started more processes, or other ones, than is expected."""
    sizes = {name: (launcher, (1, expected)) for name, launcher in _OTHERS.items()}
    ranks = {name: (launcher, (0,)) for name, launcher in _RANKS.items() if expected == 1}
    for name, (launcher, fitting) in {**sizes, **ranks}.items():
        text = environ.get(name, "")
        if _is_number(text) and int(text) not in fitting:
            raise UserError(
                f"{name} is {text}, since {launcher} has started several processes, which would train side "
                f"by side in one workdir; set {', '.join(_PLAIN)} in each for one run of all, or pass --distributed "
                "to let JAX find them, or --nodistributed to run alone."
            )


def _slurm_tasks(environ: Mapping[str, str]) -> int:
    """Return how many tasks this step has; the job of an interactive one may have been given more."""
    name = "SLURM_STEP_NUM_TASKS" if environ.get("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"
    return _number(environ, name) if environ.get(name) else 1


def _check_slurm(environ: Mapping[str, str], tasks: int) -> None:
    """Raise a `UserError` unless the variables that JAX will read are all there, and numbers that agree."""
    names = ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if missing := [name for name in (*names, "SLURM_STEP_NODELIST") if not environ.get(name)]:
        raise UserError(
            f"SLURM has started several tasks, but {' and '.join(missing)} not set, as where a container passes on "
            "only some variables; pass on all, or run alone with --nodistributed."
        )
    for name in names:
        _number(environ, name)
    if int(environ["SLURM_PROCID"]) >= tasks:
        raise UserError(
            f"SLURM_PROCID is {environ['SLURM_PROCID']}, but this step has {tasks} tasks, numbered from 0; set both "
            "right, or run alone with --nodistributed."
        )


def _number(environ: Mapping[str, str], name: str) -> int:
    if not _is_number(environ[name]):
        raise UserError(
            f"{name} is {environ[name]!r:.80}, not a number; set it right, or run alone with --nodistributed."
        )
    return int(environ[name])


def _is_number(text: str) -> bool:
    return bool(re.fullmatch("[0-9]{1,9}", text))


def _plain(environ: Mapping[str, str]) -> dict[str, Any]:
    missing = [name for name in _PLAIN if not environ.get(name)]
    if missing:
        given = [name for name in _PLAIN if name not in missing]
        raise UserError(
            f"{' and '.join(given)} set, but not {' and '.join(missing)}; set all three for a run of several "
            "processes, or none, or run alone with --nodistributed."
        )
    address, count, index = (environ[name] for name in _PLAIN)
    port = address.rpartition(":")[2]
    if not (re.fullmatch(r"\S+:[0-9]{1,5}", address) and 0 < int(port) < 2**16):
        raise UserError(f"JAX_COORDINATOR_ADDRESS is {address!r:.80}; it must be HOST:PORT, of process 0.")
    if not (_is_number(count) and _is_number(index) and int(index) < int(count)):
        raise UserError(
            f"JAX_PROCESS_ID is {index!r:.80} of JAX_NUM_PROCESSES {count!r:.80}; they must be numbers, the first from "
            "0 and less than the second."
        )
    return {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}


def _join(found: Mapping[str, Any], seconds: int = 300) -> None:
    """Call `jax.distributed.initialize`; where JAX would abort the process, end it with one sentence.

    Args:
        found: its arguments.
        seconds: how long to wait for the others.
    """
    address = found.get("coordinator_address", "the address that the launcher gives")
    if found.get("process_id") == 0:
        _check_port(address)
    timer = threading.Timer(
        seconds,
        _end,
        [
            f"error: waited {seconds} s for the other processes of the run at {address}; see that all are started, "
            "or run alone with --nodistributed."
        ],
    )
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(**found, initialization_timeout=seconds + 60)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"cannot join the other processes of the run ({str(error).splitlines()[0]}); set {', '.join(_PLAIN)}, or "
            "pass --nodistributed to run alone."
        ) from error
    finally:
        timer.cancel()


def _check_port(address: str) -> None:
    try:
        socket.create_server(("", int(address.rpartition(":")[2]))).close()
    except OSError as error:
        raise UserError(
            f"JAX_COORDINATOR_ADDRESS is {address}, but process 0 cannot take its port "
            f"({os.strerror(error.errno or 0)}); choose another."
        ) from error


def _end(last_words: str) -> NoReturn:
    print(last_words, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _last_words(error: BaseException) -> str:
    """Return what an error leaves to say: one sentence, or the traceback of a defect."""
    me = f"process {jax.process_index()} of {jax.process_count()}"
    if isinstance(error, UserError):
        return f"error: {me}: {error}"
    if isinstance(error, jax.errors.JaxRuntimeError) and re.search(_PEER, str(error)):
        return (
            f"error: {me}: another one ended, or cannot be reached ({str(error).splitlines()[0][:200]}); the same "
            "command, given to all again, goes on from the newest checkpoint."
        )
    if isinstance(error, KeyboardInterrupt):
        return f"{me}: interrupted; the same command goes on from the newest checkpoint."
    return f"{me}:\n" + "".join(traceback.format_exception(error))


def check_shared(folder: Path) -> None:
    """Raise a `UserError` unless a folder is the same for all processes."""
    if jax.process_count() == 1:
        return
    number = int(multihost_utils.broadcast_one_to_all(np.uint32(secrets.randbits(31))))
    mark = folder / f".seen_by_all_{number}"
    if jax.process_index() == 0:
        mark.touch()
    multihost_utils.sync_global_devices("the folder is marked")
    sees = multihost_utils.process_allgather(np.bool_(mark.exists()))
    mark.unlink(missing_ok=True)
    if not sees.all():
        raise UserError(
            f"the workdir {folder} is not one folder: process {int(np.argmin(sees))} does not see what process 0 "
            "writes there; choose a --workdir that all hosts share."
        )


def of_first(value: bool) -> bool:
    """Return what process 0 says; they may see a shared folder at different moments."""
    return bool(multihost_utils.broadcast_one_to_all(np.bool_(value))) if jax.process_count() > 1 else value


def check_same(text: str, what: str, differences: Callable[[str, str], str] = lambda first, other: "") -> None:
    """Raise a `UserError` unless all processes have the same text.

    Args:
        text: is not sent, unless it differs.
        what: its name, with an article.
        differences: says in what another process's text differs from that of the first.
    """
    if jax.process_count() == 1:
        return
    sums = multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode())))
    if (sums == sums[0]).all():
        return
    other = int(np.argmax(sums != sums[0]))
    texts, hosts = gathered(text), gathered(socket.gethostname())
    how = differences(texts[0], texts[other])
    raise UserError(
        f"{what} of process {other} (on {hosts[other]}) is not that of process 0 (on {hosts[0]})"
        f"{how and ': '}{how}; start all with the same command, on hosts that have the same data."
    )


def gathered(text: str) -> list[str]:
    """Return the text of each process."""
    own = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(own)))
    padded = multihost_utils.process_allgather(np.pad(own, (0, int(lengths.max()) - len(own))))
    return [row[:length].tobytes().decode() for row, length in zip(padded, lengths, strict=True)]
