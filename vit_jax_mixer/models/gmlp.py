"""gMLP (Liu et al. 2021, "Pay Attention to MLPs", arXiv 2105.08050, section 2 and figure 1).

B images, H x W pixels, N tokens (patches), C channels of a token, D hidden channels, K classes.
Tokens meet in the gate alone: half of the hidden channels, mixed across tokens, multiplies the
other half. The parameter tree: ``stem``, ``GMlpBlock_0/spatial_gating/token_mixing/kernel``, ...,
``pre_head_layer_norm``, ``head``.

The paper fixes the start of the gate alone: kernel near zero, bias 1, so that each block begins as
a plain MLP. The rest starts as in timm's ``gmlp_s16_224`` (timm/models/mlp_mixer.py), of which
public weights exist: dense kernels Xavier-uniform, their biases normal with deviation 1e-6, the
stem LeCun-normal, the head zero. From there too: exact (erf) GELU before the gate, and LayerNorm
epsilon 1e-6, in the gate 1e-5.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models.layers import (
    Blocks,
    Classes,
    DropPath,
    Ratio,
    activation,
    apply_blocks,
    embed_patches,
    expose,
    hidden_width,
)
from vit_jax_mixer.specs import Share, Size

TINY = nn.initializers.normal(1e-6)


class SpatialGating(nn.Module):
    """``u * (W norm(v) + b)`` for the two halves u and v of the channels, W across tokens.

    Attributes:
        dtype: of the computation; parameters stay float32.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map f32[B, N, D] to f32[B, N, D/2]."""
        u, v = jnp.split(x, 2, axis=-1)
        v = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="LayerNorm_0")(v)
        v = jnp.swapaxes(v, 1, 2)  # [B, N, D/2] -> [B, D/2, N]
        v = nn.Dense(
            x.shape[1],
            kernel_init=TINY,
            bias_init=nn.initializers.ones,
            dtype=self.dtype,
            name="token_mixing",
        )(v)
        return u * jnp.swapaxes(v, 1, 2)  # [B, D/2, N] -> [B, N, D/2]


class GMlpBlock(nn.Module):
    """An MLP across channels with the spatial gate in its middle, around a skip connection.

    Attributes:
        mlp_dim: D, channels before the gate, which halves them.
        stochastic_depth_rate: probability that an example skips the block; branches that are
            kept are divided by ``1 - rate``.
        dtype: of the computation; parameters stay float32.
        activation: before the gate; see `layers.activation`.
    """

    mlp_dim: int
    stochastic_depth_rate: float = 0.0
    dtype: Any = jnp.float32
    activation: str = "gelu"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, depth_rate: jax.Array | None = None) -> jax.Array:
        """Map f32[B, N, C] to f32[B, N, C]; ``depth_rate`` is for `layers.apply_blocks`."""
        drop_path = partial(DropPath(self.stochastic_depth_rate, name="Dropout_0"), train=train, rate=depth_rate)
        dense = partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform(), bias_init=TINY, dtype=self.dtype)
        y = nn.LayerNorm(dtype=self.dtype, name="LayerNorm_0")(x)
        y = activation(self.activation)(dense(self.mlp_dim, name="Dense_0")(y))
        y = SpatialGating(self.dtype, name="spatial_gating")(y)  # [B, N, D] -> [B, N, D/2]
        y = dense(x.shape[-1], name="Dense_1")(y)
        return x + drop_path(y)


class GMlp(nn.Module):
    """Patches, gated blocks, mean over tokens, linear head.

    ``model.apply(variables, images, mutable=["intermediates"])`` also returns the tokens after
    each block as ``block_0``, ``block_1``, ..., those after the last LayerNorm as ``tokens`` (all
    f32[B, N, C]) and their mean as ``pre_logits`` (f32[B, C]).

    Attributes:
        num_classes: K; 0 leaves out the head and gives the pooled features.
        num_blocks: number of blocks.
        patch_size: pixels of a patch's side, or (height, width).
        hidden_dim: C, channels of a token.
        mlp_ratio: hidden width before the gate, in multiples of C.
        stochastic_depth_rate: that of every block alike.
        dtype: of the computation, as 'bfloat16'; parameters and logits stay float32.
        activation: before the gate: 'gelu', 'relu', 'silu' or 'tanh' (`layers.activation`).
        scan: compile one block and loop over it; the parameters of all blocks are stacked (`stacked`).
        remat: compute a block's activations again in the backward pass instead of keeping them.
    """

    num_classes: Classes
    num_blocks: Blocks
    patch_size: int | tuple[int, int]
    hidden_dim: Size
    mlp_ratio: Ratio = 6
    stochastic_depth_rate: Share = 0.0
    dtype: Any = jnp.float32
    activation: str = "gelu"
    scan: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Map normalised images f32[B, H, W, 3] to logits f32[B, K], or features f32[B, C].

        With ``train=True`` and a rate above 0 it needs ``rngs={"dropout": key}``.

        Raises:
            UserError: the patch size does not divide the image size, or the hidden width is odd.
        """
        mlp_dim = hidden_width(self.mlp_ratio, self.hidden_dim)
        if mlp_dim % 2:
            raise UserError(
                f"a gMLP halves its hidden width, and mlp_ratio {self.mlp_ratio} of {self.hidden_dim} channels "
                f"is {mlp_dim}; choose an mlp_ratio that makes it even."
            )
        x = embed_patches(images, self.patch_size, self.hidden_dim, self.dtype)
        block = partial(GMlpBlock, mlp_dim, dtype=self.dtype, activation=self.activation)
        x = apply_blocks(self, block, [self.stochastic_depth_rate] * self.num_blocks, x, train=train)
        x = nn.LayerNorm(dtype=self.dtype, name="pre_head_layer_norm")(x)
        expose(self, "tokens", x)
        x = jnp.mean(x, axis=1, dtype=jnp.float32)  # [B, N, C] -> [B, C]
        expose(self, "pre_logits", x)
        if self.num_classes:
            x = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")(x)
        return x
