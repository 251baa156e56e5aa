"""One training step and one evaluation step, written once, for one logical device.

`parallel` runs them over all devices; it gives the functions that differ there, `Across`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_jax_mixer.config import Config
from vit_jax_mixer.data.pipeline import IS_EXAMPLE, POSITION, Dataset
from vit_jax_mixer.run import gradient_norms, optim, plateau, sharpness
from vit_jax_mixer.run.sharpness import Gradients, Sharpness
from vit_jax_mixer.tasks.base import Aux, Task, TrainState, Tree

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
        of_rows: from a number of rows to a context, in which a model is applied to so many of a batch.
    """

    mean: Callable[[Tree], Tree] = lambda tree: tree
    gather: Callable[[Tree], Tree] = lambda tree: tree
    own_key: Callable[[jax.Array], jax.Array] = lambda key: key
    of_rows: Callable[[int], AbstractContextManager[Any]] = lambda rows: nullcontext()


def init_key(seed: int) -> jax.Array:
    """Return the key of the initialisation; it shares nothing with the steps' keys."""
    return jax.random.split(jax.random.key(seed))[0]


def step_key(seed: int, step: jax.Array) -> jax.Array:
    """Return the key of a step."""
    return jax.random.fold_in(jax.random.split(jax.random.key(seed))[1], step)


def augmented(data: Dataset, seed: int, batch: Batch) -> Batch:
    """Return a batch of training with what the dataset leaves to the step done.

    Each row draws from (seed, its position in the order), so whatever the batch, the parts and the devices.
    """
    if data.in_step is None:
        return batch
    key = jax.random.fold_in(jax.random.key(seed), 2)  # the two of `jax.random.split` are those above
    of_row = lambda halves: jax.random.fold_in(jax.random.fold_in(key, halves[0]), halves[1])
    rows = {name: value for name, value in batch.items() if name != POSITION}
    return data.in_step(rows, jax.vmap(of_row)(batch[POSITION]))


def of_run(
    run: Config, task: Task, optimizer: optax.GradientTransformation, learning_rate: optax.Schedule
) -> tuple[Callable[[Tree, Tree], TrainState], Callable[..., Any]]:
    """Return `new_state` of (params, extra) and `train_step` of (across, state, batch), as the run has them."""
    peak = run.optim.get("learning_rate", 0.0)
    sharp = sharpness.parse(run.sharpness, lambda count: learning_rate(count) / (peak or 1.0))
    how = dict(ema_decay=run.ema_decay, skips=run.skips > 0, sharp=sharp, by_layer=run.log_gradient_norms)
    prepare = partial(augmented, task.train_data, run.seed)
    return (
        partial(new_state, optimizer, ema=run.ema_decay > 0, skips=run.skips > 0, sharp=sharp),
        partial(train_step, task, optimizer, learning_rate, run.seed, run.accum_steps, prepare=prepare, **how),
    )


