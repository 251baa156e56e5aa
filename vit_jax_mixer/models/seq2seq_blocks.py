"""One layer of `seq2seq.Seq2Seq`, and its parts.

B sentences, S positions of the source, T of the target, L most positions of either, C channels, H heads.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax_mixer.models.resmlp import Affine
from vit_jax_mixer.models.sequence_mixing import KERNEL_INIT, Attention, LinearMixing, SelfAttention


class Mlp(nn.Module):
    """Two layers across channels, with exact GELU between them."""

    mlp_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map f32[..., C] to f32[..., C]."""
        dense = partial(nn.Dense, kernel_init=KERNEL_INIT, dtype=self.dtype)
        y = nn.gelu(dense(self.mlp_dim, name="Dense_0")(x), approximate=False)
        return dense(x.shape[-1], name="Dense_1")(y)


class Norm(nn.Module):
    """Aff, or the Transformer's LayerNorm; padding becomes zero."""

    layer_norm: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, there: jax.Array | None = None) -> jax.Array:
        """Map x f32[..., C] to f32[..., C], zero where not ``there``, bool[...]."""
        if self.layer_norm:
            x = nn.LayerNorm(1e-5, dtype=self.dtype, name="LayerNorm_0")(x)
        else:
            x = Affine(dtype=self.dtype, name="Affine_0")(x)
        return x if there is None else jnp.where(there[..., None], x, jnp.zeros_like(x))


class Branch(nn.Module):
    """``x + LayerScale(y)``, with dropout of y; a Transformer (``layerscale_init`` None) has no layer scale."""

    layerscale_init: float | None
    dropout_rate: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array, train: bool = False) -> jax.Array:
        """Map f32[..., C] twice to f32[..., C]."""
        if self.layerscale_init is not None:
            y = Affine(self.layerscale_init, use_bias=False, dtype=self.dtype, name="LayerScale_0")(y)
        return x + nn.Dropout(self.dropout_rate, deterministic=not train, name="Dropout_0")(y)


class Block(nn.Module):
    """One layer of the encoder, or of the decoder, which attends to the source too.

    Attributes:
        decoder: which of the two.
        self_mixing: 'linear' or 'attention'.
        max_length: L.
        channels: C.
        mlp_dim: hidden width of the MLP.
        num_heads: of attention.
        layerscale_init: start of the layer scales.
        dropout_rate: of each sublayer's output.
        dtype: of the computation; parameters stay float32.
    """

    decoder: bool
    self_mixing: str
    max_length: int
    channels: int
    mlp_dim: int
    num_heads: int
    layerscale_init: float
    dropout_rate: float = 0.0
    dtype: Any = jnp.float32

    def setup(self) -> None:
        attends = self.self_mixing == "attention"
        norm = partial(Norm, attends, self.dtype)
        branch = partial(Branch, None if attends else self.layerscale_init, self.dropout_rate, self.dtype)
        if attends:
            self.mixing = SelfAttention(self.num_heads, self.channels, self.dtype, causal=self.decoder)
        else:
            self.mixing = LinearMixing(self.max_length, causal=self.decoder, dtype=self.dtype)
        self.mixing_norm, self.mixing_branch = norm(), branch()
        if self.decoder:
            self.source = Attention(self.num_heads, self.channels, self.dtype)
            self.source_norm, self.source_branch = norm(), branch()
        self.mlp = Mlp(self.mlp_dim, self.dtype)
        self.mlp_norm, self.mlp_branch = norm(), branch()

    def __call__(
        self,
        x: jax.Array,
        there: jax.Array,
        encoded: jax.Array | None = None,
        encoded_there: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        """Map x f32[B, T, C] to f32[B, T, C]; ``there``, bool[B, T], is false for padding.

        A decoder reads the source too: f32[B, S, C], bool[B, S].
        """
        x = self.mixing_branch(x, self.mixing(self.mixing_norm(x, there), there), train)
        if encoded is not None and encoded_there is not None:
            read = self.source.attend(
                self.source_norm(x, there), self.source.keys_values(encoded), encoded_there[:, None]
            )
            x = self.source_branch(x, read, train)
        return self.mlp_branch(x, self.mlp(self.mlp_norm(x, there)), train)

    def keys_values(self, encoded: jax.Array) -> Any:
        """Return what `step` reads of the source, f32[B, S, C]."""
        return self.source.keys_values(encoded)

    def state(self, rows: int, length: int) -> Any:
        """Return what `step` knows before the first of ``length`` positions."""
        return self.mixing.state(rows, length, self.channels)

    def step(
        self, x: jax.Array, state: Any, position: jax.Array, keys_values: Any, encoded_there: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Map x f32[R, C] of a position, i32[], to (f32[R, C], the new state); R is B or a multiple of it."""
        y, state = self.mixing.step(self.mixing_norm(x), state, position)
        x = self.mixing_branch(x, y)
        # Beams of one sentence read the same source: they are to it what positions are.
        queries = self.source_norm(x).reshape(encoded_there.shape[0], -1, self.channels)  # [B, R / B, C]
        read = self.source.attend(queries, keys_values, encoded_there[:, None])
        x = self.source_branch(x, read.reshape(x.shape))
        return self.mlp_branch(x, self.mlp(self.mlp_norm(x))), state
