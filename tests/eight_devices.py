"""Trains on eight simulated devices, in a process of its own, for `test_parallel`.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.eight_devices FOLDER

Writes to FOLDER the parameters after each run, and ``bytes.json``: what the state takes on a device.
"""

import json
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from configs import digits
from vit_jax_mixer import models, specs, tasks
from vit_jax_mixer.config import Config
from vit_jax_mixer.data.pipeline import Loader
from vit_jax_mixer.run import optim, parallel, step

CASES = [("jit", 1), ("pmap", 1), ("jit(fsdp=4)", 1), ("pmap", 2), ("jit(fsdp=4)", 2)]


def parts_of(layout, accum_steps):
    """Return all that trains the digits, with arrays large enough to be split."""
    config = digits.get_config()
    config.parallel, config.accum_steps = layout, accum_steps
    config.model.num_blocks, config.model.hidden_dim = 1, 128
    # Adam would blow up gradients that are zero but for rounding, as that of a bias before a LayerNorm.
    config.optim.optimizer, config.optim.learning_rate, config.optim.warmup_steps = "sgd(momentum=0.9)", 0.1, 2
    run = Config.of(config)
    loader = specs.call(Loader, run.loader, "config.loader")
    optimizer, rate = specs.call(optim.create, run.optim, "config.optim", steps=10)
    task = tasks.create(run)
    batches = loader.train_batches(task.train_data, seed=0, batch_size=run.batch_size, start=0)
    prepare = partial(step.augmented, task.train_data, 0)  # the digits are shifted in the step
    return task, optimizer, partial(step.train_step, task, optimizer, rate, 0, accum_steps, prepare=prepare), batches


def train(layout, accum_steps, params):
    """Make 10 updates; return the parameters, and the bytes of the state on each device."""
    devices = parallel.create(layout)
    _, optimizer, train_step, batches = parts_of(layout, accum_steps)
    state = devices.put_state(devices.make(partial(step.new_state, optimizer), params, ()))
    batch = devices.put_batch(next(batches))
    compiled = devices.lower(train_step, state, batch).compile(parallel.COMPILER_OPTIONS)
    for _ in range(10):
        state, _ = compiled(state, batch)
        batch = devices.put_batch(next(batches))
    return devices.saved_form(state).params, compiled.memory_analysis().alias_size_in_bytes  # what is donated


def bytes_of(name, layout):
    """Return the bytes of a model's parameters and Adam's state on each device, from their shardings."""
    devices, model = parallel.create(layout), models.create(name=name, num_classes=1000)
    optimizer, _ = optim.create(
        optimizer="adam", learning_rate=0.1, schedule="constant", warmup_steps=0, clip_norm=1, steps=9
    )
    init = lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
    state = jax.eval_shape(lambda: step.new_state(optimizer, init(), ()))
    size = lambda leaf: np.prod(devices.saved_sharding(leaf).shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return int(sum(map(size, jax.tree.leaves(state))))


def main(folder):
    assert jax.device_count() == 8
    params = jax.device_get(jax.jit(parts_of("jit", 1)[0].init)(step.init_key(0))[0])
    taken = {}
    for layout, accum_steps in CASES:
        trained, taken[layout] = train(layout, accum_steps, params)
        flat = traverse_util.flatten_dict(jax.device_get(trained), sep="/")
        np.savez(Path(folder) / f"{layout}_{accum_steps}.npz", **flat)
    for name in ("Mixer-S/16", "Mixer-B/16"):
        taken[name] = [bytes_of(name, "jit(fsdp=8)"), bytes_of(name, "jit")]
    (Path(folder) / "bytes.json").write_text(json.dumps(taken))


if __name__ == "__main__":
    main(sys.argv[1])
