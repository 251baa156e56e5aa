"""One training step and one evaluation step, written once, for one logical device.

`parallel` runs them over all devices; it gives the functions that differ there, `Across`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_jax_mixer.config import Config
from vit_jax_mixer.data.pipeline import IS_EXAMPLE
from vit_jax_mixer.tasks.base import Task, TrainState, Tree

Batch = Mapping[str, jax.Array]
Metrics = Mapping[str, jax.Array]
MUST_BE_FINITE = ("loss", "grad_norm", "param_norm")  # of the metrics


@dataclasses.dataclass(frozen=True)
class Across:
    """What a step needs to know of the devices it runs on; the defaults are those of one device.

    Attributes:
        mean: from each device's mean to that over all of them.
        gather: from each device's rows [b, ...] to the rows of all, [B, ...].
        own_key: from a step's key to this device's own.
    """

    mean: Callable[[Tree], Tree] = lambda tree: tree
    gather: Callable[[Tree], Tree] = lambda tree: tree
    own_key: Callable[[jax.Array], jax.Array] = lambda key: key


def init_key(seed: int) -> jax.Array:
    """Return the key of the initialisation; it shares nothing with the steps' keys."""
    return jax.random.split(jax.random.key(seed))[0]


def step_key(seed: int, step: jax.Array) -> jax.Array:
    """Return the key of a step."""
    return jax.random.fold_in(jax.random.split(jax.random.key(seed))[1], step)


def of_run(
    run: Config, task: Task, optimizer: optax.GradientTransformation, learning_rate: optax.Schedule
) -> tuple[Callable[[Tree, Tree], TrainState], Callable[..., Any]]:
    """Return `new_state` of (params, extra) and `train_step` of (across, state, batch), as the run has them."""
    how = dict(ema_decay=run.ema_decay, skips=run.skips > 0)
    return (
        partial(new_state, optimizer, ema=run.ema_decay > 0, skips=run.skips > 0),
        partial(train_step, task, optimizer, learning_rate, run.seed, run.accum_steps, **how),
    )


def new_state(
    optimizer: optax.GradientTransformation, params: Tree, extra: Tree, *, ema: bool = False, skips: bool = False
) -> TrainState:
    """Return the state before the first step, with a running mean of the parameters and a count of skips if asked."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        extra=extra,
        frozen=(),
        ema=jax.tree.map(jnp.copy, params) if ema else (),
        skipped=jnp.zeros((), jnp.int32) if skips else (),
    )


def train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    seed: int,
    accum_steps: int,
    across: Across,
    state: TrainState,
    batch: Batch,
    *,
    ema_decay: float = 0.0,
    skips: bool = False,
) -> tuple[TrainState, Metrics]:
    """Return the state after one update, and its metrics; randomness comes from (seed, step).

    With ``ema_decay`` the state's running mean follows the parameters. With ``skips``, a step whose
    loss, gradient or new parameters are not finite changes nothing but the count of steps and skips.
    """
    key = across.own_key(step_key(seed, state.step))
    (loss, aux), grads = across.mean(_mean_gradient(task, accum_steps, state, batch, key))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    new = dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state)
    new = dataclasses.replace(new, extra=task.after_update(new, aux.stats))
    if ema_decay:
        new = dataclasses.replace(new, ema=_running_mean(state, params, ema_decay))
    metrics = {
        **aux.metrics,
        "loss": loss,
        "grad_norm": optax.tree.norm(grads),
        "param_norm": optax.tree.norm(params),  # after the update, which loss and gradient are not
        # The optimizer's own count leaves skipped steps out.
        "learning_rate": jnp.asarray(learning_rate(state.step - (state.skipped if skips else 0))),
    }
    if skips:
        finite = jnp.all(jnp.isfinite(jnp.stack([metrics[name] for name in MUST_BE_FINITE])))
        skipped = state.skipped + jnp.where(finite, 0, 1)
        kept = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, state)
        new = dataclasses.replace(kept, step=new.step, skipped=skipped)
        metrics["skipped"] = skipped
    return new, metrics


def _running_mean(state: TrainState, params: Tree, decay: float) -> Tree:
    """Return the mean with the new parameters in it; in the first steps it follows faster."""
    rate = 1 - jnp.minimum(decay, (1 + state.step) / (10 + state.step))
    return optax.incremental_update(params, state.ema, rate)


def eval_step(task: Task, across: Across, state: TrainState, batch: Batch) -> Metrics:
    """Return the task's outputs for all rows, and which rows are examples of the batch, [B, ...] each."""
    return across.gather({**task.eval_step(state, batch), IS_EXAMPLE: batch[IS_EXAMPLE]})


def _mean_gradient(task: Task, accum_steps: int, state: TrainState, batch: Batch, key: jax.Array):
    """Return ``((loss, aux), grads)``: means over ``accum_steps`` equal parts of the batch."""

    def gradient(part: jax.Array | int):
        # Part i holds the rows i, i + A, ...: each device's own rows are split, none moves.
        rows = jax.tree.map(lambda x: x.reshape(-1, accum_steps, *x.shape[1:])[:, part], batch)
        loss = lambda params: task.loss(params, state, rows, jax.random.fold_in(key, part))
        return jax.value_and_grad(loss, has_aux=True)(state.params)

    if accum_steps == 1:
        return gradient(0)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, 0))
    add = lambda total, part: (jax.tree.map(jnp.add, total, gradient(part)), None)
    total, _ = jax.lax.scan(add, zeros, jnp.arange(accum_steps))
    return jax.tree.map(lambda x: x / accum_steps, total)
