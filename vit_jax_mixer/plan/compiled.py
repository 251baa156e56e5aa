"""Compiles the step of a run for chips that need not be there, and reads its cost and memory."""

import contextlib
import dataclasses
import math
import os
import re
import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax_mixer.config import Config
from vit_jax_mixer.data.pipeline import like_batch
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.plan import cost, hlo
from vit_jax_mixer.plan.targets import Target
from vit_jax_mixer.run import parallel, resident
from vit_jax_mixer.run.assemble import assemble
from vit_jax_mixer.tasks.base import Tree

# libtpu is to compile and no more: neither look for the machine's own TPUs nor keep others from them.
LIBTPU = dict(
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5litepod-4",
    TPU_WORKER_HOSTNAMES="localhost",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of each chip.

    Attributes:
        parameters: of the model.
        optimizer: what the optimizer keeps of each parameter.
        other_state: the rest of the training state: a running mean, a teacher; and images that stay on each chip.
        batch: this chip's rows.
        temporaries: activations, gradients and what the compiler needs beside them.
        program: the compiled code itself, which lies in a TPU's memory.
        step: all of it at a step's worst moment; where the program does not fit, what the compiler asks for.
        start: what a start holds, the state and a copy of it; so does a save of a model with ``scan``.
    """

    parameters: float
    optimizer: float
    other_state: float
    batch: float
    temporaries: float
    program: float
    step: float
    start: float

    @property
    def peak(self) -> float:
        """The most at any moment of a run."""
        return max(self.step, self.start)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The step for one batch size; ``cost`` and ``xla`` are None where the program does not fit.

    Attributes:
        batch_size: over all chips.
        memory: of each chip.
        cost: of a step on each chip.
        xla: 'flops' and 'bytes accessed' of XLA's own analysis, which counts a loop's body once.
        seconds: that the compiler took: CPU time, which other work on the machine does not change.
    """

    batch_size: int
    memory: Memory
    cost: cost.Cost | None
    xla: Mapping[str, float] | None
    seconds: float


class Planned:
    """A run on a target: `compile` compiles its step, the very one that training compiles."""

    def __init__(self, run: Config, target: Target) -> None:
        """Build the run's task, optimizer and step.

        Raises:
            UserError: what training would say of the config, as that the chips do not divide its batch, or
                libtpu is missing.
        """
        self.run = run
        self.target = target
        parts = assemble(run, devices_of(target))
        self._parallel, self._step = parts.devices, parts.train_step
        self._state = dataclasses.replace(parts.shapes(), frozen=parts.task.frozen_shapes())
        self._data = parts.task.train_data
        self._kept = resident.size(parts.task)
        self.noun = parts.task.noun

    def compile(self, batch_size: int) -> Compiled:
        """Compile the step for a batch of that size, which the chips, times ``accum_steps``, must divide evenly."""
        state, batch = self._parallel.shapes(self._state, like_batch(self._data, batch_size))
        begun = time.process_time()
        lowered = self._parallel.lower(self._step, state, batch)
        try:
            program = lowered.compile(parallel.COMPILER_OPTIONS)
        except jax.errors.JaxRuntimeError as error:
            asked = _asked(str(error))
            if asked is None:
                raise
            memory = self._memory(state, batch, temporaries=math.nan, program=math.nan, step=asked)
            return Compiled(batch_size, memory, None, None, time.process_time() - begun)
        seconds = time.process_time() - begun
        sizes, analysis, text = program.memory_analysis(), program.cost_analysis(), program.as_text()
        if not sizes or not analysis or not text:
            raise NotImplementedError(f"{self.target.name}: its compiler does not say what a program costs")
        code = sizes.generated_code_size_in_bytes if self.target.chip.kind == "tpu" else 0
        out = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
        peak = self._kept + sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + out + code
        memory = self._memory(state, batch, sizes.temp_size_in_bytes + out, code, peak)
        xla = {name: float(analysis[name]) for name in ("flops", "bytes accessed")}
        return Compiled(batch_size, memory, cost.cost_of(hlo.parse(text), self.target.node), xla, seconds)

    def _memory(self, state: Tree, batch: Tree, temporaries: float, program: float, step: float) -> Memory:
        held = lambda tree: float(sum(map(self._bytes, jax.tree.leaves(tree))))
        parameters, optimizer = held(state.params), held(state.opt_state)
        rest = held(state) - parameters - optimizer + self._kept
        start = 2 * held(state) + self._kept
        return Memory(parameters, optimizer, rest, held(batch), temporaries, program, step, start)

    def _bytes(self, leaf: jax.ShapeDtypeStruct) -> float:
        """Return how much of an array each chip holds."""
        if leaf.sharding is None:  # pmap's first axis is that of the devices
            return math.prod(leaf.shape) * leaf.dtype.itemsize / self.target.count
        return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def devices_of(target: Target) -> list[Any]:
    """Return the target's devices: of a TPU slice described ones, else simulated ones of the CPU.

    Raises:
        UserError: libtpu is missing.
    """
    if target.chip.kind != "tpu":
        return jax.devices("cpu")[: target.count]
    from jax.experimental import topologies

    for name, value in LIBTPU.items():
        os.environ.setdefault(name, value)
    kind = target.name.partition(":")[0]
    options: dict[str, Any] = {}
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # as JAX runs it: a chip's two cores are one device
    if math.prod(target.shape) == 1 or target.shape == (2, 4):
        options["chips_per_host_bounds"] = [*target.shape, 1]  # else 2x2
    try:
        return list(topologies.get_topology_desc(target.name, "tpu", **options).devices)
    except RuntimeError as error:
        if "not installed" in str(error):
            raise UserError(
                f"--target={target.name}: planning for TPUs needs their compiler; pip install -e '.[plan]'."
            ) from error
        raise


def compiler_of(target: Target) -> str:
    """Return what compiles for a target, with its version: another one lays memory out otherwise."""
    names = ("libtpu" if target.chip.kind == "tpu" else "jaxlib", "jax")
    words = []
    for name in names:
        words.append(name)
        with contextlib.suppress(metadata.PackageNotFoundError):
            words[-1] += f" {metadata.version(name)}"
    return ", ".join(words)


def _asked(message: str) -> float | None:
    """Return the bytes that the compiler asked for, from its message that there are too few."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    size = re.search(r"Used ([\d.]+)([KMGT]?)", message) or re.search(r"\(([\d.]+)([KMGT])\) exceeds", message)
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return float(size[1]) * units[size[2]] if size else math.inf


def in_float32(run: Config) -> Config:
    """Return the run with its model computed in float32."""
    return dataclasses.replace(run, model={**run.model, "dtype": str(jnp.dtype("float32"))})
