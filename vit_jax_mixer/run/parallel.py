"""Runs the step on all devices: `Jit` over a mesh (the default), or `Pmap` as the original did.

Both split each batch over the devices, and give the same numbers where nothing is random inside the
step. Each device has a copy of the state or, with ``jit(fsdp=N)``, a part of it.
"""

import abc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import flax.jax_utils
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from vit_jax_mixer import specs
from vit_jax_mixer.data.pipeline import IS_EXAMPLE, Batch
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.run.step import Across
from vit_jax_mixer.tasks.base import TrainState, Tree

DATA, FSDP = "data", "fsdp"
# Smaller arrays are not worth the messages; of the state of a Mixer-S/16 they are 0.3 %.
SMALLEST_SHARDED = 2**14  # elements

# bfloat16 values are rounded where the program says so, not where fusions happen to end: so the
# numbers are those of the original's optimizer, and the same for both ways of running.
COMPILER_OPTIONS: dict[str, str | bool] = {"xla_allow_excess_precision": False}

Step = Callable[..., Any]


class Parallel(abc.ABC):
    """A way to run the step on all devices."""

    @abc.abstractmethod
    def make(self, function: Callable[..., Tree], *args: Tree) -> Tree:
        """Return ``function(*args)``, traced, where parts of a state belong before `put_state`."""

    @abc.abstractmethod
    def put_state(self, state: Tree) -> Tree:
        """Place a state; its arrays are copied, since those that share memory cannot all be donated."""

    @abc.abstractmethod
    def saved_form(self, state: Tree) -> Tree:
        """Return the state as a checkpoint holds it; any way to run can go on from it."""

    @abc.abstractmethod
    def saved_sharding(self, leaf: Any) -> Sharding:
        """Return where an array of that shape is read to from a checkpoint, before `put_state`."""

    @abc.abstractmethod
    def put_batch(self, batch: Batch) -> Batch:
        """Send this process's rows [B / processes, ...] to its devices, without waiting."""

    @abc.abstractmethod
    def look_up(self, rows: Tree) -> Callable[[jax.Array], Tree]:
        """Send arrays [N, ...], which every process has, to each device whole.

        Returns:
            what gives those of a batch, from their numbers i32[B] as `put_batch` has placed them.
        """

    @abc.abstractmethod
    def shapes(self, state: Tree, batch: Tree) -> tuple[Tree, Tree]:
        """Return (state, batch) as `lower` takes them, from the shapes of a state and of the whole batch."""

    @abc.abstractmethod
    def lower(self, step: Step, state: Tree, batch: Batch) -> jax.stages.Lowered:
        """Lower ``step(across, state, batch) -> (state, metrics)`` for such arguments; shapes suffice."""

    @abc.abstractmethod
    def eval_step(self, step: Step) -> Callable[[TrainState, Batch], Any]:
        """Compile ``step(across, state, batch) -> rows``; every process gets all rows."""

    def train_step(self, step: Step) -> Callable[[TrainState, Batch], Any]:
        """Return the step, compiled when it first gets a batch of its shapes; the state is donated."""
        compiled: dict[Any, Any] = {}

        def run(state: TrainState, batch: Batch) -> Any:
            shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
            if shapes not in compiled:
                compiled[shapes] = self.lower(step, state, batch).compile(COMPILER_OPTIONS)
            return compiled[shapes](state, batch)

        return run


