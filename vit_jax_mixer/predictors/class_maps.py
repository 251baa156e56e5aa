"""Where an image speaks for a class: exact in models whose logits are a linear head's, of the mean over tokens.

The head and a mean over tokens are both linear, so they may change places: the head of each token, after the last
LayerNorm or Aff, is a map whose mean is the logit, bias and all. Elsewhere such class activation maps (Zhou et al.
2016, arXiv 1512.04150) are the same sum of channels; here nothing is left out of it. What a token says may come
from other places of the image: the blocks before have mixed the tokens.

B images, h x w pixels, N tokens on a grid of rows x columns, C channels of a token, K classes.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vit_jax_mixer import drawing
from vit_jax_mixer.errors import UserError

FOR, AGAINST = np.array([202, 0, 32]), np.array([5, 113, 176])  # red and blue, which few people confuse
_LEAST = 224  # pixels of a picture's longer side
_STRENGTH = 0.75  # of the colour where the map is largest


def of_classes(module: nn.Module, params: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
    """Return f32[B, rows, columns]: the map of one class for each image; traced.

    Args:
        module: the model.
        params: its parameters, in our names.
        images: f32[B, h, w, c], as it reads them.
        classes: i32[B].

    Raises:
        UserError: the model's logits are not the mean over tokens of a linear head.
    """
    applied: Any = module.apply({"params": params}, images, train=False, mutable=["intermediates"])
    tokens = applied[1].get("intermediates", {}).get("tokens")
    head = params.get("head", {})
    if tokens is None or set(head) != {"kernel", "bias"}:
        raise UserError(
            f"the logits of a {type(module).__name__} are not the mean over tokens of a linear head, so no class has a "
            "map that explains them; leave out --explain."
        )
    kernels, biases = jnp.take(head["kernel"].T, classes, axis=0), jnp.take(head["bias"], classes)  # [B, C], [B]
    found = jnp.einsum("bnc,bc->bn", tokens.astype(jnp.float32), kernels, precision="highest") + biases[:, None]
    return found.reshape(-1, *grid(params, images.shape[1:3]))


def grid(params: Any, size: tuple[int, ...]) -> tuple[int, int]:
    """Return the rows and columns of the tokens of an image of h x w pixels; ``params`` are in our names."""
    height, width = params["stem"]["kernel"].shape[:2]
    return size[0] // height, size[1] // width


def picture(image: np.ndarray, found: np.ndarray, title: str, below: str) -> Image.Image:
    """Return an image beside itself in grey under its map: red where that is above the logit, blue where below.

    A patch has one colour, the stronger the further from the logit: the map is not smoothed. 0 has no meaning of
    its own here, since a number that all logits have in common changes no probability.

    Args:
        image: u8[h, w, c], as the model reads it.
        found: f32[rows, columns], of `of_classes`.
        title: above.
        below: under it.
    """
    height, width, channels = image.shape
    times = -(-_LEAST // max(height, width))
    plain = np.repeat(image, 3 // channels, axis=2)
    grey = np.asarray(Image.fromarray(plain).convert("L"), np.float64)[..., None] / 2 + 64  # neither black nor white
    rows, columns = found.shape
    above = found - found.mean()
    by_pixel = np.kron(above, np.ones((height // rows, width // columns)))[..., None]  # [h, w, 1]
    share = _STRENGTH * np.abs(by_pixel) / max(np.abs(above).max(), np.finfo(np.float32).tiny)
    mapped = (1 - share) * grey + share * np.where(by_pixel > 0, FOR, AGAINST)
    both = np.concatenate([plain, np.full((height, -(-4 // times), 3), 255), mapped], axis=1).round().astype(np.uint8)
    enlarged = Image.fromarray(both).resize((both.shape[1] * times, both.shape[0] * times), Image.Resampling.NEAREST)
    strips = [drawing.line(drawing.short(text, enlarged.width // 7)) for text in (title, below)]
    sheet = Image.new("RGB", (enlarged.width, enlarged.height + sum(strip.height for strip in strips)), "white")
    sheet.paste(strips[0])
    sheet.paste(enlarged, (0, strips[0].height))
    sheet.paste(strips[1], (0, strips[0].height + enlarged.height))
    return sheet
