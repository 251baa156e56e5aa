"""From ``config.optim`` to an optax chain and its schedule."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_jax_mixer import specs
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import stacked


def create(
    *, optimizer: str, learning_rate: float, schedule: str, warmup_steps: int, clip_norm: float, steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Return the transformation and the learning rate by step.

    Args:
        optimizer: a spec as ``sgd(momentum=0.9)``, ``adam(b2=0.99)``, ``adamw(weight_decay=0.1)``.
        learning_rate: the highest, reached at the end of the warm-up.
        schedule: what follows the warm-up: cosine, linear (both to 0 at ``steps``) or constant.
        warmup_steps: steps in which the rate grows linearly from 0; the first update has rate 0.
        clip_norm: largest global norm of the gradient; 0 for no limit.
        steps: length of the run.

    Raises:
        UserError: an unknown optimizer, schedule or argument, or a warm-up longer than the run.
    """
    if not 0 <= warmup_steps < steps:
        raise UserError(
            f"config.optim.warmup_steps is {warmup_steps}; it must be from 0 to config.steps - 1 = {steps - 1}."
        )
    decay = specs.lookup(SCHEDULES, schedule, "config.optim.schedule")(learning_rate, steps - warmup_steps)
    rate = optax.join_schedules(
        [optax.linear_schedule(0.0, learning_rate, max(warmup_steps, 1)), decay], [warmup_steps]
    )
    update = specs.build(OPTIMIZERS, optimizer, "config.optim.optimizer", learning_rate=rate)
    try:
        jax.eval_shape(update.init, jnp.zeros(()))  # as a dtype that does not exist
    except TypeError as error:
        raise UserError(
            f"config.optim.optimizer: {optimizer!r} does not work ({error}); mend its arguments."
        ) from error
    clip = clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    return optax.chain(clip, update), rate


# (highest rate, steps after the warm-up) -> schedule
SCHEDULES: Mapping[str, Callable[[float, int], optax.Schedule]] = {
    "cosine": lambda peak, steps: optax.cosine_decay_schedule(peak, steps),
    "linear": lambda peak, steps: optax.linear_schedule(peak, 0.0, steps),
    "constant": lambda peak, steps: optax.constant_schedule(peak),
}


def clip_by_global_norm(largest: float) -> optax.GradientTransformation:
    """Scale gradients to that norm where theirs is larger.

    As optax's, but by one factor for all, which compiles into what reads the gradients. Dividing each
    of them by the norm makes copies: of two thirds of all parameters in a Mixer-L/16 with ``scan``.
    """

    def update(grads: optax.Updates, _: optax.Params | None) -> optax.Updates:
        norm = optax.tree.norm(grads)
        factor = jnp.where(norm < largest, 1.0, largest / norm)
        return jax.tree.map(lambda grad: grad * factor.astype(grad.dtype), grads)

    return optax.stateless(update)


def adamw(
    learning_rate: optax.Schedule,
    *,
    weight_decay: float,
    no_decay: str = "(bias|scale)$",
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    mu_dtype: str | None = None,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), its decay times the learning rate.

    Args:
        learning_rate: by step.
        weight_decay: the share of a parameter that is taken away, times the learning rate.
        no_decay: regular expression; parameters where it is found in the name, as
            ``MixerBlock_0/LayerNorm_0/scale``, are not decayed. '' decays all.
        b1: decay of the mean of gradients.
        b2: decay of the mean of their squares.
        eps: added to the root of that mean.
        mu_dtype: type that the mean of gradients is kept in, as 'bfloat16'.
    """
    return optax.adamw(
        learning_rate, b1, b2, eps, mu_dtype=mu_dtype, weight_decay=weight_decay, mask=decay_mask(no_decay)
    )


def decay_mask(no_decay: str) -> Callable[[Any], Any]:
    """Return a function from parameters to a tree of bools: True where decay applies.

    Names are the published ones, also of parameters that are stacked (`models.stacked`); the function
    raises a `UserError` where the blocks of one array are to be treated differently.
    """
    re.compile(no_decay)  # what is wrong with it is said at once

    def mask(params: Any) -> Any:
        def decays(path: Any, leaf: Any) -> bool:
            names = stacked.published_names(path, leaf.shape)
            left_out = [bool(no_decay and re.search(no_decay, name)) for name in names]
            if len(set(left_out)) > 1:
                raise UserError(
                    f"config.optim.optimizer: no_decay={no_decay!r} matches {names[left_out.index(True)]}, but not "
                    f"{names[left_out.index(False)]}, which config.model.scan keeps in one array; set it to False."
                )
            return not left_out[0]

        return jax.tree_util.tree_map_with_path(decays, params)

    return mask


OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "adam": optax.adam,
    "adamw": adamw,
}
