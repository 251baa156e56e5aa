"""The parts of a run that is ready to take steps, for what times them."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax_mixer.config import Config
from vit_jax_mixer.data.pipeline import first_example
from vit_jax_mixer.run import optim, parallel
from vit_jax_mixer.run import step as step_lib
from vit_jax_mixer.run.assemble import Parts, assemble
from vit_jax_mixer.tasks import TrainState


def prepared(run: Config) -> tuple[parallel.Parallel, Callable[..., Any], TrainState, Any]:
    """Return the devices, the compiled step, a state and a batch on them."""
    parts = assemble(run)
    batches = parts.loader.train_batches(parts.task.train_data, seed=run.seed, batch_size=run.batch_size, start=0)
    batch = parts.devices.put_batch(next(iter(batches)))
    return parts.devices, parts.devices.train_step(parts.train_step), parts.fresh_state(), batch


def memory(compiled: jax.stages.Compiled) -> list[float]:
    """Return MiB of a compiled step: temporaries, arguments, and arguments that are reused for its results."""
    analysis: Any = compiled.memory_analysis()
    sizes = (analysis.temp_size_in_bytes, analysis.argument_size_in_bytes, analysis.alias_size_in_bytes)
    return [size / 2**20 for size in sizes]


def measure(run: Config, steps: int) -> tuple[float, ...]:
    """Return seconds to trace and compile a run's step, the median of seconds a step, and `memory`."""
    parts = assemble(run)
    devices = parts.devices
    example = first_example(parts.task.train_data)
    batch = devices.put_batch({n: np.stack([x] * run.batch_size) for n, x in example.items()})
    # The time of a step does not depend on the values; these are quickly made.
    state = devices.make(lambda: jax.tree.map(lambda x: jnp.full(x.shape, 0.01).astype(x.dtype), parts.shapes()))

    jax.clear_caches()
    begun = time.perf_counter()
    compiled = devices.lower(parts.train_step, state, batch).compile(parallel.COMPILER_OPTIONS)
    seconds = [time.perf_counter() - begun]
    for _ in range(steps):
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, batch))
        seconds.append(time.perf_counter() - begun)
    return seconds[0], statistics.median(seconds[1:] or [0.0]), *memory(compiled)


def of_any_seed(parts: Parts) -> Callable[[Any], Parts]:
    """Return what gives the parts of the same run with another seed, which may be traced."""

    def of(seed: Any) -> Parts:
        run = dataclasses.replace(parts.run, seed=seed)
        optimizer, rate = optim.create(**run.optim, steps=run.steps, seed=seed)
        new_state, train_step = step_lib.of_run(run, parts.task, optimizer, rate)
        return dataclasses.replace(parts, run=run, new_state=new_state, train_step=train_step)

    return of
