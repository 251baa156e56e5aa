"""Convolutions beside mixer blocks: ConvNeXt and InceptionNeXt blocks before them, Inception before the patches.

Tokens lie in a grid: (rows, columns) of an image's patches, or (N,) for a table's. All here are for one axis or two.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax_mixer import specs
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models.layers import DropPath, Ratio, hidden_width
from vit_jax_mixer.specs import Size, Within

Grid = tuple[int, ...]
Kernel = Annotated[int, Within(1, 255)]
# From x [B, *grid, C] to the same shape; what it learns belongs to the module that calls it.
Mixing = Callable[[jax.Array, Any], jax.Array]
KERNEL_INIT = nn.initializers.normal(0.02)  # of both sources; their cut at a hundred deviations changes nothing


class ConvBlock(nn.Module):
    """``x + gamma * pwconv2(GELU(pwconv1(LayerNorm(mixing(x)))))`` (Liu et al. 2022, arXiv 2201.03545, figure 4).

    As facebookresearch/ConvNeXt has it: LayerNorm over channels with epsilon 1e-6, exact GELU.

    Attributes:
        mixing: depth-wise, across neighbours.
        expansion: hidden width, in multiples of C.
        layer_scale: start value of gamma; 0 leaves it out.
        grid: of the tokens.
        stochastic_depth_rate: probability that an example skips the block.
        dtype: of the computation; parameters stay float32.
        norm: makes the normalisation; that of InceptionNeXt is ``nn.BatchNorm``.
    """

    mixing: Mixing
    expansion: float
    layer_scale: float
    grid: Grid
    stochastic_depth_rate: float = 0.0
    dtype: Any = jnp.float32
    norm: Callable[..., nn.Module] = partial(nn.LayerNorm, epsilon=1e-6)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Map f32[B, N, C] to f32[B, N, C]."""
        channels = x.shape[-1]
        dense = partial(nn.Dense, kernel_init=KERNEL_INIT, dtype=self.dtype)
        y = self.mixing(x.reshape(x.shape[0], *self.grid, channels), self.dtype).reshape(x.shape)
        y = self.norm(dtype=self.dtype, name="norm")(y)
        y = dense(hidden_width(self.expansion, channels, "expansion"), name="pwconv1")(y)
        y = dense(channels, name="pwconv2")(nn.gelu(y, approximate=False))
        if self.layer_scale:
            gamma = self.param("gamma", nn.initializers.constant(self.layer_scale), (channels,))
            y = y * gamma.astype(self.dtype).reshape(1, 1, -1)
        return x + DropPath(self.stochastic_depth_rate, name="Dropout_0")(y, train=train)


def convnext(kernel_size: Kernel = 7, expansion: Ratio = 4, layer_scale: Ratio = 1e-6) -> Callable[..., ConvBlock]:
    """A ConvNeXt block: one depth-wise convolution, ``dwconv``."""

    def mixing(x: jax.Array, dtype: Any) -> jax.Array:
        return _depthwise(x, (kernel_size,) * (x.ndim - 2), dtype, "dwconv")

    return partial(ConvBlock, mixing, expansion, layer_scale)


def inception_next(
    kernel_size: Kernel = 3,
    band: Kernel = 11,
    branch_ratio: Annotated[float, Within(0, 0.25)] = 0.125,
    expansion: Ratio = 4,
    layer_scale: Ratio = 1e-6,
) -> Callable[..., ConvBlock]:
    """An InceptionNeXt block (Yu et al. 2023, arXiv 2303.16900, figure 4).

    The last channels go through a square kernel and one band along each axis, the others stay as they are. Its
    BatchNorm is a LayerNorm here, as in ConvNeXt: a training step keeps no running statistics.

    Args:
        kernel_size: side of the square.
        band: length of the bands.
        branch_ratio: share of the channels in each of these branches.
        expansion: hidden width, in multiples of C.
        layer_scale: start value of gamma; 0 leaves it out.
    """

    def mixing(x: jax.Array, dtype: Any) -> jax.Array:
        axes = x.ndim - 2
        width = int(x.shape[-1] * branch_ratio)
        if width < 1:
            raise UserError(f"branch_ratio {branch_ratio} of {x.shape[-1]} channels leaves none; choose a larger one.")
        kernels = {"dwconv_hw": (kernel_size,) * axes, "dwconv_w": (1,) * (axes - 1) + (band,)}
        if axes == 2:
            kernels["dwconv_h"] = (band, 1)
        same, *parts = jnp.split(x, [x.shape[-1] - i * width for i in range(len(kernels), 0, -1)], axis=-1)
        mixed = [_depthwise(part, kernels[name], dtype, name) for name, part in zip(kernels, parts, strict=True)]
        return jnp.concatenate([same.astype(dtype), *mixed], axis=-1)

    return partial(ConvBlock, mixing, expansion, layer_scale)


