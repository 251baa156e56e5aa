"""Masked pretraining, without labels: part of an image's patches is hidden, and the model tells what was in them.

After the masked autoencoder (He et al. 2022, arXiv 2111.06377, and facebookresearch/mae), whose patches, normalised
targets and loss these are. There an encoder reads the patches that are seen alone, which saves most of its work. A
Mixer, ResMLP or gMLP cannot do that: it mixes tokens by a weight for each place, so there must be one token for
each place, always as many. Hence one learned token stands where a patch is hidden, as in SimMIM (Xie et al. 2022,
arXiv 2111.09886), the model computes all N of them, and a light decoder suffices: a linear layer, as there, or a
few blocks. What is published is the model without token and decoder; fine-tuned, it sees whole images.

B images, H x W pixels, N patches of P numbers (row, column, channel), C channels of a token.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vit_jax_mixer import drawing, models, probes, specs
from vit_jax_mixer.config import Config
from vit_jax_mixer.data.pipeline import Dataset
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import stacked
from vit_jax_mixer.models.mixer import MixerBlock
from vit_jax_mixer.predictors import class_maps
from vit_jax_mixer.predictors.images import Images
from vit_jax_mixer.specs import Size, Within
from vit_jax_mixer.tasks import masking
from vit_jax_mixer.tasks.base import Aux, Outputs, Task, TrainState, Tree
from vit_jax_mixer.tasks.images import ImageData, describe, image_data, sheet

DRAWN = "images of the pictures"  # a name of `Task.eval_data`; no metric begins with it
_ROWS = 8  # images of a picture


class Blocks(nn.Module):
    """A decoder of Mixer blocks: f32[B, N, C] to f32[B, N, P]; `MixerBlock` says what the sizes are."""

    values: int
    count: int
    hidden_dim: int
    tokens_mlp_dim: int
    channels_mlp_dim: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(self.hidden_dim, name="stem")(x)
        for i in range(self.count):
            x = MixerBlock(self.tokens_mlp_dim, self.channels_mlp_dim, name=f"MixerBlock_{i}")(x)
        return nn.Dense(self.values, name="head")(nn.LayerNorm(1e-6, name="pre_head_layer_norm")(x))


def blocks(
    values: int,
    count: Annotated[int, Within(1, 100)] = 1,
    hidden_dim: Size = 128,
    tokens_mlp_dim: Size = 64,
    channels_mlp_dim: Size = 512,
) -> nn.Module:
    """Return a decoder of a few Mixer blocks."""
    return Blocks(values, count, hidden_dim, tokens_mlp_dim, channels_mlp_dim)


def linear(values: int) -> nn.Module:
    """Return a decoder that is one linear layer."""
    return nn.Dense(values)


DECODERS: Mapping[str, Callable[..., nn.Module]] = {"linear": linear, "blocks": blocks}


def create(run: Config, mask_ratio: Annotated[float, Within(0, 1)], normalise: bool, decoder: str) -> "Mae":
    """Build the task from ``config.task``, ``model`` and ``data``.

    Args:
        run: the config.
        mask_ratio: share of patches that are hidden; those that are seen are rounded down.
        normalise: learn patches that have mean 0 and deviation 1 each, not pixels.
        decoder: a spec of `DECODERS`, as 'linear' or 'blocks(count=2)'.
    """
    data = image_data(run, labels=False)
    model = specs.call(models.create, run.model, "config.model", num_classes=0)
    height, width = class_maps.grid(_shapes(model, data.shape), data.shape)
    tokens = height * width
    if not 0 < (masked := tokens - int(tokens * (1 - mask_ratio))) < tokens:
        raise UserError(f"config.task.mask_ratio {mask_ratio} hides {masked} of {tokens} patches; hide some, not all.")
    values = data.shape[0] // height * (data.shape[1] // width) * data.shape[2]
    decoding = specs.build(DECODERS, decoder, "config.task.decoder", values=values)
    task = Mae(model, decoding, data, mask_ratio, normalise, describe(run, data, num_classes=0), (height, width))
    task.published = "ema/backbone" if run.ema_decay else "params/backbone"
    task.check()
    return task


def _shapes(model: nn.Module, shape: tuple[int, ...]) -> Tree:
    """Return the shapes of a model's parameters, which must have a layer that makes tokens of patches."""
    params = jax.eval_shape(lambda key: stacked.init(model, key, jnp.zeros((1, *shape))), jax.random.key(0))
    if "stem" not in params:
        raise UserError(f"config.model is a {type(model).__name__}, whose tokens cannot be masked; choose another.")
    return params


