"""Sequence to sequence with ResMLP layers (Touvron et al. 2021, arXiv 2105.03404, section 3.6), and a Transformer.

B sentences, S positions of the source, T of the target, L most positions of either, C channels, V tokens of the
vocabulary. An encoder and a decoder as in Vaswani et al. 2017 (arXiv 1706.03762), but that a linear layer across
positions stands for self-attention; attention to the source stays. Each sublayer is
``x + LayerScale(sublayer(Aff(x)))``, and a last Aff ends each side. Padding is set to zero after each Aff, whose
bias would make it speak. The paper does not say, and here is: 8 heads, sinusoidal positions (unless others are asked
for), a bias of the linear layer (as for images), kernels that start as fairseq's.

``self_mixing="attention"`` is the Transformer of the same size to compare with: self-attention for the linear layer,
LayerNorm for Aff and no layer scale. Norms come before sublayers, which needs no delicate warm-up, and GELU stays.
"""

import math
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models.layers import Ratio
from vit_jax_mixer.models.seq2seq_blocks import Block, Norm
from vit_jax_mixer.special_tokens import PAD
from vit_jax_mixer.specs import Share, Size, Within

MIXINGS, POSITIONS = ("linear", "attention"), ("sinusoidal", "learned", "none")
Layers = Annotated[int, Within(1, 1000)]
Cache = dict[str, Any]


