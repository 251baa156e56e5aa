"""MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601, section 2 and figure 1).

B images, H x W pixels, N tokens (patches), C channels of a token (the paper's hidden width),
K classes. The parameter tree is that of the published checkpoints:
``stem``, ``MixerBlock_0/token_mixing/Dense_0/kernel``, ..., ``pre_head_layer_norm``, ``head``.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax_mixer.models.convolutions import before_blocks, before_patches
from vit_jax_mixer.models.lambda_layer import token_mixer
from vit_jax_mixer.models.layers import (
    Blocks,
    Classes,
    DropPath,
    activation,
    apply_blocks,
    embed_patches,
    expose,
    patch_sides,
)
from vit_jax_mixer.specs import Share, Size, Within


class MlpBlock(nn.Module):
    """Two dense layers with a GELU, or another activation, between; the last axis keeps its size.

    Attributes:
        mlp_dim: width of the hidden layer.
        dropout_rate: dropout after each of the two layers.
        dtype: of the computation; parameters stay float32.
        exact_gelu: by the error function, as PyTorch's models have it, not by tanh.
        activation: see `layers.activation`.
    """

    mlp_dim: int
    dropout_rate: float = 0.0
    dtype: Any = jnp.float32
    exact_gelu: bool = False
    activation: str = "gelu"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Map f32[..., D] to f32[..., D]."""
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
        y = nn.Dense(self.mlp_dim, dtype=self.dtype, name="Dense_0")(x)
        y = dropout(activation(self.activation, exact_gelu=self.exact_gelu)(y))
        return dropout(nn.Dense(x.shape[-1], dtype=self.dtype, name="Dense_1")(y))


class MixerBlock(nn.Module):
    """Token mixing, then channel mixing, each behind a LayerNorm and around a skip connection.

    Attributes:
        tokens_mlp_dim: hidden width of the MLP across tokens (D_S).
        channels_mlp_dim: hidden width of the MLP across channels (D_C).
        dropout_rate: dropout inside both MLPs.
        stochastic_depth_rate: probability that an example skips a branch; branches that are
            kept are divided by ``1 - rate`` (Huang et al. 2016, arXiv 1603.09382).
        dtype: of the computation; parameters stay float32.
        exact_gelu: see `MlpBlock`.
        activation: see `layers.activation`.
        epsilon: of the LayerNorms.
        token_mixer: makes what mixes tokens, f32[B, N, C] to the same, in the place of the MLP.
    """

    tokens_mlp_dim: int
    channels_mlp_dim: int
    dropout_rate: float = 0.0
    stochastic_depth_rate: float = 0.0
    dtype: Any = jnp.float32
    exact_gelu: bool = False
    activation: str = "gelu"
    epsilon: float = 1e-6
    token_mixer: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, depth_rate: jax.Array | None = None) -> jax.Array:
        """Map f32[B, N, C] to f32[B, N, C]; ``depth_rate`` is for `layers.apply_blocks`."""
        how = dict(dtype=self.dtype, exact_gelu=self.exact_gelu, activation=self.activation)
        mlp = partial(MlpBlock, dropout_rate=self.dropout_rate, **how)
        drop_path = partial(DropPath(self.stochastic_depth_rate, name="Dropout_0"), train=train, rate=depth_rate)

        y = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="LayerNorm_0")(x)
        if self.token_mixer is None:
            y = jnp.swapaxes(y, 1, 2)  # [B, N, C] -> [B, C, N]
            y = mlp(self.tokens_mlp_dim, name="token_mixing")(y, train=train)
            y = jnp.swapaxes(y, 1, 2)  # [B, C, N] -> [B, N, C]
        else:
            y = self.token_mixer(name="token_mixing")(y)
        x = x + drop_path(y)

        y = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="LayerNorm_1")(x)
        y = mlp(self.channels_mlp_dim, name="channel_mixing")(y, train=train)
        return x + drop_path(y)


