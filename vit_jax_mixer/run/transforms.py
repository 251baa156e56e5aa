"""What `optim.create` can put around any optimizer: clipping by parameter, scheduled decay, a late begin."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vit_jax_mixer import specs
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import stacked
from vit_jax_mixer.run.weight_decay import NO_DECAY

Decay = tuple[optax.Schedule, str]  # by step; and which parameters are not decayed, a regular expression

# --- Clipping ----------------------------------------------------------------------------------------


def clip_each(largest: float) -> optax.GradientTransformation:
    """Scale the gradient of each parameter to that norm where its own is larger, as DINO's code does.

    Of blocks that are stacked, each block's part is a parameter.
    """

    def leaf(path: Any, grad: jax.Array) -> jax.Array:
        parts = len(stacked.published_names(path, grad.shape))
        norm = jnp.sqrt(jnp.sum(grad**2, axis=range(parts > 1, grad.ndim), keepdims=True))
        return grad * jnp.minimum(largest / (norm + 1e-6), 1.0).astype(grad.dtype)

    return optax.stateless(lambda grads, _: jax.tree_util.tree_map_with_path(leaf, grads))


# --- Weight decay that changes -----------------------------------------------------------------------


def cosine(steps: int, *, start: specs.Rate, end: specs.Rate, no_decay: str = NO_DECAY) -> Decay:
    """Half a cosine from ``start`` at the first update to ``end`` at the end of the run, as in DINO.

    Args:
        steps: of the run.
        start: the share of a parameter that is taken away, times the learning rate.
        end: the same, where it leads to.
        no_decay: as that of `optim.adamw`.
    """
    return lambda count: end + 0.5 * (start - end) * (1 + jnp.cos(jnp.pi * jnp.minimum(count / steps, 1.0))), no_decay


DECAYS: Mapping[str, Callable[..., Decay]] = {"cosine": cosine}  # (steps=of the run, ...) -> its parts


def decay_by(
    rate: optax.Schedule, decay: optax.Schedule, mask: Callable[[Any], Any]
) -> optax.GradientTransformationExtraArgs:
    """Take ``rate * decay`` of each parameter away, which AdamW does with a decay that stays the same.

    Args:
        rate: the learning rate by step.
        decay: the weight decay by step.
        mask: from parameters to where decay applies, as `optim.decay_mask` gives it.
    """

    def update(updates: Any, state: Any, params: Any = None, **_: Any) -> tuple[Any, Any]:
        share = rate(state.count) * decay(state.count)

        def leaf(decays: Any, update: jax.Array, param: jax.Array) -> jax.Array:
            if decays is False:
                return update
            return update - share * (param if decays is True else jnp.where(decays, param, 0))

        updates = jax.tree.map(leaf, mask(params), updates, params)
        return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)), update
    )


# --- A late begin ------------------------------------------------------------------------------------


class HeldState(NamedTuple):
    """State of `hold`: i32[] updates so far, and the states for those that do not wait and those that do."""

    done: jax.Array
    others: Any
    held: Any


def hold(create: Callable[[int], optax.GradientTransformation], names: str, steps: int) -> optax.GradientTransformation:
    """Leave some parameters as they are in the first updates, which their optimizer does not see.

    So nothing decays meanwhile, and Adam's means begin when their first gradient comes, as in PyTorch where a
    gradient is None. The optimizer must not look at several parameters together.

    Args:
        create: from a number of updates that were missed to an optimizer whose schedules begin so late.
        names: a regular expression, which is found in the published names of these parameters.
        steps: updates in which they stay.

    Raises:
        UserError: it is no regular expression or, by ``init``, is found in no name.
    """
    try:
        re.compile(names)
    except re.error as error:
        raise UserError(f"config.optim.hold: {names!r} is no regular expression ({error}).") from error

    def waits(params: Any) -> Any:
        of = lambda path, leaf: any(re.search(names, one) for one in stacked.published_names(path, leaf.shape))
        return jax.tree_util.tree_map_with_path(of, params)

    others = optax.masked(create(0), lambda params: jax.tree.map(lambda held: not held, waits(params)))
    held = optax.masked(create(steps), waits)

    def init(params: Any) -> HeldState:
        if not any(jax.tree.leaves(waits(params))):
            raise UserError(f"config.optim.hold: {names!r} is in the name of no parameter; name one of the model's.")
        return HeldState(jnp.zeros((), jnp.int32), others.init(params), held.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, HeldState]:
        due = state.done >= steps
        updates, of_others = others.update(updates, state.others, params)
        updates, of_held = held.update(updates, state.held, params)
        updates = jax.tree.map(lambda wait, new: jnp.where(due, new, 0) if wait else new, waits(updates), updates)
        of_held = jax.tree.map(lambda new, old: jnp.where(due, new, old), of_held, state.held)
        return updates, HeldState(jnp.asarray(optax.safe_increment(state.done)), of_others, of_held)

    return optax.GradientTransformation(init, update)
