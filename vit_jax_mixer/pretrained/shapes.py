"""Which model a bare tree of weights belongs to, by its names and shapes."""

import math
import re
from collections.abc import Mapping
from typing import Any

from vit_jax_mixer.errors import UserError

Tree = dict[str, Any]
Found = tuple[dict[str, Any], tuple[int, int, int]]

# What brings bytes to the range that the published models of a family read.
SCALES = {
    "MlpMixer": "value_range(-1, 1)",
    "MnistMixer": "value_range(-1, 1)",
    "ResMlp": "normalize()",
    "GMlp": "value_range(-1, 1)",
}


def infer(tree: Tree, convention: str, where: str) -> Found:
    """Return the fields of `models.create` and the image shape (h, w, c) that fit the weights.

    Images are taken to be square, which weights do not tell.

    Args:
        tree: parameters in our names.
        convention: of the names in the file they came from; timm's have the exact GELU.
        where: the file, for messages.

    Raises:
        UserError: they are of no known family, or of an image that is not square.
    """
    blocks = {re.sub(r"_\d+$", "", name) for name in tree} & _OF_BLOCK.keys()
    more = [name for name in tree if not re.fullmatch(rf"stem|head|pre_head_\w+|({'|'.join(blocks)})_\d+", name)]
    if blocks and more:
        raise UserError(
            f"{where} has {sorted(more)[0]}, a part of which its weights alone do not tell enough; give the workdir, "
            "or an export of it."
        )
    try:
        block = next(name for name in tree if re.fullmatch(r"\w+Block_0", name)).removesuffix("_0")
        fields, tokens, module = _OF_BLOCK[block](tree)
        height, width, channels, hidden = tree["stem"]["kernel"].shape
    except (StopIteration, KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{where} holds no whole model, without which it cannot be run; take another.") from error
    if module == "MlpMixer" and convention.startswith("timm"):
        fields["exact_gelu"] = True
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise UserError(
            f"{where} has {tokens} tokens, no square number, so its image size is not known; give the workdir instead."
        )
    common = {
        "name": module,
        "num_classes": _classes(tree),
        "num_blocks": sum(bool(re.fullmatch(rf"{block}_\d+", name)) for name in tree),
        "patch_size": height if height == width else (height, width),
        "hidden_dim": hidden,
    }
    return {**common, **fields}, (side * height, side * width, channels)


def _mixer(tree: Tree) -> tuple[dict[str, Any], int, str]:
    block = tree["MixerBlock_0"]
    token_in, token_mlp = block["token_mixing"]["Dense_0"]["kernel"].shape
    _, channel_mlp = block["channel_mixing"]["Dense_0"]["kernel"].shape
    return {"tokens_mlp_dim": token_mlp, "channels_mlp_dim": channel_mlp}, token_in, "MlpMixer"


def _mnist_mixer(tree: Tree) -> tuple[dict[str, Any], int, str]:
    token_in, token_mlp = tree["MnistMixerBlock_0"]["token_mixing"]["Dense_0"]["kernel"].shape
    fields = {"mlp_dim": token_mlp}
    if "head" in tree:
        fields["head_dim"] = tree["head"]["Dense_0"]["kernel"].shape[1]
    return fields, token_in, "MnistMixer"


def _resmlp(tree: Tree) -> tuple[dict[str, Any], int, str]:
    block = tree["ResMlpBlock_0"]
    channels, hidden = block["Dense_0"]["kernel"].shape
    # A start value, which trained weights have left behind.
    fields = {"layerscale_init": 0.1, "mlp_ratio": hidden / channels}
    if "token_scale" in block:
        fields["folded"] = True
    return fields, block["token_mixing"]["kernel"].shape[0], "ResMlp"


def _gmlp(tree: Tree) -> tuple[dict[str, Any], int, str]:
    block = tree["GMlpBlock_0"]
    channels, hidden = block["Dense_0"]["kernel"].shape
    return {"mlp_ratio": hidden / channels}, block["spatial_gating"]["token_mixing"]["kernel"].shape[0], "GMlp"


_OF_BLOCK: Mapping[str, Any] = {
    "MixerBlock": _mixer,
    "MnistMixerBlock": _mnist_mixer,
    "ResMlpBlock": _resmlp,
    "GMlpBlock": _gmlp,
}


def _classes(tree: Tree) -> int:
    """Return the width of the head's last layer; 0 without a head."""
    head = tree.get("head")
    if not head:
        return 0
    last = head if "bias" in head else head[max(head)]
    return last["bias"].shape[0]