class Seq2Seq(nn.Module):
    """An encoder and a decoder of text, whose tokens share one table.

    Tokens are i32; 0 is padding, and comes last. A decoder's input at position t is the target before t:
    ``[BOS, target[0], ..., target[T - 2]]``. Decoding goes by `encode`, `start` and then `step` for each position,
    all by ``model.apply(variables, ..., method="step")``; `search` does it.

    Attributes:
        vocab_size: V.
        max_length: L, positions of the source and of the target, EOS counted.
        num_encoder_layers: of the encoder.
        num_decoder_layers: of the decoder.
        hidden_dim: C.
        mlp_dim: hidden width of the MLPs.
        num_heads: of attention, to the source and, if asked for, to itself; it divides C.
        dropout_rate: of embeddings and of each sublayer's output.
        self_mixing: 'linear', or 'attention' for a Transformer.
        layerscale_init: start of the layer scales.
        positions: 'sinusoidal', 'learned' or 'none', what is added to embeddings.
        dtype: of the computation, as 'bfloat16'; parameters and logits stay float32.
    """

    vocab_size: Size
    max_length: Annotated[int, Within(1, 1 << 14)]
    num_encoder_layers: Layers
    num_decoder_layers: Layers
    hidden_dim: Size
    mlp_dim: Size
    num_heads: Annotated[int, Within(1, 1024)] = 8
    dropout_rate: Share = 0.0
    self_mixing: str = "linear"
    layerscale_init: Ratio = 0.2
    positions: str = "sinusoidal"
    dtype: Any = jnp.float32

    def setup(self) -> None:
        for field, choices in (("self_mixing", MIXINGS), ("positions", POSITIONS)):
            if getattr(self, field) not in choices:
                raise UserError(
                    f"config.model.{field} is {getattr(self, field)!r:.80}; choose from {', '.join(choices)}."
                )
        if self.hidden_dim % self.num_heads:
            raise UserError(
                f"config.model.num_heads is {self.num_heads}, which does not divide hidden_dim {self.hidden_dim}."
            )
        init = nn.initializers.normal(self.hidden_dim**-0.5)
        self.table = self.param("embedding", init, (self.vocab_size, self.hidden_dim))
        if self.positions == "learned":
            self.places = self.param("positions", init, (self.max_length, self.hidden_dim))
        else:
            factor = float(self.positions == "sinusoidal")
            self.places = factor * sinusoids(self.max_length, self.hidden_dim)
        block = lambda i, decoder: Block(
            decoder,
            self.self_mixing,
            self.max_length,
            self.hidden_dim,
            self.mlp_dim,
            self.num_heads,
            self.layerscale_init,
            self.dropout_rate,
            self.dtype,
            name=f"{'Decoder' if decoder else 'Encoder'}Block_{i}",
        )
        self.encoder = [block(i, False) for i in range(self.num_encoder_layers)]
        self.decoder = [block(i, True) for i in range(self.num_decoder_layers)]
        self.encoder_norm = Norm(self.self_mixing == "attention", self.dtype)
        self.decoder_norm = Norm(self.self_mixing == "attention", self.dtype)
        self.dropout = nn.Dropout(self.dropout_rate)

    def __call__(self, inputs: jax.Array, decoder_inputs: jax.Array, train: bool = False) -> jax.Array:
        """Map i32[B, S] and i32[B, T] to logits f32[B, T, V] of the token that follows each of the latter.

        With ``train=True`` and a rate above 0 it needs ``rngs={"dropout": key}``.

        Raises:
            UserError: there are more positions than ``max_length``.
        """
        return self.decode(self.encode(inputs, train), inputs != PAD, decoder_inputs, train)

    def encode(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Map the source i32[B, S] to f32[B, S, C], zero for padding."""
        there = inputs != PAD
        x = self._embed(inputs, train)
        for block in self.encoder:
            x = block(x, there, train=train)
        return self.encoder_norm(x, there)

    def decode(
        self, encoded: jax.Array, inputs_mask: jax.Array, decoder_inputs: jax.Array, train: bool = False
    ) -> jax.Array:
        """Map f32[B, S, C], bool[B, S] (false for padding) and i32[B, T] to logits f32[B, T, V]."""
        there = decoder_inputs != PAD
        x = self._embed(decoder_inputs, train)
        for block in self.decoder:
            x = block(x, there, encoded, inputs_mask, train=train)
        return self._logits(self.decoder_norm(x, there))

    def start(self, encoded: jax.Array, inputs: jax.Array, beams: int = 1, length: int | None = None) -> Cache:
        """Return what decoding knows before the first position.

        Args:
            encoded: f32[B, S, C].
            inputs: the source, i32[B, S].
            beams: rows that are decoded for a sentence; they lie side by side.
            length: most positions; L if None.

        Returns:
            ``state``, with a row for each of the B * beams that are decoded; and ``source``, with one a sentence.

        Raises:
            UserError: the length is above L.
        """
        length = length or self.max_length
        self._check(length)
        state = [block.state(inputs.shape[0] * beams, length) for block in self.decoder]
        keys_values = [block.keys_values(encoded) for block in self.decoder]
        return {"state": state, "source": {"keys_values": keys_values, "there": inputs != PAD}}

    def step(self, cache: Cache, tokens: jax.Array, position: jax.Array) -> tuple[jax.Array, Cache]:
        """Map the tokens i32[R] of a position, i32[] from 0, to (logits f32[R, V] of the next, the new cache)."""
        place = jax.lax.dynamic_slice_in_dim(jnp.asarray(self.places), position, 1)
        x = self.table[tokens] * math.sqrt(self.hidden_dim) + place
        x, source, states = x.astype(self.dtype), cache["source"], []
        for block, state, keys_values in zip(self.decoder, cache["state"], source["keys_values"], strict=True):
            x, state = block.step(x, state, position, keys_values, source["there"])
            states.append(state)
        return self._logits(self.decoder_norm(x)), {"state": states, "source": source}

    def _embed(self, tokens: jax.Array, train: bool) -> jax.Array:
        length = tokens.shape[1]
        self._check(length)
        x = self.table[tokens] * math.sqrt(self.hidden_dim) + self.places[:length][None]
        return self.dropout(x.astype(self.dtype), deterministic=not train)

    def _check(self, length: int) -> None:
        if length > self.max_length:
            raise UserError(
                f"a sentence has {length} tokens, and config.model.max_length is {self.max_length}; "
                "shorten it, or train with a larger one."
            )

    def _logits(self, x: jax.Array) -> jax.Array:
        table = self.table.astype(self.dtype)
        return jnp.einsum("...c,vc->...v", x, table, preferred_element_type=jnp.float32)


def sinusoids(length: int, channels: int) -> np.ndarray:
    """Return f32[length, channels]: half sines, half cosines, of wavelengths from 2 pi to 20000 pi, as fairseq's."""
    half = channels // 2
    turns = np.exp(-math.log(10000) * np.arange(half) / max(half - 1, 1))
    angles = np.arange(length)[:, None] * turns[None]
    table = np.concatenate([np.sin(angles), np.cos(angles), np.zeros((length, channels % 2))], axis=1)
    return table.astype(np.float32)