def _depthwise(x: jax.Array, kernel: Sequence[int], dtype: Any, name: str) -> jax.Array:
    channels = x.shape[-1]
    return nn.Conv(channels, kernel, feature_group_count=channels, dtype=dtype, kernel_init=KERNEL_INIT, name=name)(x)


class Inception(nn.Module):
    """Convolutions of three sizes and a pooling side by side (Szegedy et al. 2015, arXiv 1409.4842, figure 2b).

    As arXiv 2402.17951 draws it before the patches of a Mixer, and without normalisation, so that examples stay
    independent of each other. Where that paper's figure says nothing: the pooling is that of the maximum.

    Attributes:
        one: channels of the 1x1 branch.
        reduce3: channels of the 1x1 convolution before the 3x3 one.
        three: channels of the 3x3 branch.
        reduce5: channels of the 1x1 convolution before the 5x5 one.
        five: channels of the 5x5 branch.
        pool: channels of the pooling branch, a 3x3 maximum and a 1x1 convolution.
        relu: after each convolution, as in GoogLeNet; none is drawn in arXiv 2402.17951.
        kernel_size: of the 5x5 branch, which is 3 in torchvision's GoogLeNet.
        dtype: of the computation; parameters stay float32.
    """

    one: int
    reduce3: int
    three: int
    reduce5: int
    five: int
    pool: int
    relu: bool = False
    kernel_size: int = 5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map f32[B, *size, c] to f32[B, *size, one + three + five + pool]."""
        axes = x.ndim - 2

        def conv(x: jax.Array, width: int, kernel: int, name: str) -> jax.Array:
            x = nn.Conv(width, (kernel,) * axes, dtype=self.dtype, name=name)(x)
            return nn.relu(x) if self.relu else x

        pooled = nn.max_pool(x, (3,) * axes, (1,) * axes, "SAME")
        branches = [
            conv(x, self.one, 1, "branch1"),
            conv(conv(x, self.reduce3, 1, "branch2_0"), self.three, 3, "branch2_1"),
            conv(conv(x, self.reduce5, 1, "branch3_0"), self.five, self.kernel_size, "branch3_1"),
            conv(pooled, self.pool, 1, "branch4"),
        ]
        return jnp.concatenate(branches, axis=-1)


def inception(
    one: Size = 16,
    reduce3: Size = 24,
    three: Size = 32,
    reduce5: Size = 4,
    five: Size = 8,
    pool: Size = 8,
    relu: bool = False,
) -> Callable[..., Inception]:
    """An `Inception` block before the patches; by default a quarter as wide as GoogLeNet's first, 3a."""
    return partial(Inception, one, reduce3, three, reduce5, five, pool, relu)


CONV_BLOCKS: Mapping[str, Callable[..., Callable[..., nn.Module]]] = {
    "convnext": convnext,
    "inception_next": inception_next,
}
STEMS: Mapping[str, Callable[..., Callable[..., nn.Module] | None]] = {"patch": lambda: None, "inception": inception}


def before_patches(x: jax.Array, stem: str, dtype: Any) -> jax.Array:
    """Map f32[B, *size, c] to f32[B, *size, c'] by a spec of `STEMS`; called in a compact module."""
    module = specs.build(STEMS, stem, "config.model.stem")
    return x if module is None else module(dtype=dtype, name="inception")(x)


def before_blocks(
    conv_blocks: Sequence[int], conv_block: str, grid: Grid, rates: Sequence[float], dtype: Any
) -> dict[int, list[nn.Module]]:
    """Return the modules that precede each mixer block, by its number; called in a compact module.

    Args:
        conv_blocks: how many precede each of the first mixer blocks.
        conv_block: a spec of `CONV_BLOCKS`.
        grid: of the tokens.
        rates: stochastic depth of each mixer block, which those before it share.
        dtype: of the computation.

    Raises:
        UserError: the counts are none, or of more blocks than there are.
    """
    listed = isinstance(conv_blocks, (tuple, list)) and len(conv_blocks) <= len(rates)
    if not listed or not all(type(n) is int and 0 <= n <= 1000 for n in conv_blocks):
        raise UserError(
            f"config.model.conv_blocks is {str(conv_blocks)[:80]}; it must be how many come before each mixer block, "
            f"at most {len(rates)} numbers from 0."
        )
    block = specs.build(CONV_BLOCKS, conv_block, "config.model.conv_block")
    made: dict[int, list[nn.Module]] = {}
    for i, count in enumerate(conv_blocks):
        for _ in range(count):
            number = sum(map(len, made.values()))
            of_block = block(grid=grid, stochastic_depth_rate=rates[i], dtype=dtype, name=f"ConvBlock_{number}")
            made.setdefault(i, []).append(of_block)
    return made
