"""What several model families share."""

from typing import Any

import flax.linen as nn
import jax

from vit_jax_mixer.errors import UserError


def embed_patches(
    images: jax.Array, patch_size: int | tuple[int, int], hidden_dim: int, dtype: Any, **init: Any
) -> jax.Array:
    """Project each patch to a token: f32[B, H, W, 3] -> f32[B, N, C]; called in a compact module.

    Args:
        images: f32[B, H, W, 3].
        patch_size: pixels of a patch's side, or (height, width).
        hidden_dim: C, channels of a token.
        dtype: of the computation.
        **init: ``kernel_init`` and ``bias_init`` of the projection; by default those of Flax.

    Raises:
        UserError: the patch size does not divide the image size.
    """
    patch = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
    size = images.shape[1:3]
    if min(patch) < 1 or size[0] % patch[0] or size[1] % patch[1]:
        raise UserError(
            f"images of {size[0]}x{size[1]} pixels cannot be cut into patches of {patch[0]}x{patch[1]}; "
            "choose an image size that is a multiple of the patch size."
        )
    x = nn.Conv(hidden_dim, patch, strides=patch, padding="VALID", dtype=dtype, name="stem", **init)(images)
    return x.reshape(x.shape[0], -1, hidden_dim)  # [B, H/P, W/P, C] -> [B, N, C]


def expose(module: nn.Module, name: str, x: jax.Array) -> None:
    """Offer ``x`` as the intermediate ``name`` of the module."""
    module.sow("intermediates", name, x, init_fn=lambda: x, reduce_fn=lambda _, new: new)
