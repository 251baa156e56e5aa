"""Decoupled weight decay, which spares parameters by their published names."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import stacked

NO_DECAY = "(bias|scale)$"


def decayed(rate: float, no_decay: str) -> optax.GradientTransformation:
    """Add ``rate`` times the parameters, but for those of `decay_mask`; stacked blocks may differ."""
    mask = decay_mask(no_decay)

    def leaf(decays: Any, update: jax.Array, param: jax.Array) -> jax.Array:
        if not rate or decays is False:
            return update
        return update + rate * (param if decays is True else jnp.where(decays, param, 0))

    add = optax.stateless(lambda updates, params: jax.tree.map(leaf, mask(params), updates, params))
    return optax.masked(add, True)  # its state has the form of `optax.adamw`'s, as checkpoints hold it


def decay_mask(no_decay: str, where: str = "config.optim.optimizer") -> Callable[[Any], Any]:
    """Return a function from parameters to a tree of bools: True where decay applies.

    Names are the published ones, also of parameters that are stacked (`models.stacked`): where blocks
    of one array differ, there is a bool[L, 1, ...] in the place of the bool.
    """
    try:  # what is wrong with it is said at once
        re.compile(no_decay)
    except re.error as error:
        raise UserError(f"{where}: no_decay={no_decay!r} is no regular expression ({error}).") from error

    def mask(params: Any) -> Any:
        def decays(path: Any, leaf: Any) -> Any:
            names = stacked.published_names(path, leaf.shape)
            applies = [not (no_decay and re.search(no_decay, name)) for name in names]
            return applies[0] if len(set(applies)) == 1 else np.reshape(applies, (-1,) + (1,) * (leaf.ndim - 1))

        return jax.tree_util.tree_map_with_path(decays, params)

    return mask
