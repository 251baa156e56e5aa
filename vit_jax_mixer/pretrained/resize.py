"""Weights for images or patches of another size than they were trained with.

The parts of ``config.init_resize``, joined by '|':

- ``block_diagonal``: for images a whole number of times as large. Each part of the old size is first
  mixed within itself, by a copy of the weights, so that the pooled features are the mean of the
  parts' (Tolstikhin et al. 2021, arXiv 2105.01601, fine-tuning at higher resolution).
- ``interpolate``: for any other image size. Token mixing resizes the tokens to the old grid, mixes
  them and resizes what comes out to the new grid: all of it in one matrix.
- ``patch``: for another patch size. A patch that is enlarged gives the same token, and one that is
  shrunk nearly so (Beyer et al. 2022, arXiv 2212.08013, section 3.4; here with antialiasing, as
  `data.images` resizes).

Weights do not tell the image size they are for: it is that in ``model.json``, or named, as in
``interpolate(source_size=(128, 256))``, in pixels, or else square.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vit_jax_mixer import specs
from vit_jax_mixer.checkpoints import checksums
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import stacked
from vit_jax_mixer.pretrained import folder, names, trees

Tree = dict[str, Any]
Size = tuple[int, int]  # height, width
Shape = tuple[int, ...]
Axes = tuple[str, ...]
Operation = Callable[[np.ndarray, Axes], np.ndarray]

# The axes of each array that sees single tokens or pixels: tokens that come in or go out, the hidden
# ones of token mixing, a patch's height and width; "" is not resized.
AXES: Mapping[str, Axes] = {
    "MixerBlock/token_mixing/Dense_0/kernel": ("in", "hidden"),
    "MixerBlock/token_mixing/Dense_0/bias": ("hidden",),
    "MixerBlock/token_mixing/Dense_1/kernel": ("hidden", "out"),
    "MixerBlock/token_mixing/Dense_1/bias": ("out",),
    "ResMlpBlock/token_mixing/kernel": ("in", "out"),
    "ResMlpBlock/token_mixing/bias": ("out",),
    "GMlpBlock/spatial_gating/token_mixing/kernel": ("in", "out"),
    "GMlpBlock/spatial_gating/token_mixing/bias": ("out",),
    "stem/kernel": ("height", "width", "", ""),
}
ANY_SIZE = re.compile(r"ConvBlock_\d+|inception")  # parts of a model that see neighbours alone


def block_diagonal(old: Size, new: Size) -> Operation:
    """Copy an array for each part of the image; a part's tokens are not neighbours in the row-major grid."""
    if new[0] % old[0] or new[1] % old[1]:
        raise UserError(
            "config.init_resize: block_diagonal needs images a whole number of times as large, which those of "
            f"{_by(new)} tokens are not for a checkpoint of {_by(old)}; choose another image size, or 'interpolate'."
        )
    rows, columns = new[0] // old[0], new[1] // old[1]
    grid = np.arange(math.prod(new)).reshape(rows, old[0], columns, old[1])
    tokens = grid.swapaxes(1, 2).reshape(rows * columns, -1)  # i[parts, N]

    def copy(value: np.ndarray, axes: Axes) -> np.ndarray:
        hidden = lambda width: np.arange(len(tokens) * width).reshape(-1, width)
        places = [hidden(n) if axis == "hidden" else tokens for axis, n in zip(axes, value.shape, strict=True)]
        large = np.zeros([place.size for place in places], value.dtype)
        for part in zip(*places, strict=True):
            large[np.ix_(*part)] = value
        return large

    return copy


def interpolate(old: Size, new: Size) -> Operation:
    """Resize what goes in from the new grid to the old one, and what goes out from the old to the new."""
    return _multiply(_of_grids(old, new))


def _of_grids(old: Size, new: Size) -> dict[str, np.ndarray]:
    """Return what `interpolate` multiplies the axes of tokens with, f64[N of new, N of old] each."""
    matrix = lambda a, b: np.kron(_linear(a[0], b[0]), _linear(a[1], b[1]))  # f64[N of b, N of a]
    return {"in": matrix(new, old).T, "out": matrix(old, new)}


