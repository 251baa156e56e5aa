"""From ``config.optim`` to an optax chain and its schedule."""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax_mixer import specs
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import FLOATS, stacked
from vit_jax_mixer.run import parameter_rates, schedules
from vit_jax_mixer.run.schedules import NotNegative
from vit_jax_mixer.specs import Share, Within

Epsilon = Annotated[float, Within(1e-30, 1)]  # float32 has it, and so has the root of a mean of squares
NO_DECAY = "(bias|scale)$"


def create(
    *,
    optimizer: str,
    learning_rate: NotNegative,
    schedule: str,
    warmup: str = "from_zero",
    warmup_steps: Annotated[int, Within(0)],
    clip_norm: NotNegative,
    noise: str = "",
    rates: str = "",
    layer_decay: Annotated[float, Within(0.1, 1)] = 1.0,
    steps: int,
    seed: int = 0,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Return the transformation and the learning rate by step.

    Args:
        optimizer: a spec as ``sgd(momentum=0.9)``, ``adam(b2=0.99)``, ``adamw(weight_decay=0.1)``, ``lamb(...)``.
        learning_rate: the highest, reached at the end of the warm-up.
        schedule: what follows the warm-up, a spec of `schedules.SCHEDULES`.
        warmup: how the rate rises, a spec of `schedules.WARMUPS`.
        warmup_steps: steps in which it does.
        clip_norm: largest global norm of the gradient; 0 for no limit.
        noise: what is added to the clipped gradient, a spec of `NOISES`; '' for nothing.
        rates: what the rate of parameters is multiplied with, by their names: see `parameter_rates.parse`.
        layer_decay: that from block to block, from the last to the first.
        steps: length of the run.
        seed: of the run.

    Raises:
        UserError: an unknown optimizer, schedule or argument, or a warm-up longer than the run.
    """
    rate = schedules.create(learning_rate, schedule=schedule, warmup=warmup, warmup_steps=warmup_steps, steps=steps)
    update = specs.build(OPTIMIZERS, optimizer, "config.optim.optimizer", learning_rate=rate)
    clip = clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    noises = [specs.build(NOISES, noise, "config.optim.noise", seed=seed)] if noise else []
    chain = parameter_rates.by_parameter(optax.chain(clip, *noises, update), rates, layer_decay)
    # Noise is drawn for each array, as it is when nothing is stacked.
    return Elementwise(*chain) if isinstance(update, Elementwise) and not noise else chain, rate


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


class Elementwise(optax.GradientTransformation):
    """An optimizer that changes each number by its own gradient and state, and by what is one for the whole model.

    So it needs not know where one layer ends and the next begins.
    """


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


def sgd(
    learning_rate: optax.Schedule,
    *,
    momentum: Annotated[float | None, Within(0, 0.999999)] = None,
    nesterov: bool = False,
    accumulator_dtype: str | None = None,
) -> optax.GradientTransformation:
    """Stochastic gradient descent, with momentum if asked; its mean is kept in ``accumulator_dtype``."""
    return Elementwise(*optax.sgd(learning_rate, momentum, nesterov, _float(accumulator_dtype, "accumulator_dtype")))


def adam(
    learning_rate: optax.Schedule,
    *,
    b1: Share = 0.9,
    b2: Share = 0.999,
    eps: Epsilon = 1e-8,
    eps_root: NotNegative = 0.0,
    mu_dtype: str | None = None,
    nesterov: bool = False,
    l2: NotNegative = 0.0,
) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015, arXiv 1412.6980); the fields are those of `adamw`, and optax's.

    ``l2`` times the parameters is added to the gradient, of all of them: what PyTorch's Adam calls weight decay.
    """
    update = optax.adam(learning_rate, b1, b2, eps, eps_root, _float(mu_dtype, "mu_dtype"), nesterov=nesterov)
    return Elementwise(*(optax.chain(optax.add_decayed_weights(l2), update) if l2 else update))


def adagrad(
    learning_rate: optax.Schedule, *, eps: Epsilon = 1e-10, initial: NotNegative = 0.0
) -> optax.GradientTransformation:
    """Adagrad (Duchi et al. 2011, JMLR 12), as PyTorch and fairseq have it.

    Args:
        learning_rate: by step.
        eps: added to the sum of squared gradients; PyTorch adds it to the root of that.
        initial: the sum at the start.
    """
    return Elementwise(*optax.adagrad(learning_rate, initial, eps))


def adamw(
    learning_rate: optax.Schedule,
    *,
    weight_decay: NotNegative,
    no_decay: str = NO_DECAY,
    b1: Share = 0.9,
    b2: Share = 0.999,
    eps: Epsilon = 1e-8,
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
    return Elementwise(
        *optax.chain(
            optax.scale_by_adam(b1, b2, eps, mu_dtype=_float(mu_dtype, "mu_dtype")),
            decayed(weight_decay, no_decay),
            optax.scale_by_learning_rate(learning_rate),
        )
    )


def lamb(
    learning_rate: optax.Schedule,
    *,
    weight_decay: NotNegative,
    no_decay: str = NO_DECAY,
    b1: Share = 0.9,
    b2: Share = 0.999,
    eps: Epsilon = 1e-6,
    always_adapt: bool = False,
    trust_clip: bool = False,
) -> optax.GradientTransformation:
    """LAMB (You et al. 2020, arXiv 1904.00962): Adam whose step of each array is as long as the array's norm.

    As apex (FusedLAMB) and timm have it: what is not decayed takes Adam's own step. The paper
    and `optax.lamb` adapt all arrays. Fields that are not listed are those of `adamw`.

    Args:
        learning_rate: by step.
        weight_decay: times a parameter, added to Adam's step before its length is taken. Without it there is
            nothing to adapt.
        no_decay: regular expression of parameters that are neither decayed nor adapted.
        b1: decay of the mean of gradients.
        b2: decay of the mean of their squares.
        eps: added to the root of that mean.
        always_adapt: adapt all arrays.
        trust_clip: shorten steps alone, as LAMBC does.
    """
    decays = decay_mask(no_decay)

    def leaf(decays: bool, update: jax.Array, param: jax.Array) -> jax.Array:
        if not always_adapt and not (decays and weight_decay):
            return update
        own, long = jnp.linalg.norm(param), jnp.linalg.norm(update)
        ratio = jnp.where((own > 0) & (long > 0), own / jnp.where(long > 0, long, 1), 1)
        return update * (jnp.minimum(ratio, 1) if trust_clip else ratio)

    adapt = optax.stateless(lambda updates, params: jax.tree.map(leaf, decays(params), updates, params))
    return optax.chain(
        optax.scale_by_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, decays),
        adapt,
        optax.scale_by_learning_rate(learning_rate),
    )


def lars(
    learning_rate: optax.Schedule,
    *,
    weight_decay: NotNegative,
    no_decay: str = NO_DECAY,
    momentum: Share = 0.9,
    trust_coefficient: NotNegative = 0.001,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """LARS (You et al. 2017, arXiv 1708.03888); what is not decayed is not scaled by its norm either."""
    mask = decay_mask(no_decay)
    return optax.lars(learning_rate, weight_decay, mask, trust_coefficient, 0.0, mask, momentum, nesterov)


def decayed(rate: float, no_decay: str) -> optax.GradientTransformation:
    """Add ``rate`` times the parameters, but for those of `decay_mask`; stacked blocks may differ."""
    mask = decay_mask(no_decay)

    def leaf(decays: Any, update: jax.Array, param: jax.Array) -> jax.Array:
        if not rate or decays is False:
            return update
        return update + rate * (param if decays is True else jnp.where(decays, param, 0))

    add = optax.stateless(lambda updates, params: jax.tree.map(leaf, mask(params), updates, params))
    return optax.masked(add, True)  # its state has the form of `optax.adamw`'s, as checkpoints hold it


def decay_mask(no_decay: str) -> Callable[[Any], Any]:
    """Return a function from parameters to a tree of bools: True where decay applies.

    Names are the published ones, also of parameters that are stacked (`models.stacked`): where blocks
    of one array differ, there is a bool[L, 1, ...] in the place of the bool.
    """
    try:  # what is wrong with it is said at once
        re.compile(no_decay)
    except re.error as error:
        raise UserError(f"config.optim.optimizer: no_decay={no_decay!r} is no regular expression ({error}).") from error

    def mask(params: Any) -> Any:
        def decays(path: Any, leaf: Any) -> Any:
            names = stacked.published_names(path, leaf.shape)
            applies = [not (no_decay and re.search(no_decay, name)) for name in names]
            return applies[0] if len(set(applies)) == 1 else np.reshape(applies, (-1,) + (1,) * (leaf.ndim - 1))

        return jax.tree_util.tree_map_with_path(decays, params)

    return mask


def _float(name: str | None, field: str) -> str | None:
    if name not in (None, *FLOATS):
        raise UserError(f"config.optim.optimizer: {field} is {name!r}; choose from {', '.join(FLOATS)}.")
    return name


OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": sgd,
    "adam": adam,
    "adagrad": adagrad,
    "adamw": adamw,
    "lamb": lamb,
    "lars": lars,
}
