"""The optimizers that ``config.optim.optimizer`` names, each a function of the learning rate by step."""

from collections.abc import Callable, Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import FLOATS
from vit_jax_mixer.run.schedules import NotNegative
from vit_jax_mixer.run.weight_decay import NO_DECAY, decay_mask, decayed
from vit_jax_mixer.specs import Count, Share, Within

Epsilon = Annotated[float, Within(1e-30, 1)]  # float32 has it, and so has the root of a mean of squares


class Elementwise(optax.GradientTransformation):
    """An optimizer that changes each number by its own gradient and state, and by what is one for the whole model.

    So it needs not know where one layer ends and the next begins.
    """


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
    scale = optax.scale_by_adam(b1, b2, eps, mu_dtype=_float(mu_dtype, "mu_dtype"))
    return _with_decay(scale, weight_decay, no_decay, learning_rate)


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


# --- More of optax's; weight decay is decoupled, as that of `adamw` ---


def lion(
    learning_rate: optax.Schedule,
    *,
    weight_decay: NotNegative = 0.0,
    no_decay: str = NO_DECAY,
    b1: Share = 0.9,
    b2: Share = 0.99,
) -> optax.GradientTransformation:
    """Lion (Chen et al. 2023, arXiv 2302.06675): steps of the sign alone; a third to a tenth of AdamW's rate."""
    return _with_decay(optax.scale_by_lion(b1, b2), weight_decay, no_decay, learning_rate)


def nadamw(
    learning_rate: optax.Schedule,
    *,
    weight_decay: NotNegative = 0.0,
    no_decay: str = NO_DECAY,
    b1: Share = 0.9,
    b2: Share = 0.999,
    eps: Epsilon = 1e-8,
) -> optax.GradientTransformation:
    """AdamW with Nesterov's momentum (Dozat 2016)."""
    return _with_decay(optax.scale_by_adam(b1, b2, eps, nesterov=True), weight_decay, no_decay, learning_rate)


def radam(
    learning_rate: optax.Schedule,
    *,
    weight_decay: NotNegative = 0.0,
    no_decay: str = NO_DECAY,
    b1: Share = 0.9,
    b2: Share = 0.999,
    eps: Epsilon = 1e-8,
) -> optax.GradientTransformation:
    """Rectified Adam (Liu et al. 2020, arXiv 1908.03265), which needs no warm-up."""
    return _with_decay(optax.scale_by_radam(b1, b2, eps), weight_decay, no_decay, learning_rate)


def adabelief(
    learning_rate: optax.Schedule,
    *,
    weight_decay: NotNegative = 0.0,
    no_decay: str = NO_DECAY,
    b1: Share = 0.9,
    b2: Share = 0.999,
    eps: Epsilon = 1e-16,
) -> optax.GradientTransformation:
    """AdaBelief (Zhuang et al. 2020, arXiv 2010.07468): by how far gradients are from their mean."""
    return _with_decay(optax.scale_by_belief(b1, b2, eps), weight_decay, no_decay, learning_rate)


def adan(
    learning_rate: optax.Schedule,
    *,
    weight_decay: NotNegative = 0.0,
    no_decay: str = NO_DECAY,
    b1: Share = 0.98,
    b2: Share = 0.92,
    b3: Share = 0.99,
    eps: Epsilon = 1e-8,
) -> optax.GradientTransformation:
    """Adan (Xie et al. 2022, arXiv 2208.06677), as optax has it, but for its decay, which is that of `adamw`."""
    return _with_decay(optax.scale_by_adan(b1, b2, b3, eps), weight_decay, no_decay, learning_rate)


def rmsprop(
    learning_rate: optax.Schedule,
    *,
    decay: Share = 0.9,
    eps: Epsilon = 1e-8,
    centered: bool = False,
    momentum: Annotated[float | None, Within(0, 0.999999)] = None,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """RMSProp (Tieleman & Hinton 2012), as optax has it."""
    return Elementwise(
        *optax.rmsprop(learning_rate, decay, eps, centered=centered, momentum=momentum, nesterov=nesterov)
    )


def adafactor(
    learning_rate: optax.Schedule,
    *,
    weight_decay: NotNegative = 0.0,
    no_decay: str = NO_DECAY,
    decay_rate: Share = 0.8,
    min_dim_size_to_factor: Count = 128,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: NotNegative = 1.0,
    momentum: Annotated[float | None, Within(0, 0.999999)] = None,
) -> optax.GradientTransformation:
    """Adafactor (Shazeer & Stern 2018, arXiv 1804.04235), which keeps a row and a column of a matrix of squares.

    As optax has it; ``weight_decay`` there is not multiplied with the rate. A ``clipping_threshold`` of 0 is none.
    """
    return optax.adafactor(
        learning_rate,
        min_dim_size_to_factor,
        decay_rate,
        multiply_by_parameter_scale=multiply_by_parameter_scale,
        clipping_threshold=clipping_threshold or None,
        momentum=momentum,
        weight_decay_rate=weight_decay or None,
        weight_decay_mask=decay_mask(no_decay),
    )


def _with_decay(
    scale: optax.GradientTransformation, weight_decay: float, no_decay: str, learning_rate: optax.Schedule
) -> optax.GradientTransformation:
    return Elementwise(
        *optax.chain(scale, decayed(weight_decay, no_decay), optax.scale_by_learning_rate(learning_rate))
    )


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
    "lion": lion,
    "nadamw": nadamw,
    "radam": radam,
    "adabelief": adabelief,
    "adan": adan,
    "rmsprop": rmsprop,
    "adafactor": adafactor,
}