class Jit(Parallel):
    """`jax.jit` over a mesh with the axes 'data' and 'fsdp'; XLA places the messages between devices.

    A batch is split over both axes. Of each large array of the state, a device holds one part of
    ``fsdp`` (Rajbhandari et al. 2019, arXiv 1910.02054, stage 3): the longest axis that can be
    divided so is split.
    """

    def __init__(self, fsdp: int = 1, *, devices: Sequence[Any] | None = None) -> None:
        """Take the arguments of ``config.parallel``.

        Args:
            fsdp: over how many devices the state is spread; 1 for a copy on each.
            devices: where to run; everywhere by default.

        Raises:
            UserError: it does not divide the number of devices.
        """
        devices = devices or jax.devices()
        count = len(devices)
        if fsdp < 1 or count % fsdp:
            possible = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
            raise UserError(f"config.parallel: fsdp is {fsdp}, but there are {count} devices; choose from {possible}.")
        # Processes one after another, as their blocks of a batch are.
        devices = sorted(devices, key=lambda device: (device.process_index, device.id))
        axes = (AxisType.Auto, AxisType.Auto)
        self._mesh = Mesh(np.array(devices).reshape(-1, fsdp), (DATA, FSDP), axis_types=axes)
        self._fsdp = fsdp
        self._replicated = NamedSharding(self._mesh, PartitionSpec())
        self._rows = NamedSharding(self._mesh, PartitionSpec((DATA, FSDP)))

    def make(self, function: Callable[..., Tree], *args: Tree) -> Tree:
        args = jax.tree.map(self._put, args)
        shardings = jax.tree.map(self.saved_sharding, jax.eval_shape(function, *args))
        return jax.jit(function, out_shardings=shardings)(*args)

    def put_state(self, state: Tree) -> Tree:
        return self.make(partial(jax.tree.map, jnp.copy), state)

    def saved_form(self, state: Tree) -> Tree:
        return state

    def saved_sharding(self, leaf: Any) -> Sharding:
        divisible = [size for size in leaf.shape if size % self._fsdp == 0]
        if self._fsdp == 1 or leaf.size < SMALLEST_SHARDED or not divisible:
            return self._replicated
        axis = leaf.shape.index(max(divisible))
        return NamedSharding(self._mesh, PartitionSpec(*[None] * axis, FSDP))

    def put_batch(self, batch: Batch) -> Batch:
        return jax.tree.map(partial(jax.make_array_from_process_local_data, self._rows), batch)

    def look_up(self, rows: Tree) -> Callable[[jax.Array], Tree]:
        whole = lambda leaf: jax.make_array_from_callback(leaf.shape, self._replicated, lambda index: leaf[index])
        return partial(jax.jit(_pick, out_shardings=self._rows), jax.tree.map(whole, rows))

    def shapes(self, state: Tree, batch: Tree) -> tuple[Tree, Tree]:
        placed = lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
        state = jax.tree.map(lambda leaf: placed(leaf, self.saved_sharding(leaf)), state)
        return state, jax.tree.map(lambda leaf: placed(leaf, self._rows), batch)

    def lower(self, step: Step, state: Tree, batch: Batch) -> jax.stages.Lowered:
        places = jax.tree.map(lambda leaf: leaf.sharding, state)
        step = partial(step, Across(of_rows=self._of_rows))
        return jax.jit(step, donate_argnums=0, out_shardings=(places, self._replicated)).lower(state, batch)

    def eval_step(self, step: Step) -> Callable[[TrainState, Batch], Any]:
        return jax.jit(partial(step, Across(of_rows=self._of_rows)), out_shardings=self._replicated)

    def _of_rows(self, count: int) -> AbstractContextManager[Any]:
        """Make each module work on this device's rows of so many, where the state is spread.

        An array is of the batch where its first axis has that length, or a multiple of it, as of several
        crops of each image. Else XLA leaves the parts of the state where they are and sends activations
        instead, which are far more: 18 times the bytes in a step of a Mixer-S/16 compiled for 4 TPUs
        (docs/planning.md).
        """
        if self._fsdp == 1:
            return nullcontext()

        def keep(leaf: Any) -> Any:
            is_batch = isinstance(leaf, jax.Array) and leaf.ndim > 1 and leaf.shape[0] and not leaf.shape[0] % count
            return jax.lax.with_sharding_constraint(leaf, self._rows) if is_batch else leaf

        def by_rows(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            if context.method_name != "__call__":
                return call(*args, **kwargs)
            return jax.tree.map(keep, call(*jax.tree.map(keep, args), **kwargs))

        return nn.intercept_methods(by_rows)

    def _put(self, leaf: Any) -> jax.Array:
        """Place an array that every process has, unless it is on all devices already."""
        if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) == self._mesh.size:
            return leaf
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, self.saved_sharding(host), lambda index: host[index])


class Pmap(Parallel):
    """`jax.pmap` over the devices of one process, with sums between them written out."""

    def __init__(self, *, devices: Sequence[Any] | None = None) -> None:
        self._devices = devices or jax.devices()
        if len({device.process_index for device in self._devices}) > 1:
            raise UserError("config.parallel='pmap' works in one process; use 'jit' for several.")

    def make(self, function: Callable[..., Tree], *args: Tree) -> Tree:
        return jax.jit(function)(*args)

    def put_state(self, state: Tree) -> Tree:
        return flax.jax_utils.replicate(state)

    def saved_form(self, state: Tree) -> Tree:
        return jax.device_get(flax.jax_utils.unreplicate(state))

    def saved_sharding(self, leaf: Any) -> Sharding:
        return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def put_batch(self, batch: Batch) -> Batch:
        devices = jax.local_device_count()
        return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)

    def look_up(self, rows: Tree) -> Callable[[jax.Array], Tree]:
        return partial(jax.pmap(_pick, devices=self._devices), flax.jax_utils.replicate(rows, self._devices))

    def shapes(self, state: Tree, batch: Tree) -> tuple[Tree, Tree]:
        count = len(self._devices)
        state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), state)
        rows = lambda leaf: jax.ShapeDtypeStruct((count, leaf.shape[0] // count, *leaf.shape[1:]), leaf.dtype)
        return state, jax.tree.map(rows, batch)

    def lower(self, step: Step, state: Tree, batch: Batch) -> jax.stages.Lowered:
        # A device's own key makes its dropout differ from the others'.
        across = Across(
            mean=partial(jax.lax.pmean, axis_name=DATA),
            gather=_gather,
            own_key=lambda key: jax.random.fold_in(key, jax.lax.axis_index(DATA)),
        )
        mapped = jax.pmap(
            partial(step, across), axis_name=DATA, devices=self._devices, donate_argnums=0, out_axes=(0, None)
        )
        return mapped.lower(state, batch)

    def eval_step(self, step: Step) -> Callable[[TrainState, Batch], Any]:
        return jax.pmap(partial(step, Across(gather=_gather)), axis_name=DATA, out_axes=None)


def _pick(rows: Tree, index: jax.Array) -> Tree:
    """Return those rows of arrays [N, ...], as [B, ...]."""
    return jax.tree.map(lambda leaf: leaf.at[index].get(mode="promise_in_bounds"), rows)


_gather = partial(jax.lax.all_gather, axis_name=DATA, tiled=True)  # in the order of the devices, as `put_batch` splits


def create(spec: str, devices: Sequence[Any] | None = None) -> Parallel:
    """Return the way to run on the devices (all, if not given) that ``config.parallel`` says.

    It is 'jit', 'jit(fsdp=4)' or 'pmap'.
    """
    return specs.build({"jit": Jit, "pmap": Pmap}, spec, "config.parallel", devices=devices)


def check_batch_size(size: int, field: str, parts: int = 1, devices: int = 0) -> None:
    """Raise a `UserError` if the devices (all, if not given), times ``parts``, do not divide a batch evenly."""
    devices = devices or jax.device_count()
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
