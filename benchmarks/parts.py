"""The parts of a run as the train loop makes them, for what times them."""

from collections.abc import Callable
from functools import partial
from typing import Any

from vit_jax_mixer import specs, tasks
from vit_jax_mixer.config import Config
from vit_jax_mixer.data.pipeline import Loader
from vit_jax_mixer.run import optim, parallel, step
from vit_jax_mixer.tasks import TrainState


def prepared(run: Config) -> tuple[parallel.Parallel, Callable[..., Any], TrainState, Any]:
    """Return the devices, the compiled step, a state and a batch on them."""
    task = tasks.create(run)
    devices = parallel.create(run.parallel)
    optimizer = specs.call(optim.create, run.optim, "config.optim", steps=run.steps)
    new_state, train_step = step.of_run(run, task, *optimizer)
    state = devices.put_state(devices.make(new_state, *devices.make(partial(task.init, step.init_key(run.seed)))))
    loader = specs.call(Loader, run.loader, "config.loader")
    batches = loader.train_batches(task.train_data, seed=run.seed, batch_size=run.batch_size, start=0)
    return devices, devices.train_step(train_step), state, devices.put_batch(next(iter(batches)))
