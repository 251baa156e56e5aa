"""The norm of the gradient in each layer, and a word where it vanishes (``config.log_gradient_norms``)."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax_mixer.models import stacked

PREFIX = "grad_norm/"  # of their names in the log
LEAST = 1e-6  # of the largest layer's norm: a gradient that is less has vanished
LINES = 3  # of the log, one after another, in which it must have
_BLOCK = re.compile(r"(?:.*/)?\w*Block_\d+(?=/)")


def by_layer(grads: Any) -> dict[str, jax.Array]:
    """Return the norm f32[] of each layer's gradient: a block's, or what else holds parameters, as ``stem``.

    Args:
        grads: of the whole batch, in the layout of the parameters; blocks may be stacked (`models.stacked`).
    """
    squares: dict[str, jax.Array] = {}
    for path, leaf in jax.tree.leaves_with_path(grads):
        names = stacked.published_names(path, leaf.shape)
        square = jnp.square(jnp.abs(leaf.astype(jnp.float32))).reshape(len(names), -1).sum(1)
        for i, name in enumerate(names):
            layer = layer_of(name)
            squares[layer] = squares.get(layer, 0) + square[i]
    return {PREFIX + layer: jnp.sqrt(square) for layer, square in squares.items()}


def layer_of(name: str) -> str:
    """Return the layer of a parameter: the first block in its name, or else all but the last part."""
    block = _BLOCK.match(name)
    return block[0] if block else name.rpartition("/")[0] or name


class Vanishing:
    """Says once that the gradient vanishes, if it does so in some lines of the log, one after another.

    Not while the rate rises: a head that starts at zero hands no gradient back at first.
    """

    def __init__(self, warmup: int) -> None:
        """Take the number of steps in which the rate rises."""
        self._warmup = warmup
        self._lines = 0

    def __call__(self, step: int, metrics: Mapping[str, float]) -> str:
        """Return a sentence, or '', for a step's metrics; where those have no norms, there is nothing to say."""
        norms = {name.removeprefix(PREFIX): value for name, value in metrics.items() if name.startswith(PREFIX)}
        if not norms or step <= self._warmup:
            return ""
        least, most = min(norms, key=norms.__getitem__), max(norms, key=norms.__getitem__)
        self._lines = self._lines + 1 if norms[least] <= LEAST * norms[most] else 0
        if self._lines != LINES:
            return ""
        return (
            f"step {step}: the gradient vanishes: its norm is {norms[least]:.2g} in {least}, and {norms[most]:.2g} in "
            f"{most}; fewer blocks, a lower config.optim.learning_rate, or another config.init or "
            "config.model.activation may help."
        )
