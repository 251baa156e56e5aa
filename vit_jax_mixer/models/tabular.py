"""The Mixer for rows of a table: patches are of neighbouring columns.

B rows, F columns, P columns of a patch, N tokens (patches), C channels of a token, D numbers that a column is
told by, K classes. The parameter tree is a Mixer's: ``stem``, ``MixerBlock_0/token_mixing/Dense_0/kernel``, ...,
``pre_head_layer_norm``, ``head``; and, where columns are embedded, ``columns``.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax_mixer import specs
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models.convolutions import before_blocks, before_patches
from vit_jax_mixer.models.lambda_layer import token_mixer
from vit_jax_mixer.models.layers import Blocks, Classes, Ratio, apply_blocks, expose, hidden_width
from vit_jax_mixer.models.mixer import MixerBlock
from vit_jax_mixer.specs import Share, Size, Within

# From numbers f32[B, F] to f32[B, F, T], what a dense layer of each column reads.
Numbers = Callable[[nn.Module, jax.Array], jax.Array]


def linear() -> Numbers:
    """The number itself."""
    return lambda module, x: x[..., None]


def periodic(
    frequencies: Annotated[int, Within(1, 1024)] = 16, sigma: Annotated[float, Within(1e-6, 1000)] = 0.1
) -> Numbers:
    """Sine and cosine of learned frequencies (Gorishniy et al. 2022, arXiv 2203.05556, section 3.3).

    Args:
        frequencies: of each column.
        sigma: their deviation at the start, in turns for each 1 that the number grows.
    """

    def embed(module: nn.Module, x: jax.Array) -> jax.Array:
        turns = module.param("frequencies", nn.initializers.normal(sigma), (x.shape[-1], frequencies))
        angle = 2 * math.pi * turns[None] * x[..., None]
        return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)

    return embed


def piecewise(bins: Annotated[int, Within(1, 1024)] = 16, low: float = 0.0, high: float = 1.0) -> Numbers:
    """How far the number has come in each of ``bins`` equal parts of [low, high] (Gorishniy et al. 2022, section 3.2).

    With numbers that are their quantiles, as those of the scaling 'piecewise', that is the paper's embedding by
    quantile bins; beyond the first and the last bin it goes on as it is in them.
    """
    if not low < high:
        raise UserError(f"piecewise: low is {low}, high {high}; low must be less.")

    def embed(module: nn.Module, x: jax.Array) -> jax.Array:
        del module
        within = (x[..., None] - low) * (bins / (high - low)) - np.arange(bins, dtype=np.float32).reshape(1, 1, -1)
        least, most = np.zeros((1, 1, bins), np.float32), np.ones((1, 1, bins), np.float32)
        least[..., 0], most[..., -1] = -1e6, 1e6  # finite, so that an export has no infinities
        return jnp.minimum(jnp.maximum(within, least), most)

    return embed


NUMBERS: Mapping[str, Callable[..., Numbers]] = {"linear": linear, "periodic": periodic, "piecewise": piecewise}


class Columns(nn.Module):
    """Each column as a vector: categories by a table, numbers by `NUMBERS` and a dense layer of each column.

    Attributes:
        dim: D.
        categories: for each column the number of its categories; 0 for a column of numbers.
        numbers: a spec of `NUMBERS`.
    """

    dim: int
    categories: tuple[int, ...]
    numbers: str

    @nn.compact
    def __call__(self, rows: jax.Array) -> jax.Array:
        """Map f32[B, F] to f32[B, F, D]."""
        counts = np.asarray(self.categories, np.int64)
        numeric, coded = np.flatnonzero(counts == 0), np.flatnonzero(counts)
        parts = []
        if len(numeric):
            embed = specs.build(NUMBERS, self.numbers, "config.model.numbers")
            told = embed(self, _take(rows, numeric, 1))  # [B, F, T]
            init = _uniform(told.shape[-1] ** -0.5)
            kernel = self.param("kernel", init, (len(numeric), told.shape[-1], self.dim))
            bias = self.param("bias", init, (len(numeric), self.dim))
            parts.append(jnp.einsum("bft,ftd->bfd", told, kernel) + bias[None])
        if len(coded):
            table = self.param("categories", _uniform(self.dim**-0.5), (int(counts.sum()), self.dim))
            of_column = counts[coded]
            codes = jnp.clip(_take(rows, coded, 1), 0.0, (of_column - 1).astype(np.float32)[None]).astype(jnp.int32)
            places = codes + (np.cumsum(of_column) - of_column).astype(np.int32)[None]
            parts.append(_take(table, places, 0))  # [B, F, D]
        if len(parts) == 1:
            return parts[0]
        return _take(jnp.concatenate(parts, axis=1), np.argsort(np.concatenate([numeric, coded])), 1)


def _take(x: jax.Array, places: Any, axis: int) -> jax.Array:
    if isinstance(places, np.ndarray) and len(places) == x.shape[axis] and (np.diff(places) == 1).all():
        return x
    return jnp.take(x, places, axis=axis, mode="clip")


def _uniform(bound: float) -> Any:
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class TabularMixer(nn.Module):
    """Patches of columns, mixer blocks, mean over tokens, linear head.

    It offers the same intermediates as `mixer.MlpMixer`.

    Attributes:
        num_classes: K; 1 for two classes by one logit, or for a number; 0 leaves out the head.
        num_blocks: number of mixer blocks.
        patch_size: P, columns of a patch; where it does not divide them, the last patch is filled with zeros.
        hidden_dim: C, channels of a token.
        tokens_expansion: hidden width of token mixing, in multiples of the tokens.
        channels_expansion: hidden width of channel mixing, in multiples of C.
        column_dim: D; 0 to read columns as they are, codes of categories too.
        categories: for each column the number of its categories, whose codes it holds, 0 for a column of
            numbers; () for numbers alone. Read where ``column_dim`` is set.
        numbers: how numbers are told where ``column_dim`` is set: 'linear', 'periodic(frequencies=16, sigma=0.1)' or
            'piecewise(bins=16, low=0, high=1)'.
        dropout_rate: dropout inside the MLPs.
        stochastic_depth_rate: that of the last block; it grows linearly from 0 at the first.
        dtype: of the computation, as 'bfloat16'; parameters and logits stay float32.
        exact_gelu: by the error function, as the document has it.
        activation: between the dense layers of a block: 'gelu', 'relu', 'silu' or 'tanh' (`layers.activation`).
        epsilon: of the LayerNorms; the document has 1e-5.
        stem: 'patch', or 'inception(one=16, ..., relu=False)' between columns and patches (`convolutions.Inception`).
        conv_blocks: how many convolutional blocks precede each of the first mixer blocks, as (2, 1); () for none.
        conv_block: their kind, 'convnext(kernel_size=7, expansion=4, layer_scale=1e-6)' or
            'inception_next(kernel_size=3, band=11, branch_ratio=0.125, ...)' (`convolutions`).
        token_mixer: 'mlp', or 'lambda_layer(dim_k=16, heads=4, dim_u=1, window=0)' (`lambda_layer`).
        scan: compile one block and loop over it; the parameters of all blocks are stacked (`stacked`).
        remat: compute a block's activations again in the backward pass instead of keeping them.
    """

    num_classes: Classes
    num_blocks: Blocks
    patch_size: Size
    hidden_dim: Size
    tokens_expansion: Ratio = 4
    channels_expansion: Ratio = 0.5
    column_dim: Annotated[int, Within(0, 1 << 16)] = 0
    categories: tuple[int, ...] = ()
    numbers: str = "linear"
    dropout_rate: Share = 0.0
    stochastic_depth_rate: Share = 0.0
    dtype: Any = jnp.float32
    exact_gelu: bool = True
    activation: str = "gelu"
    epsilon: Annotated[float, Within(1e-12, 1)] = 1e-5
    stem: str = "patch"
    conv_blocks: tuple[int, ...] = ()
    conv_block: str = "convnext"
    token_mixer: str = "mlp"
    scan: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, rows: jax.Array, *, train: bool = False) -> jax.Array:
        """Map rows f32[B, F] to logits f32[B, K], or features f32[B, C].

        With ``train=True`` and a rate above 0 it needs ``rngs={"dropout": key}``.

        Raises:
            UserError: the categories are not those of F columns.
        """
        x = self.patches(rows)
        x = nn.Dense(self.hidden_dim, dtype=self.dtype, name="stem")(x)  # [B, N, C]
        grid = x.shape[1:2]
        block = partial(
            MixerBlock,
            hidden_width(self.tokens_expansion, x.shape[1], "tokens_expansion", "tokens"),
            hidden_width(self.channels_expansion, self.hidden_dim, "channels_expansion"),
            self.dropout_rate,
            dtype=self.dtype,
            exact_gelu=self.exact_gelu,
            activation=self.activation,
            epsilon=self.epsilon,
            token_mixer=token_mixer(self.token_mixer, grid, self.dtype),
        )
        rates = [self.stochastic_depth_rate * i / max(self.num_blocks - 1, 1) for i in range(self.num_blocks)]
        before = before_blocks(self.conv_blocks, self.conv_block, grid, rates, self.dtype)
        x = apply_blocks(self, block, rates, x, train=train, before=before)
        x = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="pre_head_layer_norm")(x)
        expose(self, "tokens", x)
        x = jnp.mean(x, axis=1, dtype=jnp.float32)  # [B, N, C] -> [B, C]
        expose(self, "pre_logits", x)
        if self.num_classes:
            x = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")(x)
        return x

    def patches(self, rows: jax.Array) -> jax.Array:
        """Map rows f32[B, F] to patches f32[B, N, P], or f32[B, N, P * D] where columns are vectors."""
        columns = rows.shape[1]
        categories = tuple(self.categories) or (0,) * columns
        if len(categories) != columns or not all(type(n) is int and 0 <= n <= 1 << 24 for n in categories):
            raise UserError(
                f"config.model.categories are {str(categories)[:80]}; give a count for each of the {columns} columns."
            )
        if self.column_dim:
            rows = Columns(self.column_dim, categories, self.numbers, name="columns")(rows)
        x = before_patches(rows.reshape(rows.shape[0], columns, -1), self.stem, self.dtype)
        tokens = -(-columns // self.patch_size)
        x = jnp.pad(x, [(0, 0), (0, tokens * self.patch_size - columns), (0, 0)])
        return x.reshape(x.shape[0], tokens, -1)  # [B, N, P * D]
