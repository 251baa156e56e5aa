"""Random operations of the host as the step does them: on one image, u8[h, w, c], with a key of its own.

A twin does what its namesake in `images.HOST_OPS` does, with other draws. So images that stay in memory are
augmented without the host (`data.kept`).
"""

from collections.abc import Callable, Mapping
from typing import Annotated

import jax
import jax.numpy as jnp

from vit_jax_mixer.data.images.device import inside
from vit_jax_mixer.data.images.room import Side
from vit_jax_mixer.specs import Within

Twin = Callable[[jax.Array, jax.Array], jax.Array]  # (u8[h, w, c], key) -> u8[h, w, c]


def flip_lr() -> Twin:
    """Left and right exchanged in one half of the cases."""
    return lambda image, key: jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def random_shift(pixels: Annotated[int, Within(0, 2**13)]) -> Twin:
    """Moved by up to that many pixels each way; what comes in is black."""

    def op(image: jax.Array, key: jax.Array) -> jax.Array:
        reach = [min(pixels, side) for side in image.shape[:2]]  # from there on, all is black
        moves = jax.random.randint(key, (2,), -pixels, pixels + 1)
        padded = jnp.pad(image, [*((most, most) for most in reach), (0, 0)])
        starts = [jnp.clip(move, -most, most) + most for move, most in zip(moves, reach, strict=True)]
        return jax.lax.dynamic_slice(padded, (*starts, 0), image.shape)

    return op


def cutout(size: Side) -> Twin:
    """A black square of ``size`` pixels about a random pixel, cut off at the border."""

    def op(image: jax.Array, key: jax.Array) -> jax.Array:
        height, width = image.shape[:2]
        top, left = jax.random.randint(key, (2,), 0, jnp.array([height, width])) - size // 2
        square = inside(top, size, height)[:, None, None] & inside(left, size, width)[None, :, None]
        return jnp.where(square, jnp.zeros_like(image), image)

    return op


TWINS: Mapping[str, Callable[..., Twin]] = {op.__name__: op for op in (flip_lr, random_shift, cutout)}
