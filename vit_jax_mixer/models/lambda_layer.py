"""The lambda layer (Bello 2021, arXiv 2102.08602, section 3) as token mixer."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax_mixer import specs
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.specs import Size, Within

Grid = tuple[int, ...]


class LambdaLayer(nn.Module):
    """Each token applies a linear map, made of all tokens and of their places relative to it.

    B examples, N = M tokens, C channels, h heads, k size of a query, v = C / h size of a value, u intra-depth.
    The parameter names are those of lucidrains/lambda-networks; the start values those of timm's ``LambdaLayer``.
    The paper normalises queries and values over the batch; here it is each token over its channels, so that examples
    stay independent of each other and training keeps no running statistics.

    Attributes:
        dim_k: k.
        heads: h; it must divide C.
        dim_u: u.
        window: 0 for places relative to all tokens, by a table for the grid; r for those in a window of r tokens along
            each axis, by a convolution.
        grid: of the tokens, (N,) or (rows, columns).
        dtype: of the computation; parameters stay float32.
        norm: makes the two normalisations; the paper's is ``nn.BatchNorm``.
    """

    dim_k: int
    heads: int
    dim_u: int
    window: int
    grid: Grid
    dtype: Any = jnp.float32
    norm: Callable[..., nn.Module] = partial(nn.LayerNorm, epsilon=1e-5)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map f32[B, N, C] to f32[B, N, C].

        Raises:
            UserError: the heads do not divide the channels.
        """
        tokens, channels = x.shape[1:]
        if channels % self.heads:
            raise UserError(f"lambda_layer: {self.heads} heads do not divide {channels} channels; choose others.")
        sizes = k, u, v = self.dim_k, self.dim_u, channels // self.heads
        dense = partial(nn.Dense, use_bias=False, kernel_init=nn.initializers.normal(channels**-0.5), dtype=self.dtype)
        norm = partial(self.norm, dtype=self.dtype)

        queries = norm(name="norm_q")(dense(self.heads * k, name="to_q")(x)).reshape(-1, tokens, self.heads, k)
        keys = nn.softmax(dense(u * k, name="to_k")(x).reshape(-1, tokens, u, k), axis=1)
        values = norm(name="norm_v")(dense(u * v, name="to_v")(x)).reshape(-1, tokens, u, v)

        of_content = jnp.einsum("bmuk,bmuv->bkv", keys, values)
        y = jnp.einsum("bnhk,bkv->bnhv", queries, of_content)
        of_places = self._of_window(values) if self.window else self._of_all(values, sizes)
        y = y + jnp.einsum("bnhk,bnkv->bnhv", queries, of_places)
        return y.reshape(-1, tokens, channels)

    def _of_all(self, values: jax.Array, sizes: tuple[int, int, int]) -> jax.Array:
        """Map values f32[B, M, u, v] to f32[B, N, k, v] by a matrix for each relative place."""
        k, u, _ = sizes
        span = tuple(2 * n - 1 for n in self.grid)
        table = self.param("rel_pos_emb", nn.initializers.normal(0.02), (*span, k, u))
        places = np.stack(np.unravel_index(np.arange(np.prod(self.grid)), self.grid), axis=-1)  # [N, axes]
        relative = places[None] - places[:, None] + np.asarray(self.grid) - 1  # [N, M, axes]
        flat = np.ravel_multi_index(tuple(np.moveaxis(relative, -1, 0)), span)  # [N, M]
        embeddings = jnp.take(table.reshape(-1, k, u), flat, axis=0, mode="clip").astype(self.dtype)
        return jnp.einsum("nmku,bmuv->bnkv", embeddings, values)

    def _of_window(self, values: jax.Array) -> jax.Array:
        """Map values f32[B, M, u, v] to f32[B, N, k, v] by a convolution over the grid, the same for all of v."""
        tokens, u, v = values.shape[1:]
        x = values.transpose(0, 3, 1, 2).reshape(-1, v, *self.grid, u)
        kernel = (1, *[self.window] * len(self.grid))
        init = nn.initializers.normal(self.dim_k**-0.5)
        x = nn.Conv(self.dim_k, kernel, kernel_init=init, dtype=self.dtype, name="pos_conv")(x)
        return x.reshape(-1, v, tokens, self.dim_k).transpose(0, 2, 3, 1)


def lambda_layer(
    dim_k: Annotated[int, Within(1, 1024)] = 16,
    heads: Size = 4,
    dim_u: Annotated[int, Within(1, 64)] = 1,
    window: Annotated[int, Within(0, 255)] = 0,
) -> Callable[..., LambdaLayer]:
    """A `LambdaLayer` in the place of the MLP across tokens."""
    return partial(LambdaLayer, dim_k, heads, dim_u, window)


TOKEN_MIXERS: Mapping[str, Callable[..., Callable[..., nn.Module] | None]] = {
    "mlp": lambda: None,
    "lambda_layer": lambda_layer,
}


def token_mixer(spec: str, grid: Grid, dtype: Any) -> Callable[..., nn.Module] | None:
    """Return what makes the token mixing of a block by a spec of `TOKEN_MIXERS`; None for the block's own MLP."""
    made = specs.build(TOKEN_MIXERS, spec, "config.model.token_mixer")
    return made and partial(made, grid=grid, dtype=dtype)