def new_state(
    optimizer: optax.GradientTransformation,
    params: Tree,
    extra: Tree,
    *,
    ema: bool = False,
    skips: bool = False,
    sharp: Sharpness | None = None,
) -> TrainState:
    """Return the state before the first step, with a running mean of the parameters and a count of skips if asked.

    With ``sharp``, the optimizer's state has what that remembers beside it.
    """
    opt_state = optim.by_block(optimizer).init(params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=(opt_state, sharp.init(params)) if sharp else opt_state,
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
    sharp: Sharpness | None = None,
    by_layer: bool = False,
    prepare: Callable[[Batch], Batch] = lambda batch: batch,
) -> tuple[TrainState, Metrics]:
    """Return the state after one update, and its metrics; randomness comes from (seed, step).

    With ``ema_decay`` the state's running mean follows the parameters. With ``skips``, a step whose
    loss, gradient or new parameters are not finite changes nothing but the count of steps and skips.
    With ``sharp``, that says where gradients are taken. With ``by_layer``, the metrics have the norm of each
    layer's gradient. ``prepare`` is what is done to the whole batch before, as `augmented`.
    """
    batch = prepare(batch)
    key = across.own_key(step_key(seed, state.step))
    count = state.step - (state.skipped if skips else 0)  # the optimizer's own count leaves skipped steps out
    mean = partial(_mean_gradient, task, accum_steps, across, state, batch, key)
    update = optim.by_block(optimizer).update
    if sharp:
        old, memory = state.opt_state
        gradients = Gradients(mean, partial(_mean_squares, task, across, state, batch, key))
        ((loss, aux), grads), memory = sharp.gradient(gradients, state.params, memory, count)
        updates, opt_state = update(grads, old, state.params)
        opt_state = (opt_state, memory)
    else:
        (loss, aux), grads = mean(state.params)
        updates, opt_state = update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    new = dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state)
    new = dataclasses.replace(new, extra=task.after_update(new, aux))
    if ema_decay:
        new = dataclasses.replace(new, ema=_running_mean(state, params, ema_decay))
    metrics = {
        **aux.metrics,
        "loss": loss,
        "grad_norm": optax.tree.norm(grads),
        **(gradient_norms.by_layer(grads) if by_layer else {}),
        "param_norm": optax.tree.norm(params),  # after the update, which loss and gradient are not
        "learning_rate": jnp.asarray(learning_rate(count)) * plateau.scale_of(state.opt_state),
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
    with across.of_rows(len(batch[IS_EXAMPLE])):
        outputs = task.eval_step(state, batch)
    return across.gather({**outputs, IS_EXAMPLE: batch[IS_EXAMPLE]})


def _mean_gradient(
    task: Task, accum_steps: int, across: Across, state: TrainState, batch: Batch, key: jax.Array, params: Tree
) -> tuple[tuple[jax.Array, Aux], Tree]:
    """Return ``((loss, aux), grads)`` of the whole batch at ``params``, computed in ``accum_steps`` equal parts."""

    def gradient(part: jax.Array | int) -> tuple[Tree, Tree]:
        """Return the means over a part, with its weight and times that where there is one, and its rows."""
        # Part i holds the rows i, i + A, ...: each device's own rows are split, none moves.
        examples = jax.tree.map(lambda x: x.reshape(-1, accum_steps, *x.shape[1:])[:, part], batch)
        count = len(jax.tree.leaves(examples)[0])
        loss = lambda params: task.loss(params, state, examples, jax.random.fold_in(key, part))
        with across.of_rows(count):
            (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(params)
        _check(aux, count)
        return _weighted((value, aux.metrics, aux.stats, grads), aux.weight), aux.rows

    if accum_steps == 1:
        means, rows = gradient(0)
    else:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, 0)[0])

        def add(total: Tree, part: jax.Array) -> tuple[Tree, Tree]:
            means, rows = gradient(part)
            return jax.tree.map(jnp.add, total, means), rows

        total, rows = jax.lax.scan(add, zeros, jnp.arange(accum_steps))
        means = jax.tree.map(lambda x: x / accum_steps, total)
        # [A, b / A, ...] -> [b, ...], as they were before they were split
        rows = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), rows)
    value, metrics, stats, grads = _unweighted(*across.mean(means))
    return (value, Aux(metrics, stats, across.gather(rows))), grads


def _mean_squares(task: Task, across: Across, state: TrainState, batch: Batch, key: jax.Array, params: Tree) -> Tree:
    """Return the mean over all examples, one with nothing to learn from left out, of their squared gradients."""

    def add(total: Tree, one: tuple[jax.Array, Batch]) -> tuple[Tree, None]:
        number, example = one
        example = jax.tree.map(lambda x: x[None], example)
        loss = lambda params: task.loss(params, state, example, jax.random.fold_in(key, number))
        grads, aux = jax.grad(loss, has_aux=True)(params)
        there = True if aux.weight is None else aux.weight > 0
        return jax.tree.map(lambda sum, grad: sum + jnp.where(there, grad**2, 0), total, grads), None

    examples = len(jax.tree.leaves(batch)[0])
    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), (jnp.arange(examples), batch))
    return across.mean(jax.tree.map(lambda sum: sum / examples, total))


def _check(aux: Aux, count: int) -> None:
    """Raise a `ValueError` where a loss of ``count`` examples returns what cannot be put together with others."""
    for path, leaf in jax.tree.leaves_with_path(aux.rows):
        if leaf.shape[:1] != (count,):
            name = f"Aux.rows{jax.tree_util.keystr(path)}"
            raise ValueError(f"{name} has shape {leaf.shape}, which is not one row for each of {count} examples")
    if aux.weight is not None and jnp.shape(aux.weight):
        raise ValueError(f"Aux.weight has shape {jnp.shape(aux.weight)}; it is one number, f32[]")


def _weighted(means: Tree, weight: jax.Array | None) -> tuple[Tree, Tree]:
    """Return means times their weight, and it; what has none, as all parts weigh the same, stays as it is.

    A mean over nothing, which may be 0 / 0, counts for nothing.
    """
    if weight is None:
        return means, ()
    weight = jnp.asarray(weight, jnp.float32)
    return jax.tree.map(lambda x: jnp.where(weight > 0, x * weight, 0).astype(x.dtype), means), weight


def _unweighted(sums: Tree, weight: Tree) -> Tree:
    """Return the means of what `_weighted` gave, once it is put together."""
    return jax.tree.map(lambda x: (x / weight).astype(x.dtype), sums) if jax.tree.leaves(weight) else sums
