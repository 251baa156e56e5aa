"""Directions of a slice of the loss, with the norms of the weights (Li et al. 2018, arXiv 1712.09913, section 4)."""

from typing import Any

import jax
import numpy as np

from vit_jax_mixer.models import stacked

Tree = Any


def random(params: Tree, seed: int) -> Tree:
    """Return a direction of normal values, filter-normalised, like the parameters.

    It does not depend on whether the blocks are stacked.
    """
    rng = np.random.default_rng(seed)
    published = jax.device_get(stacked.unstack(params))
    drawn = jax.tree.map(lambda w: rng.normal(size=np.shape(w)).astype(w.dtype), published)
    return stacked.stack(normalised(drawn, published), params)


def normalised(direction: Tree, params: Tree, *, vectors: bool = False) -> Tree:
    """Give each filter of a direction the norm of that filter of the parameters.

    A filter is what makes one output unit: all of an array but its last axis, where Flax has the outputs.

    Args:
        direction: a tree like the parameters, of blocks that are not stacked.
        params: the parameters.
        vectors: whether arrays of one axis, as biases and scales, move (by themselves, as in the authors' code);
            else they stay where they are.
    """

    def leaf(d: Any, w: Any) -> Any:
        if np.ndim(w) <= 1:
            return np.array(w) if vectors else np.zeros_like(w)
        axes = tuple(range(np.ndim(w) - 1))
        norms = [np.sqrt(np.sum(np.square(x), axes, dtype=np.float64)) for x in (d, w)]
        return (d * (norms[1] / (norms[0] + 1e-10))).astype(w.dtype)

    return jax.tree.map(leaf, direction, params)
