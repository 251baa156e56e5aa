"""Random masking, after the masked autoencoder (He et al. 2022, arXiv 2111.06377, and facebookresearch/mae).

A model that mixes tokens by a weight for each place cannot leave masked ones out, as is done there: one learned token
stands in their place, as in SimMIM (Xie et al. 2022, arXiv 2111.09886). B examples, N tokens, C channels of a token,
P numbers of a patch.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax_mixer.errors import UserError


def random_mask(key: jax.Array, examples: int, tokens: int, ratio: float) -> jax.Array:
    """Return f32[B, N], 1 for that share of each example's tokens."""
    return mask_of(jax.random.uniform(key, (examples, tokens)), masked(tokens, ratio))


def masked(tokens: int, ratio: float) -> int:
    """Return how many tokens that share is; as there, those that stay are rounded down."""
    return tokens - int(tokens * (1 - ratio))


def mask_of(noise: jax.Array, count: int) -> jax.Array:
    """Return f32[B, N], 1 where a token is masked: those so many with the most noise, f32[B, N]."""
    rank = jnp.argsort(jnp.argsort(noise, axis=1), axis=1)
    return (rank >= noise.shape[1] - count).astype(jnp.float32)


def mean_loss(prediction: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
    """Return f32[]: the mean over masked tokens of their mean squared error.

    Args:
        prediction: f32[B, N, P].
        target: the same, what the patches hold.
        mask: f32[B, N], 1 where a token is masked. Where its sum differs from batch to batch, that is `Aux.weight`.
    """
    return jnp.sum(errors(prediction, target) * mask) / jnp.sum(mask)


def errors(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Return f32[B, N]: the mean squared error of each token."""
    return jnp.mean(jnp.square(prediction - target), axis=-1)


def tokens(model: Any, params: Any, inputs: jax.Array, mask: jax.Array, token: jax.Array, **how: Any) -> jax.Array:
    """Return f32[B, N, C]: the tokens that a model ends with, before their mean, if it does not see the masked ones.

    Args:
        model: has a layer ``stem``, which makes a token of each patch, and offers ``tokens`` as an intermediate.
        params: its parameters.
        inputs: what it reads.
        mask: f32[B, N], 1 where a token is masked.
        token: f32[C], what stands in the place of the masked ones.
        **how: more arguments of ``model.apply``, as ``train`` and ``rngs``.

    Raises:
        UserError: the model has no such layer, or other tokens would show what is masked.
    """
    if getattr(model, "stem", "patch") != "patch":
        raise UserError(
            f"config.model.stem is {model.stem!r}, whose convolutions would tell the neighbours of a masked patch what "
            "is in it; set it to 'patch'."
        )
    replaced = False

    def replace(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        nonlocal replaced
        x = call(*args, **kwargs)
        if context.module.path != ("stem",) or context.method_name != "__call__":
            return x
        replaced = True
        instead = token.astype(x.dtype).reshape(*(1,) * (x.ndim - 1), -1)
        return jnp.where(mask.reshape(*x.shape[:-1], 1) != 0, instead, x)

    with nn.intercept_methods(replace):
        _, state = model.apply({"params": params}, inputs, mutable=["intermediates"], **how)
    found = state.get("intermediates", {}).get("tokens")
    if not replaced or found is None:
        raise UserError(f"config.model is a {type(model).__name__}, whose tokens cannot be masked; choose another.")
    return found
