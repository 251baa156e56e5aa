"""ResMLP (Touvron et al. 2021, arXiv 2105.03404, section 2 and figure 1).

B images, H x W pixels, N tokens (patches), C channels of a token, K classes. A Mixer without
LayerNorm, whose token mixing is one linear layer. The parameter tree is a Mixer's where it can be:
``stem``, ``ResMlpBlock_0/token_mixing/kernel``, ..., ``pre_head_affine``, ``head``; the names of
the published files are in `pretrained.names`.

Everything starts as in the authors' code (facebookresearch/deit, ``resmlp_models.py``): linear
kernels normal with deviation 0.02, their biases 0; kernel and bias of the stem uniform within
``1 / sqrt(fan_in)``, which is PyTorch's start for a convolution that nobody initialises. The
"truncated" normal there is cut at -2 and 2, a hundred deviations away, and so is a plain one.

For inference `fold` merges Aff and layer scale with their neighbours; ``folded=True`` computes that.
"""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

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
    patch_sides,
)
from vit_jax_mixer.specs import Share, Size

KERNEL_INIT = nn.initializers.normal(0.02)


class Affine(nn.Module):
    """``scale * x + bias``, a number of each for a channel: the paper's Aff (alpha and beta).

    Attributes:
        scale_init: start value of the scale; the bias starts at 0.
        use_bias: without a bias it is the paper's layer scale.
        dtype: of the computation; parameters stay float32.
    """

    scale_init: float = 1.0
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map f32[..., C] to f32[..., C]."""
        channels = x.shape[-1:]
        shape = (1,) * (x.ndim - 1) + channels
        scale = self.param("scale", nn.initializers.constant(self.scale_init), channels)
        y = x.astype(self.dtype) * scale.astype(self.dtype).reshape(shape)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, channels)
            y = y + bias.astype(self.dtype).reshape(shape)
        return y


class ResMlpBlock(nn.Module):
    """One linear layer across tokens, then an MLP across channels, each scaled and added to its input.

    Attributes:
        layerscale_init: start value of both layer scales.
        mlp_ratio: hidden width of the MLP, in multiples of C.
        stochastic_depth_rate: probability that an example skips a branch; branches that are
            kept are divided by ``1 - rate``.
        dtype: of the computation; parameters stay float32.
        activation: see `layers.activation`.
        folded: the block as `fold` leaves it.
    """

    layerscale_init: float
    mlp_ratio: float = 4
    stochastic_depth_rate: float = 0.0
    dtype: Any = jnp.float32
    activation: str = "gelu"
    folded: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, depth_rate: jax.Array | None = None) -> jax.Array:
        """Map f32[B, N, C] to f32[B, N, C]; ``depth_rate`` is for `layers.apply_blocks`."""
        if self.folded:
            return self._folded(x)
        tokens, channels = x.shape[1:]
        drop_path = partial(DropPath(self.stochastic_depth_rate, name="Dropout_0"), train=train, rate=depth_rate)
        dense = partial(nn.Dense, kernel_init=KERNEL_INIT, dtype=self.dtype)
        layer_scale = partial(Affine, self.layerscale_init, use_bias=False, dtype=self.dtype)

        y = Affine(dtype=self.dtype, name="Affine_0")(x)
        y = jnp.swapaxes(y, 1, 2)  # [B, N, C] -> [B, C, N]
        y = dense(tokens, name="token_mixing")(y)
        y = jnp.swapaxes(y, 1, 2)  # [B, C, N] -> [B, N, C]
        x = x + drop_path(layer_scale(name="LayerScale_0")(y))

        y = Affine(dtype=self.dtype, name="Affine_1")(x)
        y = dense(hidden_width(self.mlp_ratio, channels), name="Dense_0")(y)
        y = dense(channels, name="Dense_1")(activation(self.activation)(y))
        return x + drop_path(layer_scale(name="LayerScale_1")(y))

    def _folded(self, x: jax.Array) -> jax.Array:
        tokens, channels = x.shape[1:]
        dense = partial(nn.Dense, kernel_init=KERNEL_INIT, dtype=self.dtype)
        scale = self.param("token_scale", nn.initializers.constant(self.layerscale_init), (channels,))
        bias = self.param("token_bias", nn.initializers.zeros, (tokens, channels))

        y = jnp.swapaxes(x, 1, 2)  # [B, N, C] -> [B, C, N]
        y = dense(tokens, use_bias=False, name="token_mixing")(y)
        y = jnp.swapaxes(y, 1, 2)  # [B, C, N] -> [B, N, C]
        x = x + y * scale.astype(self.dtype).reshape(1, 1, -1) + bias.astype(self.dtype)[None]

        y = dense(hidden_width(self.mlp_ratio, channels), name="Dense_0")(x)
        return x + dense(channels, name="Dense_1")(activation(self.activation)(y))


class ResMlp(nn.Module):
    """Patches, residual blocks, a last Aff, mean over tokens, linear head.

    ``model.apply(variables, images, mutable=["intermediates"])`` also returns the tokens after
    each block as ``block_0``, ``block_1``, ..., those after the last Aff as ``tokens`` (all
    f32[B, N, C]) and their mean as ``pre_logits`` (f32[B, C]).

    Attributes:
        num_classes: K; 0 leaves out the head and gives the pooled features.
        num_blocks: number of blocks.
        patch_size: pixels of a patch's side, or (height, width).
        hidden_dim: C, channels of a token.
        layerscale_init: start value of the layer scales: the smaller, the deeper the model.
        mlp_ratio: hidden width of the MLPs, in multiples of C.
        stochastic_depth_rate: that of every block alike, as the paper trains.
        dtype: of the computation, as 'bfloat16'; parameters and logits stay float32.
        activation: between the dense layers of a block: 'gelu', 'relu', 'silu' or 'tanh' (`layers.activation`).
        folded: read the parameters that `fold` makes; for inference.
        scan: compile one block and loop over it; the parameters of all blocks are stacked (`stacked`).
        remat: compute a block's activations again in the backward pass instead of keeping them.
    """

    num_classes: Classes
    num_blocks: Blocks
    patch_size: int | tuple[int, int]
    hidden_dim: Size
    layerscale_init: Ratio
    mlp_ratio: Ratio = 4
    stochastic_depth_rate: Share = 0.0
    dtype: Any = jnp.float32
    activation: str = "gelu"
    folded: bool = False
    scan: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Map normalised images f32[B, H, W, 3] to logits f32[B, K], or features f32[B, C].

        With ``train=True`` and a rate above 0 it needs ``rngs={"dropout": key}``.

        Raises:
            UserError: the patch size does not divide the image size, or a folded model is to be trained.
        """
        if self.folded and train:
            raise UserError("a folded ResMLP is for inference; leave out config.model.folded.")
        stem_init = uniform_by_fan_in(images.shape[-1], self.patch_size)
        x = embed_patches(
            images, self.patch_size, self.hidden_dim, self.dtype, kernel_init=stem_init, bias_init=stem_init
        )
        how = dict(dtype=self.dtype, activation=self.activation, folded=self.folded)
        block = partial(ResMlpBlock, self.layerscale_init, self.mlp_ratio, **how)
        x = apply_blocks(self, block, [self.stochastic_depth_rate] * self.num_blocks, x, train=train)
        last = Affine(dtype=self.dtype, name="pre_head_affine")
        expose(self, "tokens", last(x))
        if not self.folded:
            x = last(x)
        x = jnp.mean(x, axis=1, dtype=jnp.float32)  # [B, N, C] -> [B, C]
        if self.folded:  # the mean of an affine map is the map of the mean
            x = last(x).astype(jnp.float32)
        expose(self, "pre_logits", x)
        if self.num_classes:
            x = nn.Dense(self.num_classes, kernel_init=KERNEL_INIT, name="head")(x)
        return x