def patches(images: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Map f32[B, H, W, c] to f32[B, N, P], patches row by row, in each (row, column, channel)."""
    count, height, width, channels = images.shape
    rows, columns = grid
    x = images.reshape(count, rows, height // rows, columns, width // columns, channels)
    return jnp.swapaxes(x, 2, 3).reshape(count, rows * columns, -1)


def whole(x: jax.Array, grid: tuple[int, int], shape: tuple[int, int, int]) -> jax.Array:
    """Map f32[B, N, P] to f32[B, H, W, c]: the inverse of `patches`."""
    height, width, channels = shape
    rows, columns = grid
    x = x.reshape(len(x), rows, columns, height // rows, width // columns, channels)
    return jnp.swapaxes(x, 2, 3).reshape(len(x), *shape)


def scales(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the mean and deviation f32[B, N, 1] that patches are normalised by: variance with n - 1, epsilon 1e-6."""
    return x.mean(-1, keepdims=True), jnp.sqrt(x.var(-1, keepdims=True, ddof=1) + 1e-6)


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """Marks the examples of a transform as those that pictures are made of; worker processes get a copy."""

    transform: Callable[[Any, np.random.Generator], dict[str, Any]]

    def __call__(self, example: Any, rng: np.random.Generator) -> dict[str, Any]:
        return {**self.transform(example, rng), "drawn": np.ones((), np.bool_)}


class Mae(Task):
    """Images to what is hidden of them; ``params`` are the backbone, the token and the decoder."""

    def __init__(
        self,
        model: Any,
        decoder: nn.Module,
        data: ImageData,
        mask_ratio: float,
        normalise: bool,
        about: Images,
        grid: tuple[int, int],
    ) -> None:
        self.model = model
        self.decoder = decoder
        self.data = data
        self.grid = grid
        self.train_data = data.train
        self._mask_ratio = mask_ratio
        self._normalise = normalise
        self._about = about
        self.eval_data: Mapping[str, Dataset] = {}
        if data.eval is not None:
            few = dataclasses.replace(
                data.eval, source=probes.sample(data.eval.source, _ROWS), transform=_Drawn(data.eval.transform)
            )
            self.eval_data = {data.eval_split: data.eval, DRAWN: few}

    def check(self) -> None:
        """Raise a `UserError` if the model cannot be masked, before anything is computed."""
        images = jnp.zeros((1, *self.data.shape))
        told = lambda key: self.told(self.init(key)[0], images, jnp.zeros((1, self.grid[0] * self.grid[1])))
        jax.eval_shape(told, jax.random.key(0))

    def about(self) -> Images:
        return self._about

    def forward_flop(self) -> float:
        """Return the FLOP of the backbone; the decoder's are few beside them."""
        return models.forward_flop(self.model, self.data.shape)

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        of_backbone, of_token, of_decoder = jax.random.split(key, 3)
        backbone = stacked.init(self.model, of_backbone, jnp.zeros((1, *self.data.shape)))
        channels = backbone["stem"]["kernel"].shape[-1]
        tokens = jnp.zeros((1, self.grid[0] * self.grid[1], channels))
        return {
            "backbone": backbone,
            "mask_token": 0.02 * jax.random.normal(of_token, (channels,)),
            "decoder": self.decoder.init(of_decoder, tokens)["params"],
        }, ()

    def told(self, params: Tree, images: jax.Array, mask: jax.Array, **how: Any) -> jax.Array:
        """Return f32[B, N, P]: what is told of the patches of f32[B, H, W, c], some hidden by ``mask``, f32[B, N].

        ``how`` are more arguments of the backbone, as ``train`` and ``rngs``.
        """
        tokens = masking.tokens(self.model, params["backbone"], images, mask, params["mask_token"], **how)
        found: Any = self.decoder.apply({"params": params["decoder"]}, tokens.astype(jnp.float32))
        return found

    def target(self, images: jax.Array) -> jax.Array:
        """Return f32[B, N, P]: what is to be told of images f32[B, H, W, c]."""
        x = patches(images, self.grid)
        mean, deviation = scales(x)
        return (x - mean) / deviation if self._normalise else x

    def loss(
        self, params: Tree, state: TrainState, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """Return the mean squared error over hidden patches; each image has as many, so no part weighs more."""
        of_ops, of_mask, of_dropout = jax.random.split(key, 3)
        images, _ = self.data.train_ops.on_device(batch["image"], None, of_ops)
        mask = masking.random_mask(of_mask, len(images), self.grid[0] * self.grid[1], self._mask_ratio)
        told = self.told(params, images, mask, train=True, rngs={"dropout": of_dropout})
        return masking.mean_loss(told, self.target(images), mask), Aux({})

    def eval_step(self, state: TrainState, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Return each image's loss; of those to be drawn u8[B, H, W, c], whole, with its mask, and as it is told."""
        images, _ = self.data.eval_ops.on_device(batch["image"])
        mask = self._own_mask(batch["image"])
        told = self.told(state.params, images, mask, train=False)
        if "drawn" not in batch:
            return {"losses": (masking.errors(told, self.target(images)) * mask).sum(1) / mask.sum(1)}
        mean, deviation = scales(patches(images, self.grid))
        pixels = whole(told * deviation + mean if self._normalise else told, self.grid, self.data.shape)
        hidden = whole(jnp.broadcast_to(mask[..., None], told.shape), self.grid, self.data.shape) > 0
        return {
            "whole": batch["image"],
            "masked": jnp.where(hidden, jnp.uint8(128), batch["image"]),
            "told": jnp.where(hidden, self._bytes(pixels), batch["image"]),
        }

    def _own_mask(self, images: jax.Array) -> jax.Array:
        """Return f32[B, N], which each image u8[B, H, W, c] has for itself: the same in all evaluations and batches."""
        tokens = self.grid[0] * self.grid[1]
        seeds = images.astype(jnp.uint32).sum((1, 2, 3))
        draw = lambda seed: masking.random_mask(
            jax.random.fold_in(jax.random.key(0), seed), 1, tokens, self._mask_ratio
        )
        return jax.vmap(draw)(seeds)[:, 0]

    def _bytes(self, images: jax.Array) -> jax.Array:
        """Return u8[B, H, W, c] of images as the model reads them, whose scale is linear in the bytes."""
        ends = jnp.broadcast_to(jnp.array([0, 255], jnp.uint8)[:, None, None, None], (2, *self.data.shape))
        (low, high), _ = self.data.eval_ops.on_device(ends)
        shares = (images - low[None]) / (high - low)[None]
        return jnp.clip(jnp.round(255 * shares), 0, 255).astype(jnp.uint8)

    def evaluate(self, outputs: Callable[[str], Iterator[Outputs]]) -> dict[str, float]:
        """Return SPLIT/loss, the mean over the split."""
        losses = np.concatenate([batch["losses"] for batch in outputs(self.data.eval_split)])
        return {f"{self.data.eval_split}/loss": float(losses.mean(dtype=np.float64))}

    def sheet(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return a picture of the first images."""
        return sheet(self.data, batch)

    def pictures(self, outputs: Callable[[str], Iterator[Outputs]]) -> dict[str, Image.Image]:
        """Return one of a few images: whole, with what is hidden in grey, and with that as it is told."""
        batches = list(outputs(DRAWN))
        columns = [np.concatenate([batch[name] for batch in batches]) for name in ("whole", "masked", "told")]
        return {"reconstructions": draw(columns)}


def draw(columns: list[np.ndarray]) -> Image.Image:
    """Return a picture of n rows, with an image of each u8[n, h, w, c] side by side; small ones are enlarged."""
    height, width, channels = columns[0].shape[1:]
    times = -(-96 // max(height, width))
    enlarged = [one.repeat(times, 1).repeat(times, 2).repeat(3 // channels, 3) for one in columns]
    framed = [np.pad(one, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=255) for one in enlarged]
    body = Image.fromarray(np.concatenate([np.concatenate(list(row), 1) for row in zip(*framed, strict=True)]))
    title = drawing.line("original, masked, reconstructed")
    sheet = Image.new("RGB", (max(body.width, title.width), body.height + title.height), "white")
    sheet.paste(title)
    sheet.paste(body, (0, title.height))
    return sheet
