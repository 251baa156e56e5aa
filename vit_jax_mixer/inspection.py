"""What a model has learnt, as arrays for pictures; notebooks/inspect.ipynb shows them.

N tokens stand on a grid of rows x columns, row by row; C channels of a token, L blocks, B images.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax_mixer import pretrained
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import stacked
from vit_jax_mixer.predictors import class_maps
from vit_jax_mixer.trained import Trained

Grid = tuple[int, int]  # rows, columns
# The first layer across tokens, in a block: of a Mixer, a ResMLP, a gMLP
_TOKEN_MIXING = ("token_mixing/Dense_0/kernel", "token_mixing/kernel", "spatial_gating/token_mixing/kernel")


def parameter_table(params: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...], int, int]]:
    """Return (name, shape, how many blocks have it, numbers in all of them) for each parameter.

    Parameters that differ in the number of their block alone are one row, as ``MixerBlock_*/...``.
    """
    rows: dict[tuple[str, tuple[int, ...]], int] = {}
    for name, value in pretrained.flatten(stacked.unstack(params)).items():
        row = re.sub(r"Block_\d+/", "Block_*/", name), tuple(value.shape)
        rows[row] = rows.get(row, 0) + 1
    return [(name, shape, times, times * math.prod(shape)) for (name, shape), times in rows.items()]


def grid_of(trained: Trained) -> Grid:
    """Return the rows and columns of a model's tokens."""
    return class_maps.grid(trained.params, trained.about.image_shape)


def token_mixing_maps(params: Mapping[str, Any], grid: Grid, block: int) -> np.ndarray:
    """Return f32[D, rows, columns]: how the units of a block's token mixing weigh the tokens.

    In a Mixer they are the D hidden units (Tolstikhin et al. 2021, arXiv 2105.01601, figure 5). In a
    ResMLP and a gMLP they are the N tokens that come out, in their order.

    Args:
        params: of a model, in our names.
        grid: of `grid_of`.
        block: its number, from 0.

    Raises:
        UserError: there is no such block, or it mixes another number of tokens.
    """
    flat = pretrained.flatten(stacked.unstack(params))
    endings = tuple(f"Block_{block}/{name}" for name in _TOKEN_MIXING)
    kernel = next((np.asarray(flat[name]) for name in flat if name.endswith(endings)), None)
    if kernel is None:
        raise UserError(f"the parameters have no token mixing in a block {block}; name another, from 0.")
    if len(kernel) != math.prod(grid):
        raise UserError(f"block {block} mixes {len(kernel)} tokens, a grid of {grid[0]}x{grid[1]} has another number.")
    return kernel.T.reshape(-1, *grid)  # [N, D] -> [D, rows, columns]


def frequencies(maps: np.ndarray) -> np.ndarray:
    """Return f64[D]: the mean spatial frequency of maps [D, rows, columns], in cycles a token, by their power.

    A map that is the same everywhere has 0, a chequerboard the highest, the root of 1/2.
    """
    power = np.abs(np.fft.fft2(np.asarray(maps, np.float64))) ** 2
    radius = np.hypot(np.fft.fftfreq(maps.shape[1])[:, None], np.fft.fftfreq(maps.shape[2]))
    return (power * radius).sum((1, 2)) / np.maximum(power.sum((1, 2)), np.finfo(np.float64).tiny)


def opposite_pairs(maps: np.ndarray) -> np.ndarray:
    """Return i[D], an order of maps in which pairs of the most opposite ones follow each other, low frequencies first.

    Figure 5 of the Mixer paper shows such pairs, sorted by frequency; how they were found it does not
    say. Here the two maps with the lowest cosine are a pair, then the two lowest of the rest, and so
    on. The last one of an odd number is alone.
    """
    flat = maps.reshape(len(maps), -1).astype(np.float64)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    first, second = np.triu_indices(len(maps), 1)
    left, pairs = set(range(len(maps))), []
    for i in np.argsort((flat @ flat.T)[first, second], kind="stable"):
        pair = int(first[i]), int(second[i])
        if left.issuperset(pair):
            left.difference_update(pair)
            pairs.append(pair)
    frequency = frequencies(maps)
    pairs.sort(key=lambda pair: frequency[list(pair)].mean())
    return np.array([unit for pair in [*pairs, tuple(left)] for unit in pair], int)