def in_step(params: Tree, size: Size, new: Size, patch_size: Size) -> Tree:
    """Return the parameters for images of another size, as `interpolate` does: a linear map, to be differentiated.

    Args:
        params: of a Mixer, ResMLP or gMLP, as a step has them: blocks may be stacked (`models.stacked`).
        size: height and width of the images that they are for, in pixels.
        new: those of the others.
        patch_size: of both.
    """
    old, new = ((h // patch_size[0], w // patch_size[1]) for h, w in (size, new))
    matrices = {axis: jnp.asarray(matrix, jnp.float32) for axis, matrix in _of_grids(old, new).items()}

    def leaf(path: Any, value: jax.Array) -> jax.Array:
        axes = _axes(stacked.published_names(path, value.shape)[0])
        for i, axis in enumerate(axes, start=value.ndim - len(axes)):
            if axis in matrices:
                value = jnp.moveaxis(jnp.tensordot(matrices[axis], value, (1, i), precision="highest"), 0, i)
        return value

    return jax.tree_util.tree_map_with_path(leaf, params)


def patch(old: Size, new: Size) -> Operation:
    """Find the kernel whose product with a resized patch is that of the old one with the patch."""
    height, width = (np.linalg.pinv(_linear(a, b).T) for a, b in zip(old, new, strict=True))
    return _multiply({"height": height, "width": width})


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of ``config.init_resize``.

    Attributes:
        way: from the old and the new size, of a patch or the grid of tokens, to the change of one array.
        source_size: pixels of the checkpoint's images, where the user named them.
    """

    way: Callable[[Size, Size], Operation]
    source_size: Size | None = None

    def __post_init__(self) -> None:
        size = self.source_size
        if size is not None and not (
            isinstance(size, tuple) and [type(n) for n in size] == [int, int] and min(size) > 0
        ):
            raise UserError(f"config.init_resize: source_size is {size!r}, not (height, width) in pixels.")


PARTS: Mapping[str, Callable[..., Part]] = {
    "block_diagonal": partial(Part, block_diagonal),
    "interpolate": partial(Part, interpolate),
    "patch": lambda: Part(patch),
}
HINT = f"or bring it to yours by config.init_resize: {', '.join(PARTS)}, or two joined as 'patch|interpolate'"


def _linear(old: int, new: int) -> np.ndarray:
    """Return f64[new, old], which resizes a line linearly, antialiased where it shrinks; its rows sum to 1."""
    centres = (np.arange(new)[:, None] + 0.5) * old / new - 0.5
    weights = np.maximum(0, 1 - np.abs(centres - np.arange(old)) / max(1, old / new))
    return weights / weights.sum(1, keepdims=True)


def _multiply(matrices: Mapping[str, np.ndarray]) -> Operation:
    def multiply(value: np.ndarray, axes: Axes) -> np.ndarray:
        value = value.astype(np.float64)
        for i, axis in enumerate(axes):
            if axis in matrices:
                value = np.moveaxis(np.tensordot(matrices[axis], value, (1, i)), 0, i)
        return value.astype(np.float32)

    return multiply


def parse(how: str) -> list[Part]:
    """Read ``config.init_resize``; '' has no parts.

    Raises:
        UserError: a part or an argument is not known, or two parts change the same arrays.
    """
    parts = [specs.build(PARTS, part, "config.init_resize") for part in how.split("|")] if how else []
    if len({part.way is patch for part in parts}) < len(parts):
        raise UserError(f"config.init_resize: {how!r} says twice what to do with the same weights; leave one part out.")
    return parts


def resize(loaded: Tree, like: Tree, how: str, *, size: Size, source_size: Size | None = None, where: str) -> Tree:
    """Return the parameters for another image or patch size, on the host; what has the size already stays.

    Args:
        loaded: parameters of a Mixer, ResMLP or gMLP, in our names.
        like: those of the new model, for the shapes in it.
        how: ``config.init_resize``.
        size: height and width of the new images in pixels.
        source_size: that of the checkpoint's images, where it is known and ``how`` does not name it.
        where: the file, for messages.

    Raises:
        UserError: there is no way from the one size to the other, the checkpoint's size is not
            known, or the model lacks the hidden width that it grows to.
    """
    parts = parse(how)
    if not parts:
        return loaded
    if not names.conventions_of({name: tree for name, tree in loaded.items() if not ANY_SIZE.fullmatch(name)}):
        raise UserError(
            f"config.init_resize is for a Mixer, ResMLP or gMLP, and {where} holds another model (the norms and the "
            "head of a MnistMixer, and a lambda layer, are for one size); choose the image and patch size it has."
        )
    flat: dict[str, Any] = traverse_util.flatten_dict(loaded, sep="/")
    target: dict[str, Any] = traverse_util.flatten_dict(like, sep="/")
    count = _count_tokens(flat, where)
    old_patch, new_patch = flat["stem/kernel"].shape[:2], target["stem/kernel"].shape[:2]
    for part in parts:
        old, new = old_patch, new_patch
        if part.way is not patch:
            old = _grid(count, old_patch, part.source_size or source_size, where)
            new = (size[0] // new_patch[0], size[1] // new_patch[1])
        if old != new:
            change = part.way(old, new)
            of_part = [n for n in flat if _axes(n) and (n == "stem/kernel") == (part.way is patch)]
            flat |= {name: change(np.asarray(flat[name]), _axes(name)) for name in of_part}
    for name in flat:
        if _axes(name) == ("hidden",) and name in target and target[name].shape != flat[name].shape:
            raise UserError(
                f"config.init_resize={how!r} gives {where} another hidden width of token mixing than config.model has; "
                f"set config.model.tokens_mlp_dim={flat[name].size}."
            )
    return traverse_util.unflatten_dict(flat, sep="/")


def differ_in_size(misfits: Iterable[tuple[str, Shape | None, Shape | None]]) -> bool:
    """Say whether parameters differ as another image or patch size makes them: a name and two shapes each."""
    changed = set()
    for name, old, new in misfits:
        axes = _axes(name)
        if old is None or new is None or not len(axes) == len(old) == len(new):
            return False
        changed |= {axis for axis, a, b in zip(axes, old, new, strict=True) if a != b}
    return "" not in changed and bool(changed - {"hidden"})


def known_size(path: str | Path) -> Size | None:
    """Return height and width of the images of a workdir, or of a checkpoint in it, by its ``model.json``."""
    file = folder.run_of(Path(trees.split(path)[0]).expanduser()) / "model.json"
    if not file.is_file():
        return None
    fields = checksums.read_json(file, may_lack_it=True)
    match fields.get("image_shape"):
        case None if fields.get("kind", "images") != "images":
            return None
        case [int(height), int(width), _]:
            return height, width
    raise UserError(f"{file} is damaged (its image_shape is not three sizes); restore it.")


def _axes(name: str) -> Axes:
    return AXES.get(re.sub(r"Block_\d+", "Block", name), ())


def _count_tokens(flat: Mapping[str, np.ndarray], where: str) -> int:
    """Return N; arrays that do not agree on it are a `UserError`."""
    counts = set()
    for name, axes in ((name, _axes(name)) for name in flat if _axes(name)):
        shape = flat[name].shape
        if len(shape) != len(axes) or 0 in shape:
            raise UserError(f"{where}: {name} has shape {shape}, which no model gives it; is the file whole?")
        counts |= {n for axis, n in zip(axes, shape, strict=True) if axis in ("in", "out")}
    if len(counts) != 1 or "stem/kernel" not in flat:
        raise UserError(f"{where} lacks its stem, or its blocks do not agree on the number of tokens; is it whole?")
    return counts.pop()


def _grid(count: int, patch_size: Size, size: Size | None, where: str) -> Size:
    """Return the checkpoint's tokens as (rows, columns)."""
    side = math.isqrt(count)
    grid = (size[0] // patch_size[0], size[1] // patch_size[1]) if size else (side, side)
    if math.prod(grid) == count:
        return grid
    found = f"images of {_by(size)} pixels have not" if size else "a square image cannot have"
    raise UserError(
        f"{where} has {count} tokens of {_by(patch_size)} pixels, which {found}; name the height and width that its "
        "images have, as in config.init_resize='interpolate(source_size=(128, 256))'."
    )


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
