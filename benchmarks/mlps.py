"""What a Mixer for rows is compared with: a plain MLP, and TabM, on the same columns; named as benchmarks.mlps:Mlp.

B rows, F columns, D numbers that a column is told by, W hidden width, M members.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax_mixer.models.tabular import Columns


class Mlp(nn.Module):
    """Dense layers with ReLU and dropout behind all columns, one after the other.

    Attributes:
        num_classes: 1, for two classes by one logit.
        width: W.
        layers: how many are hidden.
        column_dim: D, of `models.tabular.Columns`.
        categories: as there.
        numbers: as there.
        dropout_rate: after each hidden layer.
    """

    num_classes: int
    width: int = 256
    layers: int = 2
    column_dim: int = 16
    categories: tuple[int, ...] = ()
    numbers: str = "linear"
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, rows: jax.Array, *, train: bool = False) -> jax.Array:
        """Map f32[B, F] to logits f32[B, 1]."""
        x = Columns(self.column_dim, tuple(self.categories), self.numbers, name="columns")(rows)
        x = self.hidden(x.reshape(len(rows), -1), train)
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")(x)

    def hidden(self, x: jax.Array, train: bool) -> jax.Array:
        """Map f32[..., F * D] to f32[..., W]."""
        for i in range(self.layers):
            x = nn.relu(nn.Dense(self.width, name=f"Dense_{i}")(x))
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return x


class TabM(Mlp):
    """M such MLPs in one (Gorishniy et al. 2025, arXiv 2410.24210, section 3: TabM-mini).

    They share all but a factor of each input, at first a random sign, and the head. Each has its own loss in training;
    their probabilities' mean is what it tells.

    Attributes:
        members: M.
    """

    members: int = 8

    @nn.compact
    def __call__(self, rows: jax.Array, *, train: bool = False) -> jax.Array:
        """Map f32[B, F] to logits f32[B, M] in training, f32[B, 1] else."""
        x = Columns(self.column_dim, tuple(self.categories), self.numbers, name="columns")(rows)
        x = x.reshape(len(rows), 1, -1)
        signs = lambda key, shape: jax.random.rademacher(key, shape, jnp.float32)
        x = self.hidden(x * self.param("factors", signs, (self.members, x.shape[-1])), train)  # [B, M, W]
        kernel = self.param("head", nn.initializers.zeros, (self.members, self.width))
        logits = jnp.einsum("bmw,mw->bm", x, kernel) + self.param("head_bias", nn.initializers.zeros, (self.members,))
        if train:
            return logits
        p = jnp.mean(nn.sigmoid(logits), axis=1, keepdims=True)
        return jnp.log(jnp.maximum(p, 1e-30)) - jnp.log(jnp.maximum(1 - p, 1e-7))
