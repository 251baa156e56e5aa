"""Runs the step on all devices: `Jit` over a mesh (the default), or `Pmap` as the original did.

Both split each batch over the devices, keep a copy of the state on every one, and give the same
numbers where nothing is random inside the step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.jax_utils
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vit_jax_mixer import specs
from vit_jax_mixer.data.pipeline import IS_EXAMPLE, Batch
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.step import Across
from vit_jax_mixer.tasks.base import TrainState, Tree

AXIS = "data"

# bfloat16 values are rounded where the program says so, not where fusions happen to end: so the
# numbers are those of the original's optimizer, and the same for both ways of running.
COMPILER_OPTIONS = {"xla_allow_excess_precision": False}


class Jit:
    """`jax.jit` over a mesh with the axis 'data'; XLA places the sums between devices."""

    def __init__(self) -> None:
        mesh = jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._rows = NamedSharding(mesh, PartitionSpec(AXIS))

    def put_state(self, state: Tree) -> Tree:
        """Place a state; its arrays are copied, since those that share memory cannot all be donated."""
        return jax.device_put(jax.tree.map(jnp.copy, state), self._replicated)

    def saved_form(self, state: Tree) -> Tree:
        """Return the state as a checkpoint holds it."""
        return state

    def saved_sharding(self) -> jax.sharding.Sharding:
        """Return where a checkpoint is read to, before `put_state`."""
        return self._replicated

    def put_batch(self, batch: Batch) -> Batch:
        """Send this process's rows [B / processes, ...] to its devices, without waiting."""
        return jax.tree.map(partial(jax.make_array_from_process_local_data, self._rows), batch)

    def train_step(self, step: Callable[..., Any]) -> Callable[[TrainState, Batch], Any]:
        """Compile ``step(across, state, batch) -> (state, metrics)``; the state is donated."""
        return jax.jit(
            partial(step, Across()),
            donate_argnums=0,
            out_shardings=self._replicated,
            compiler_options=COMPILER_OPTIONS,
        )

    def eval_step(self, step: Callable[..., Any]) -> Callable[[TrainState, Batch], Any]:
        """Compile ``step(across, state, batch) -> rows``; every process gets all rows."""
        return jax.jit(partial(step, Across()), out_shardings=self._replicated)


class Pmap:
    """`jax.pmap` over the devices, with sums between them written out; the methods are `Jit`'s."""

    def __init__(self) -> None:
        if jax.process_count() > 1:
            raise UserError("config.parallel='pmap' works in one process; use 'jit' for several.")

    def put_state(self, state: Tree) -> Tree:
        return flax.jax_utils.replicate(state)

    def saved_form(self, state: Tree) -> Tree:
        return jax.device_get(flax.jax_utils.unreplicate(state))

    def saved_sharding(self) -> jax.sharding.Sharding:
        return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def put_batch(self, batch: Batch) -> Batch:
        devices = jax.local_device_count()
        return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)

    def train_step(self, step: Callable[..., Any]) -> Callable[[TrainState, Batch], Any]:
        # A device's own key makes its dropout differ from the others'.
        across = Across(
            mean=partial(jax.lax.pmean, axis_name=AXIS),
            own_key=lambda key: jax.random.fold_in(key, jax.lax.axis_index(AXIS)),
        )
        mapped = jax.pmap(partial(step, across), axis_name=AXIS, donate_argnums=0, out_axes=(0, None))
        compiled = None

        def run(state: TrainState, batch: Batch) -> Any:
            nonlocal compiled
            if compiled is None:  # pmap takes compiler options in this way alone
                compiled = mapped.lower(state, batch).compile(COMPILER_OPTIONS)
            return compiled(state, batch)

        return run

    def eval_step(self, step: Callable[..., Any]) -> Callable[[TrainState, Batch], Any]:
        across = Across(gather=partial(jax.lax.all_gather, axis_name=AXIS, tiled=True))
        return jax.pmap(partial(step, across), axis_name=AXIS, out_axes=None)


Parallel = Jit | Pmap


def create(name: str) -> Parallel:
    """Return the way to run that ``config.parallel`` names: 'jit' or 'pmap'."""
    return specs.lookup({"jit": Jit, "pmap": Pmap}, name, "config.parallel")()


def check_batch_size(size: int, field: str, parts: int = 1) -> None:
    """Raise a `UserError` if the devices, times ``parts``, do not divide a batch evenly."""
    devices = jax.device_count()
    if size <= 0 or size % (devices * parts):
        times = f" times config.accum_steps ({parts})" if parts > 1 else ""
        raise UserError(
            f"{field} is {size}, which is no multiple of the {devices} devices{times}; "
            f"the nearest that is: {max(round(size / (devices * parts)), 1) * devices * parts}."
        )


def rows_of(outputs: Any) -> dict[str, np.ndarray]:
    """Fetch an evaluation step's rows and leave out the padded ones."""
    rows = jax.device_get(outputs)
    is_example = rows.pop(IS_EXAMPLE)
    return {name: value[is_example] for name, value in rows.items()}