def contact_sheet(maps: np.ndarray, columns: int, group: int = 0) -> np.ndarray:
    """Return f32[H, W], all maps in one picture, with NaN between them.

    Args:
        maps: [D, rows, columns]; each is divided by its own largest absolute value.
        columns: maps in a row of the picture.
        group: a wider gap follows each ``group`` columns; 0 for none.
    """
    count, height, width = maps.shape
    largest = np.maximum(np.abs(maps).max((1, 2), keepdims=True), np.finfo(np.float32).tiny)
    rows = -(-count // columns)
    framed = np.full((rows * columns, height + 1, width + 1), np.nan, np.float32)
    framed[:count, :height, :width] = maps / largest
    sheet = framed.reshape(rows, columns, height + 1, width + 1).swapaxes(1, 2)
    sheet = sheet.reshape(rows * (height + 1), columns * (width + 1))[:-1, :-1]
    gaps = range(group * (width + 1), sheet.shape[1], group * (width + 1)) if group else ()
    return np.insert(sheet, list(gaps), np.nan, axis=1)


def block_tokens(trained: Trained, images: np.ndarray) -> list[np.ndarray]:
    """Return f32[B, N, C] for each block: the tokens after it.

    Args:
        trained: the model.
        images: u8[B, h, w, c], as the host operations ``trained.ops`` leave them.
    """

    def tokens(params: Any, images: jax.Array) -> list[jax.Array]:
        scaled, _ = trained.ops.on_device(images)
        _, state = trained.module.apply({"params": params}, scaled, train=False, mutable=["intermediates"])
        kept: Any = state["intermediates"]
        count = sum(name.startswith("block_") for name in kept)
        return [kept[f"block_{i}"].astype(jnp.float32) for i in range(count)]

    return jax.device_get(jax.jit(tokens)(trained.params, images))


def principal_colours(tokens: np.ndarray, grid: Grid) -> np.ndarray:
    """Return f32[B, rows, columns, 3] from 0 to 1: tokens [B, N, C] by their first three principal components.

    The components are those of all tokens given, so that like colours mean like tokens, also in
    different images. Each spans from its 1st to its 99th percentile.
    """
    flat = tokens.reshape(-1, tokens.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(0)
    axes = np.linalg.eigh(flat.T @ flat)[1][:, ::-1][:, :3]  # [C, 3], the largest first
    scores = flat @ np.pad(axes, ((0, 0), (0, 3 - axes.shape[1])))
    low, high = np.percentile(scores, [1, 99], axis=0)
    colours = np.clip((scores - low) / np.maximum(high - low, np.finfo(np.float64).tiny), 0, 1)
    return colours.reshape(len(tokens), *grid, 3).astype(np.float32)


def similarities(features: Sequence[np.ndarray]) -> np.ndarray:
    """Return f64[L, L], the linear CKA of each two of L features [..., C] of the same things: 1 where they are alike.

    It is the same if one of the two is rotated, moved or scaled (Kornblith et al. 2019, arXiv
    1905.00414, section 3).
    """
    flat = [np.asarray(x, np.float32).reshape(-1, x.shape[-1]) for x in features]
    centred = [x - x.mean(0, dtype=np.float64).astype(np.float32) for x in flat]
    products = np.zeros((len(centred), len(centred)))
    for i, j in itertools.combinations_with_replacement(range(len(centred)), 2):
        products[i, j] = products[j, i] = np.sum((centred[i].T @ centred[j]) ** 2, dtype=np.float64)
    own = np.sqrt(np.diag(products))
    return products / np.maximum(np.outer(own, own), np.finfo(np.float64).tiny)
