"""How much of each spatial frequency features have, by depth (Park and Kim 2022, arXiv 2202.06709, figure 2)."""

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax_mixer.trained import Trained


def log_amplitude(tokens: Any) -> np.ndarray:
    """Return f64[n, n], the mean log-amplitude of tokens [B, n * n, C], the lowest frequency in the middle."""
    count, all_tokens, channels = np.shape(tokens)
    side = math.isqrt(all_tokens)
    images = np.asarray(tokens, np.float64).reshape(count, side, side, channels)
    amplitude = np.log(np.abs(np.fft.fft2(images, axes=(1, 2))) + 1e-6)
    return np.fft.fftshift(amplitude.mean((0, 3)))


def relative(amplitude: np.ndarray) -> np.ndarray:
    """Return f64[n / 2], the half diagonal from the lowest frequency (which becomes 0) to the highest."""
    diagonal = np.diagonal(amplitude)[len(amplitude) // 2 :]
    return diagonal - diagonal[0]


class _Watched:
    """A module that keeps what its blocks make."""

    def __init__(self, module: Any) -> None:
        self._module, self.kept = module, {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def apply(self, variables: Any, *inputs: Any, mutable: Any = False, **how: Any) -> Any:
        outputs, state = self._module.apply(variables, *inputs, mutable=["intermediates"], **how)
        self.kept = state.get("intermediates", {})
        return (outputs, state) if mutable else outputs


def by_depth(trained: Trained, batches: Iterable[Any]) -> list[np.ndarray]:
    """Return `relative` of the tokens after each block, means over all inputs.

    Args:
        trained: the model.
        batches: of its inputs, [B, ...] each.

    Returns:
        nothing, where it offers no tokens after blocks, or they are on no square grid.
    """

    @jax.jit
    def tokens(params: Any, inputs: jax.Array) -> list[jax.Array]:
        watched: Any = _Watched(trained.module)
        trained.about.outputs(watched, params, inputs)
        count = sum(name.startswith("block_") for name in watched.kept)
        return [watched.kept[f"block_{i}"].astype(jnp.float32) for i in range(count)]

    totals: list[np.ndarray] = []
    examples = 0
    for inputs in batches:
        found = jax.device_get(tokens(trained.params, inputs))
        if not found or any(x.ndim != 3 or math.isqrt(x.shape[1]) ** 2 != x.shape[1] or x.shape[1] < 4 for x in found):
            return []
        of_batch = [len(inputs) * log_amplitude(x) for x in found]
        totals = [a + b for a, b in zip(totals, of_batch, strict=True)] if totals else of_batch
        examples += len(inputs)
    return [relative(total / examples) for total in totals]
