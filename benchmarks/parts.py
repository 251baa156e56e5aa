"""The parts of a run that is ready to take steps, for what times them."""

from collections.abc import Callable
from typing import Any

from vit_jax_mixer.config import Config
from vit_jax_mixer.run import parallel
from vit_jax_mixer.run.assemble import assemble
from vit_jax_mixer.tasks import TrainState


def prepared(run: Config) -> tuple[parallel.Parallel, Callable[..., Any], TrainState, Any]:
    """Return the devices, the compiled step, a state and a batch on them."""
    parts = assemble(run)
    batches = parts.loader.train_batches(parts.task.train_data, seed=run.seed, batch_size=run.batch_size, start=0)
    batch = parts.devices.put_batch(next(iter(batches)))
    return parts.devices, parts.devices.train_step(parts.train_step), parts.fresh_state(), batch
