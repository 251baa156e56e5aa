"""The small Mixer of the MNIST document: an MLP head on the flattened (channels, tokens) matrix.

It differs from `mixer.MlpMixer` in four ways: LayerNorm runs over the token axis (epsilon 1e-5),
channel mixing comes first, GELU is the exact (erf) one, and tokens are flattened, not averaged.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax_mixer.models.layers import Blocks, Classes, embed_patches, expose
from vit_jax_mixer.specs import Size

gelu = partial(nn.gelu, approximate=False)


class Mlp(nn.Module):
    """Dense layers of the given widths with an exact GELU between."""

    widths: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map f32[..., D] to f32[..., widths[-1]]."""
        for i, width in enumerate(self.widths):
            x = nn.Dense(width, dtype=self.dtype, name=f"Dense_{i}")(gelu(x) if i else x)
        return x


class MnistMixerBlock(nn.Module):
    """``T = X + channel_mixing(norm(X))``, ``Y = T + token_mixing(norm(T))``, norms over tokens."""

    mlp_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map f32[B, C, N] to f32[B, C, N]: the document keeps tokens last."""
        channels, tokens = x.shape[1:]
        y = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="LayerNorm_0")(x)
        y = jnp.swapaxes(y, 1, 2)  # [B, C, N] -> [B, N, C]
        y = Mlp((self.mlp_dim, channels), self.dtype, name="channel_mixing")(y)
        x = x + jnp.swapaxes(y, 1, 2)  # [B, N, C] -> [B, C, N]
        y = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="LayerNorm_1")(x)
        return x + Mlp((self.mlp_dim, tokens), self.dtype, name="token_mixing")(y)


class MnistMixer(nn.Module):
    """The MNIST Mixer; 1,379,578 parameters at its own sizes.

    Attributes:
        num_classes: K; 0 leaves out the head and gives the flattened features.
        num_blocks: number of blocks.
        patch_size: pixels of a patch's side, or (height, width).
        hidden_dim: C, channels of a token.
        mlp_dim: hidden width of both mixing MLPs.
        head_dim: width of the head's two hidden layers.
        dtype: of the computation, as 'bfloat16'; parameters and logits stay float32.
    """

    num_classes: Classes
    num_blocks: Blocks = 3
    patch_size: int | tuple[int, int] = 7
    hidden_dim: Size = 128
    mlp_dim: Size = 64
    head_dim: Size = 512
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Map images f32[B, 28, 28, 1] to logits f32[B, K]; training changes nothing here."""
        del train
        x = embed_patches(images, self.patch_size, self.hidden_dim, self.dtype)
        x = jnp.swapaxes(x, 1, 2)  # [B, N, C] -> [B, C, N]
        for i in range(self.num_blocks):
            x = MnistMixerBlock(self.mlp_dim, self.dtype, name=f"MnistMixerBlock_{i}")(x)
            expose(self, f"block_{i}", jnp.swapaxes(x, 1, 2))  # [B, C, N] -> [B, N, C]
        x = x.reshape(x.shape[0], -1)  # [B, C, N] -> [B, C * N]
        expose(self, "pre_logits", x)
        if self.num_classes:
            x = Mlp((self.head_dim, self.head_dim, self.num_classes), self.dtype, name="head")(x)
        return x.astype(jnp.float32)