class MlpMixer(nn.Module):
    """Patches, mixer blocks, mean over tokens, linear head.

    ``model.apply(variables, images, mutable=["intermediates"])`` also returns the tokens after
    each block as ``block_0``, ``block_1``, ..., those after the last LayerNorm as ``tokens`` (all
    f32[B, N, C]) and their mean as ``pre_logits`` (f32[B, C]).

    Attributes:
        num_classes: K; 0 leaves out the head and gives the pooled features.
        num_blocks: number of mixer blocks.
        patch_size: pixels of a patch's side, or (height, width).
        hidden_dim: C, channels of a token.
        tokens_mlp_dim: D_S, hidden width of token mixing by an MLP.
        channels_mlp_dim: D_C, hidden width of channel mixing.
        dropout_rate: dropout inside the MLPs.
        stochastic_depth_rate: that of the last block; it grows linearly from 0 at the first.
        head_bias_init: start value of the head's bias; about ``-log(K)`` with sigmoid losses.
        dtype: of the computation, as 'bfloat16'; parameters and logits stay float32.
        exact_gelu: as the PyTorch models of timm have it; the published Mixers were trained without.
        activation: between the dense layers of a block: 'gelu', 'relu', 'silu' or 'tanh' (`layers.activation`).
        stem: 'patch', or 'inception(one=16, ..., relu=False)' before the patches (`convolutions.Inception`).
        conv_blocks: how many convolutional blocks precede each of the first mixer blocks, as (2, 1); () for none.
        conv_block: their kind, 'convnext(kernel_size=7, expansion=4, layer_scale=1e-6)' or
            'inception_next(kernel_size=3, band=11, branch_ratio=0.125, ...)' (`convolutions`).
        token_mixer: 'mlp', or 'lambda_layer(dim_k=16, heads=4, dim_u=1, window=0)' (`lambda_layer`).
        scan: compile one block and loop over it; the parameters of all blocks are stacked (`stacked`).
        remat: compute a block's activations again in the backward pass instead of keeping them.
    """

    num_classes: Classes
    num_blocks: Blocks
    patch_size: int | tuple[int, int]
    hidden_dim: Size
    tokens_mlp_dim: Size
    channels_mlp_dim: Size
    dropout_rate: Share = 0.0
    stochastic_depth_rate: Share = 0.0
    head_bias_init: Annotated[float, Within(-1000, 1000)] = 0.0
    dtype: Any = jnp.float32
    exact_gelu: bool = False
    activation: str = "gelu"
    stem: str = "patch"
    conv_blocks: tuple[int, ...] = ()
    conv_block: str = "convnext"
    token_mixer: str = "mlp"
    scan: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Map images f32[B, H, W, 3] in [-1, 1] to logits f32[B, K], or features f32[B, C].

        With ``train=True`` and a rate above 0 it needs ``rngs={"dropout": key}``.

        Raises:
            UserError: the patch size does not divide the image size.
        """
        x = before_patches(images, self.stem, self.dtype)
        x = embed_patches(x, self.patch_size, self.hidden_dim, self.dtype)
        grid = tuple(side // patch for side, patch in zip(images.shape[1:3], patch_sides(self.patch_size), strict=True))
        block = partial(
            MixerBlock,
            self.tokens_mlp_dim,
            self.channels_mlp_dim,
            self.dropout_rate,
            dtype=self.dtype,
            exact_gelu=self.exact_gelu,
            activation=self.activation,
            token_mixer=token_mixer(self.token_mixer, grid, self.dtype),
        )
        rates = [self.stochastic_depth_rate * i / max(self.num_blocks - 1, 1) for i in range(self.num_blocks)]
        before = before_blocks(self.conv_blocks, self.conv_block, grid, rates, self.dtype)
        x = apply_blocks(self, block, rates, x, train=train, before=before)
        x = nn.LayerNorm(dtype=self.dtype, name="pre_head_layer_norm")(x)
        expose(self, "tokens", x)
        x = jnp.mean(x, axis=1, dtype=jnp.float32)  # [B, N, C] -> [B, C]
        expose(self, "pre_logits", x)
        if self.num_classes:
            x = nn.Dense(
                self.num_classes,
                kernel_init=nn.initializers.zeros,
                bias_init=nn.initializers.constant(self.head_bias_init),
                name="head",
            )(x)
        return x
