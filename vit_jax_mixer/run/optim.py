"""From ``config.optim`` to an optax chain and its schedule."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from vit_jax_mixer import specs
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import stacked
from vit_jax_mixer.run import parameter_rates, schedules, transforms
from vit_jax_mixer.run.optimizers import OPTIMIZERS, Elementwise
from vit_jax_mixer.run.schedules import NotNegative
from vit_jax_mixer.run.weight_decay import decay_mask
from vit_jax_mixer.specs import Within


def create(
    *,
    optimizer: str,
    learning_rate: NotNegative,
    schedule: str,
    warmup: str = "from_zero",
    warmup_steps: Annotated[int, Within(0)],
    clip_norm: NotNegative,
    clip_norm_of: str = "all",
    noise: str = "",
    rates: str = "",
    layer_decay: Annotated[float, Within(0.1, 1)] = 1.0,
    decay: str = "",
    hold: str = "",
    hold_steps: Annotated[int, Within(0)] = 0,
    steps: int,
    seed: int = 0,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Return the transformation and the learning rate by step.

    Args:
        optimizer: a spec of `OPTIMIZERS`, as ``sgd(momentum=0.9)`` or ``adamw(weight_decay=0.1)``.
        learning_rate: the highest, reached at the end of the warm-up.
        schedule: what follows the warm-up, a spec of `schedules.SCHEDULES`.
        warmup: how the rate rises, a spec of `schedules.WARMUPS`.
        warmup_steps: steps in which it does.
        clip_norm: largest norm of the gradient; 0 for no limit.
        clip_norm_of: what that is the norm of: 'all' parameters together, or 'each' one's by itself.
        noise: what is added to the clipped gradient, a spec of `NOISES`; '' for nothing.
        rates: what the rate of parameters is multiplied with, by their names: see `parameter_rates.parse`.
        layer_decay: that from block to block, from the last to the first.
        decay: weight decay by a schedule, a spec of `transforms.DECAYS`; '' for the optimizer's own alone.
        hold: regular expression; parameters where it is found in the name begin to learn later.
        hold_steps: updates in which these stay as they are.
        steps: length of the run.
        seed: of the run.

    Raises:
        UserError: an unknown optimizer, schedule or argument, or a warm-up longer than the run.
    """
    rate = schedules.create(learning_rate, schedule=schedule, warmup=warmup, warmup_steps=warmup_steps, steps=steps)
    clips = {"all": clip_by_global_norm, "each": transforms.clip_each}
    clip = specs.lookup(clips, clip_norm_of, "config.optim.clip_norm_of")(clip_norm) if clip_norm else optax.identity()

    def created(missed: int = 0) -> optax.GradientTransformation:
        """Return the optimizer with its decay, for parameters that have missed so many updates."""
        of_step = (lambda count: rate(count + missed)) if missed else rate
        inner = specs.build(OPTIMIZERS, optimizer, "config.optim.optimizer", learning_rate=of_step)
        return _decayed_by(inner, optimizer, decay, of_step, missed, steps) if decay else inner

    if bool(hold) != bool(hold_steps):
        raise UserError(f"config.optim.hold is {hold!r} and hold_steps {hold_steps}; set both, or neither.")
    update = transforms.hold(created, hold, hold_steps) if hold else created()
    noises = [specs.build(NOISES, noise, "config.optim.noise", seed=seed)] if noise else []
    chain = parameter_rates.by_parameter(optax.chain(clip, *noises, update), rates, layer_decay)
    # Noise is drawn for each array, as it is when nothing is stacked.
    return Elementwise(*chain) if isinstance(update, Elementwise) and not noise else chain, rate


def _decayed_by(
    inner: optax.GradientTransformation, optimizer: str, decay: str, rate: optax.Schedule, missed: int, steps: int
) -> optax.GradientTransformation:
    """Return the optimizer with ``config.optim.decay`` after it."""
    if specs.parse(optimizer, "config.optim.optimizer")[2].get("weight_decay"):
        raise UserError(
            f"config.optim.decay is {decay!r}, but {optimizer} decays by itself; name one without, as 'adam'."
        )
    share, no_decay = specs.build(transforms.DECAYS, decay, "config.optim.decay", steps=steps)
    after = transforms.decay_by(rate, lambda count: share(count + missed), decay_mask(no_decay, "config.optim.decay"))
    both = optax.chain(inner, after)
    return Elementwise(*both) if isinstance(inner, Elementwise) else both


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


def gaussian(seed: int, *, eta: NotNegative, gamma: NotNegative = 0.55) -> optax.GradientTransformation:
    """Add Gaussian noise of variance ``eta / (1 + t)^gamma`` at step t, counted from 0 here.

    Neelakantan et al. 2015, arXiv 1511.06807, equation 1; ``eta`` there is 0.01, 0.3 or 1. It is optax's, but for
    the key in its state, which is kept as plain numbers so that a checkpoint can hold it.

    Args:
        seed: of the run.
        eta: the variance at first.
        gamma: how fast it falls; 0 for not at all.
    """
    inner: Any = optax.add_noise(eta, gamma, key=jax.random.fold_in(jax.random.key(seed), 1))
    plain = lambda state: state._replace(rng_key=jax.random.key_data(state.rng_key))

    def update(updates: optax.Updates, state: Any, params: optax.Params | None = None) -> tuple[optax.Updates, Any]:
        state = state._replace(rng_key=jax.random.wrap_key_data(state.rng_key))
        updates, state = inner.update(updates, state, params)
        return updates, plain(state)

    return optax.GradientTransformation(lambda params: plain(inner.init(params)), update)


NOISES: Mapping[str, Callable[..., optax.GradientTransformation]] = {"gaussian": gaussian}


def by_block(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return the optimizer as it is for a model that is not scanned, whatever the layout of the parameters.

    It sees the arrays of one block at a time, by their published names, and so does its state, which is
    never stacked. One that is `Elementwise` stays as it is: it needs no copies, and compiles once for all blocks.
    """
    if isinstance(optimizer, Elementwise):
        return optimizer

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        of_blocks, state = optimizer.update(stacked.unstack(updates), state, stacked.unstack(params))
        return stacked.stack(of_blocks, updates), state

    return optax.GradientTransformation(lambda params: optimizer.init(stacked.unstack(params)), update)