def fold(params: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of the same function for ``ResMlp(..., folded=True)``, which has fewer operations.

    With ``Aff(x) = a x + b`` before a sublayer and layer scale ``l`` after it:

    * MLP across channels: ``a`` and ``b`` go into ``Dense_0``, and ``l`` into ``Dense_1``.
    * Token mixing ``W``, which all channels share and so cannot take up a number of each:
      ``x + l (W (a x + b) + c)`` is ``x + token_scale (W x) + token_bias`` with ``token_scale = l a``,
      f32[C], and ``token_bias = l (sum(W) b + c)``, f32[N, C].
    * ``pre_head_affine`` stays as it is, and comes after the mean over tokens.

    Args:
        params: of a `ResMlp` that is not folded; arrays of any float type.

    Returns:
        float32 arrays, computed in float64: in each block ``token_mixing/kernel``, ``token_scale``,
        ``token_bias``, ``Dense_0`` and ``Dense_1``; the rest as it was.
    """
    folded = {name: _fold_block(value) if name.startswith("ResMlpBlock_") else value for name, value in params.items()}
    return jax.tree.map(lambda x: np.asarray(x, np.float32), folded)


def _fold_block(block: dict[str, Any]) -> dict[str, Any]:
    block = jax.tree.map(lambda x: np.asarray(x, np.float64), block)
    before, mixing, after = block["Affine_0"], block["token_mixing"], block["LayerScale_0"]["scale"]
    # kernel [N in, N out]: what a constant across tokens becomes at token n is the sum of column n
    of_constant = mixing["kernel"].sum(axis=0)[:, None] * before["bias"] + mixing["bias"][:, None]  # [N, C]
    affine, first, second, last = (block[name] for name in ("Affine_1", "Dense_0", "Dense_1", "LayerScale_1"))
    return {
        "token_mixing": {"kernel": mixing["kernel"]},
        "token_scale": after * before["scale"],
        "token_bias": after * of_constant,
        "Dense_0": {
            "kernel": affine["scale"][:, None] * first["kernel"],
            "bias": first["bias"] + affine["bias"] @ first["kernel"],
        },
        "Dense_1": {"kernel": second["kernel"] * last["scale"], "bias": second["bias"] * last["scale"]},
    }


def uniform_by_fan_in(image_channels: int, patch_size: int | tuple[int, int]) -> nn.initializers.Initializer:
    """Return an initialiser uniform within ``1 / sqrt(fan_in)`` of the stem, for kernel and bias."""
    fan_in = image_channels * math.prod(patch_sides(patch_size))

    def init(key: Any, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
