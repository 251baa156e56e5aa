"""The projection head of DINO (Caron et al. 2021, arXiv 2104.14294, section 3.1 and appendix C).

As in the authors' code (facebookresearch/dino, ``vision_transformer.py``), without batch norm; what is
trained with it is a task, and users get the model below it.
"""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax_mixer.specs import Size, Within


class DinoHead(nn.Module):
    """An MLP to a narrow layer of unit length, and a last layer whose columns are of unit length too.

    Kernels start normal with deviation 0.02, biases at 0, the last layer as PyTorch's own linear layers do.

    Attributes:
        prototypes: K, the outputs.
        hidden_dim: width of the MLP.
        bottleneck_dim: width before the last layer.
        num_layers: of the MLP.
        norm_last_layer: whether the columns of the last layer have length 1 and no other; else each has a
            length ``magnitude`` of its own, which is trained, and decayed as kernels are.
    """

    prototypes: Size
    hidden_dim: Size = 2048
    bottleneck_dim: Size = 256
    num_layers: Annotated[int, Within(1, 100)] = 3
    norm_last_layer: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map features f32[B, C] to f32[B, K]."""
        for i, width in enumerate([self.hidden_dim] * (self.num_layers - 1) + [self.bottleneck_dim]):
            x = nn.gelu(x, approximate=False) if i else x
            x = nn.Dense(width, kernel_init=nn.initializers.normal(0.02), name=f"Dense_{i}")(x)
        return LastLayer(self.prototypes, self.norm_last_layer, name="last_layer")(_unit(x, -1))


class LastLayer(nn.Module):
    """A linear layer without bias, whose weights are kept as directions and lengths (arXiv 1602.07868)."""

    prototypes: int
    normalised: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map f32[B, D] to f32[B, K]."""

        def start(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
            return jax.random.uniform(key, shape, minval=-(shape[0] ** -0.5), maxval=shape[0] ** -0.5)

        x = x @ _unit(self.param("direction", start, (x.shape[-1], self.prototypes)), 0)
        if self.normalised:
            return x
        return x * self.param("magnitude", nn.initializers.ones, (self.prototypes,))[None]


def _unit(x: jax.Array, axis: int) -> jax.Array:
    """Scale to length 1 along an axis; a zero stays, and has a gradient of zero."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, axis, keepdims=True), 1e-24))
