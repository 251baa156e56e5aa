"""How the positions of a sequence are mixed: by one linear layer, or by attention.

B rows, S and T positions, L most positions, C channels, H heads. `LinearMixing` and `SelfAttention` are called with
a whole sequence, or do the same one position at a time by `state` and `step`, for decoding.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

KERNEL_INIT = nn.initializers.xavier_uniform()  # that of fairseq's Transformer
State = Any


class LinearMixing(nn.Module):
    """One linear layer across positions, which all channels share (ResMLP, arXiv 2105.03404, section 3.6).

    ``y[t] = sum_s kernel[s, t] x[s] + bias[t]``. Shorter sequences read the leading part of it. Rows of x that are
    zero add nothing: so padding is left out.

    Attributes:
        max_length: L.
        causal: t reads no later s. The paper writes that as a lower triangular matrix; half of the kernel is unread.
        dtype: of the computation; parameters stay float32.
    """

    max_length: int
    causal: bool = False
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.kernel = self.param("kernel", KERNEL_INIT, (self.max_length, self.max_length))
        self.bias = self.param("bias", nn.initializers.zeros, (self.max_length,))

    def __call__(self, x: jax.Array, there: jax.Array | None = None) -> jax.Array:
        """Map f32[B, S, C] to f32[B, S, C]; what is not ``there``, bool[B, S], is zero already."""
        del there
        length = x.shape[1]
        kernel = self.kernel[:length, :length]
        kernel = jnp.triu(kernel) if self.causal else kernel
        y = jnp.einsum("bsc,st->btc", x.astype(self.dtype), kernel.astype(self.dtype))
        return y + self.bias[:length].astype(self.dtype)[None, :, None]

    def state(self, rows: int, length: int, channels: int) -> State:
        """Return the state before the first of ``length`` positions: all inputs so far, f32[B, length, C]."""
        return jnp.zeros((rows, length, channels), self.dtype)

    def step(self, x: jax.Array, seen: State, position: jax.Array) -> tuple[jax.Array, State]:
        """Map the input f32[B, C] of a position, i32[], to (its output f32[B, C], the new state)."""
        length = seen.shape[1]
        seen = jax.lax.dynamic_update_slice_in_dim(seen, x.astype(self.dtype)[:, None], position, 1)
        column = jax.lax.dynamic_slice_in_dim(self.kernel[:length], position, 1, axis=1)[:, 0]  # [s]
        column = jnp.where(jnp.arange(length) <= position, column, 0).astype(self.dtype)
        bias = jax.lax.dynamic_slice_in_dim(self.bias, position, 1).astype(self.dtype)
        return jnp.einsum("bsc,s->bc", seen, column) + bias[None], seen


class Attention(nn.Module):
    """Scaled dot-product attention with several heads (Vaswani et al. 2017, arXiv 1706.03762, section 3.2).

    Its weights are computed in float32 whatever ``dtype``.

    Attributes:
        num_heads: H, which divides C.
        channels: C.
        dtype: of the computation; parameters stay float32.
    """

    num_heads: int
    channels: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        dense = lambda name: nn.Dense(self.channels, kernel_init=KERNEL_INIT, dtype=self.dtype, name=name)
        self.query, self.key, self.value, self.out = map(dense, ("query", "key", "value", "out"))

    def keys_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return what can be attended to in f32[B, S, C]: keys and values, f32[B, S, H, C / H] each."""
        return self._heads(self.key(x)), self._heads(self.value(x))

    def attend(self, x: jax.Array, keys_values: tuple[jax.Array, jax.Array], allowed: jax.Array) -> jax.Array:
        """Map f32[B, T, C] to f32[B, T, C]; t reads s where ``allowed``, bool[B or 1, T or 1, S]."""
        keys, values = keys_values
        queries = self._heads(self.query(x)) * keys.shape[-1] ** -0.5
        scores = jnp.einsum("bthd,bshd->bhts", queries, keys, preferred_element_type=jnp.float32)
        # Finite, so that nothing is 0 / 0; beside any score that is allowed its exponential is exactly 0.
        weights = jax.nn.softmax(jnp.where(allowed[:, None], scores, -1e30))
        y = jnp.einsum("bhts,bshd->bthd", weights.astype(self.dtype), values)
        return self.out(y.reshape(x.shape))

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.num_heads, -1)  # [B, S, C] -> [B, S, H, C / H]


class SelfAttention(Attention):
    """Attention of a sequence to itself, in the place of `LinearMixing`.

    Attributes:
        causal: t reads no later s.
    """

    causal: bool = False

    def __call__(self, x: jax.Array, there: jax.Array) -> jax.Array:
        """Map f32[B, S, C] to f32[B, S, C]; what is not ``there``, bool[B, S], is not read."""
        allowed = there[:, None, :]
        if self.causal:
            length = x.shape[1]
            allowed = allowed & jnp.tri(length, dtype=bool)[None]
        return self.attend(x, self.keys_values(x), allowed)

    def state(self, rows: int, length: int, channels: int) -> State:
        """Return the state before the first of ``length`` positions: keys and values, f32[B, length, H, C / H]."""
        empty = jnp.zeros((rows, length, self.num_heads, channels // self.num_heads), self.dtype)
        return empty, empty

    def step(self, x: jax.Array, seen: State, position: jax.Array) -> tuple[jax.Array, State]:
        """Map the input f32[B, C] of a position, i32[], to (its output f32[B, C], the new state)."""
        new = self.keys_values(x[:, None])
        put = lambda old, one: jax.lax.dynamic_update_slice_in_dim(old, one, position, 1)
        seen = jax.tree.map(put, seen, new)
        allowed = jnp.arange(seen[0].shape[1]) <= position
        return self.attend(x[:, None], seen, allowed[None, None])[:, 0], seen
